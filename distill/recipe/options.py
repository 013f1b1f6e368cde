"""The options of a recipe's run.sh, and the folders that follow from them."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.config.graphs import Graphs
from distill.config.job import Job
from distill.config.language_model import LanguageModel
from distill.config.names import NAME, NAME_RULE, TOPOLOGIES, UNITS, hint, mark, names_of
from distill.files import ASIDE
from distill.kernels.build import NO_COMPILER, find_compiler
from distill.recipe import folders, launch
from distill.recipe.contents import noise_hashes
from distill.recipe.script import log_to_console

log = logging.getLogger(__name__)

DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
ENGINES = ("native", "torch", "k2")
OF_STAGES = re.compile(r"(manifests|checked|cuts|fbank|text|num|units|audio)|(lang|lm|graphs)(_.*)?")  # in a data-dir
OF_CORPUS = re.compile(
    r"labelled|unlabelled|dev|test-.*|LibriSpeech|(train|dev)-.*|fsdd|intent|wakeword|small|medium|large|embedded"
)
WHERE_KNOWN = "noise_files"  # settings of a stage that are compared where both marks have them
JOB_STAGES = (0, 1, 5, 7, 10)  # that several calls with --job share
MOST_JOBS = 4096
NO_K2 = (
    "--engine k2 needs k2, which this Python does not have; wheels for every torch are at"
    " https://k2-fsa.github.io/k2/installation. --engine native gives the same values, faster"
)


@dataclass(frozen=True)
class Recipe:
    """The options of one call of a recipe's run.sh, and the folders that follow from them."""

    corpus: str
    conf_dir: Path
    data_dir: Path
    exp_dir: Path
    corpus_dir: Path | None
    nj: int
    device: str
    engine: str
    units: str
    topology: str
    mini: bool
    rehearse: bool
    settings: tuple[str, ...]
    names: tuple[str, ...] = ()
    launcher: str = ""
    allow_commands: bool = False
    resample: bool = False
    hlg: Path | None = None
    download: bool = True
    unlabelled: tuple[str, ...] = ()
    job: Job | None = None

    @property
    def threads(self) -> int:
        """Threads of each process that runs a stage on this machine: its share of `nj`."""
        return launch.threads(self.nj)

    @property
    def manifests(self) -> Path:
        return self.data_dir / "manifests"

    @property
    def checked(self) -> Path:
        """Shards of checked recordings, until the manifests are made of them."""
        return self.data_dir / "checked"

    @property
    def cuts(self) -> Path:
        return self.data_dir / "cuts"

    def cut_set(self, part: str) -> Path:
        return self.cuts / f"{part}.jsonl.gz"

    def cut_sets(self, parts: Iterable[str]) -> dict[Path, int | None]:
        """Cut sets as inputs of a stage, with the stage that makes them."""
        return dict.fromkeys(map(self.cut_set, parts), 0)

    def noise_files(self, parts: Iterable[str]) -> dict[str, Any]:
        """The setting of a stage that reads recorded noise below the data dir."""
        found = noise_hashes(self.data_dir, parts)
        return {WHERE_KNOWN: found} if found else {}

    @property
    def fbank(self) -> Path:
        return self.data_dir / "fbank"

    @property
    def text(self) -> Path:
        return self.data_dir / "text"

    @property
    def variant(self) -> str:
        """Units, and the topology where it is not the usual one: `biphones`, `phones_two_pdf`."""
        return self.units if self.topology == TOPOLOGIES[0] else f"{self.units}_{self.topology}"

    @property
    def suffix(self) -> str:
        """The variant's `mark`."""
        return mark(self.variant)

    @property
    def lang(self) -> Path:
        return self.data_dir / f"lang_{self.variant}"

    @property
    def lm(self) -> Path:
        return self.data_dir / f"lm{self.suffix}"

    @property
    def graphs(self) -> Path:
        """The denominator and the recipe's own decoding graph, which labels the unlabelled part."""
        return self.data_dir / f"graphs{self.suffix}"

    def training_graphs(self, experiment: Experiment) -> Path:
        """The denominator that an experiment is trained with: of the text corpus, or of the labelled transcripts."""
        own = experiment.data.denominator
        return self.graphs if own == "text" else self.graphs.with_name(f"{self.graphs.name}_{own}")

    @property
    def decoding_graphs(self) -> Path:
        """The graphs of stages 10 to 12; with --hlg in a folder of their own, so that no training depends on it."""
        return self.graphs.with_name(f"{self.graphs.name}_hlg") if self.hlg else self.graphs

    @property
    def num(self) -> Path:
        return self.data_dir / "num"

    @property
    def frame_units(self) -> Path:
        """Units of frames by k-means, which pre-training predicts; a folder for each of their settings."""
        return self.data_dir / "units"

    @property
    def overrides(self) -> dict[str, tuple[str, ...]]:
        """KEY=VALUE of the options --set by scope, without it: "graphs.", "lm.", and "" for the experiments."""
        scopes = (Graphs.SCOPE, LanguageModel.SCOPE)
        own = {scope: tuple(s.removeprefix(scope) for s in self.settings if s.startswith(scope)) for scope in scopes}
        return {**own, Experiment.SCOPE: tuple(s for s in self.settings if not s.startswith(scopes))}

    @property
    def graphs_yaml(self) -> Path:
        """Settings of language models and graphs; the file need not be there."""
        return self.conf_dir / "graphs.yaml"

    @property
    def lm_yaml(self) -> Path:
        """Settings of the Transformer language model."""
        return self.conf_dir / "lm.yaml"

    def exp(self, name: str) -> Path:
        """Folder of an experiment, by its full name (`Experiment.name`); ValueError for one that leads elsewhere."""
        if not NAME.fullmatch(name):
            raise ValueError(f"an experiment's name is a folder in {self.exp_dir}: expected {NAME_RULE}; got {name!r}")
        return self.exp_dir / name

    def experiment_yaml(self, name: str) -> Path:
        """Settings of an experiment; raises FileNotFoundError with the nearest known one, or all."""
        path = self.conf_dir / f"{name}.yaml"
        if path in (self.graphs_yaml, self.lm_yaml) or not path.is_file():
            known = sorted(p.stem for p in self.conf_dir.glob("*.yaml") if p not in (self.graphs_yaml, self.lm_yaml))
            raise FileNotFoundError(f"no experiment '{name}' in {self.conf_dir}{hint(name, known)}")
        return path

    def experiment(self, name: str) -> Experiment:
        """The settings of an experiment, by the name of its YAML file."""
        return Experiment.load(self.experiment_yaml(name), self.overrides[Experiment.SCOPE], self.suffix)

    def experiments(self) -> list[Experiment]:
        """The experiments of this call, in the order given."""
        return [self.experiment(name) for name in self.names]

    def recognisers(self, number: int) -> list[Experiment]:
        """Those whose outputs are units of speech; the log names the others, which stage `number` leaves out.

        Where a transducer alone is trained, that is so in stages 10 and 12.
        """
        every = self.experiments()
        taken = [each for each in every if each.recognises or (number in (10, 12) and each.transduces)]
        for each in (each for each in every if each not in taken):
            why = "no trained main output" if each.transduces else "no outputs to decode before it is fine-tuned"
            log.info("stage %d: %s has %s", number, each.name, why)
        return taken

    def graph_settings(self) -> Graphs:
        """The settings of language models and graphs."""
        return Graphs.load(self.graphs_yaml, self.overrides[Graphs.SCOPE])

    def lm_settings(self) -> LanguageModel:
        """The settings of the Transformer language model; FileNotFoundError without its file."""
        return LanguageModel.load(self.lm_yaml, self.overrides[LanguageModel.SCOPE])

    @classmethod
    def of(cls, args: argparse.Namespace) -> Recipe:
        """From parsed options that are right."""
        return cls(
            args.corpus, args.conf_dir, args.data_dir, args.exp_dir, Path(args.corpus_dir) if args.corpus_dir else None,
            args.nj, args.device, args.engine, args.units, args.topology, args.mini == "true", args.rehearse == "true",
            tuple(args.set), names_of("--experiment", args.experiment), args.launcher,
            args.allow_commands == "true", args.resample == "true", Path(args.hlg) if args.hlg else None,
            args.download == "true", names_of("--unlabelled", args.unlabelled),
            Job(*map(int, args.job.split("/"))) if args.job else None,
        )  # fmt: skip


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every stage script takes; run.sh passes them on."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", required=True, help="name of the recipe below egs/")
    for name in ("conf-dir", "data-dir", "exp-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--corpus-dir", default="", help="where the corpus lies; empty: the recipe's default")
    parser.add_argument("--experiment", default="", help="comma-separated names of YAML files")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="processes and threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--engine", default="native", help=", ".join(ENGINES))
    parser.add_argument("--units", default="phones", help=", ".join(UNITS))
    parser.add_argument("--topology", default=TOPOLOGIES[0], help=", ".join(TOPOLOGIES))
    parser.add_argument("--hlg", default="", help="decoding graph made elsewhere, OpenFst (.fst) or k2 (.pt)")
    parser.add_argument("--launcher", default="", help="starts the processes of stages 5 to 11, such as torchrun")
    parser.add_argument("--mini", choices=("true", "false"), default="false")
    parser.add_argument("--rehearse", choices=("true", "false"), default="false")
    parser.add_argument("--allow-commands", choices=("true", "false"), default="false", help="run commands in data")
    parser.add_argument("--resample", choices=("true", "false"), default="false", help="convert audio to 16 kHz")
    parser.add_argument("--download", choices=("true", "false"), default="true", help="fetch what the corpus lacks")
    parser.add_argument("--unlabelled", default="", help="parts of the corpus, comma-separated; empty: the usual ones")
    parser.add_argument("--job", default="", metavar="J/N", help="do only the J-th of N shares of the stage's shards")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    return parser


def device_name(text: str) -> str:
    """The value of an option --device; raises what argparse shows as an error."""
    if not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be cpu, cuda or cuda:N")
    return text


def comparison_parser(description: str | None, experiments: int | str, part: str) -> argparse.ArgumentParser:
    """The options of tools that run experiments over a cut set. experiments: how many; part: the usual cut set."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=experiments, metavar="EXP_DIR", help="trained experiments")
    parser.add_argument("--cuts", type=Path, required=True, help="folder of cut sets, data/cuts")
    parser.add_argument("--part", default=part, help="one of its cut sets")
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe of parsed options; also sets up logging and the thread count. ValueError with all wrong options."""
    log_to_console()
    if wrong := [text for _, text in wrong_options(args)]:
        raise ValueError("; ".join(wrong))
    recipe = Recipe.of(args)
    if wrong := list(wrong_folders(recipe)):
        raise ValueError("; ".join(wrong))
    if "RANK" in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(recipe.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.nj))
    return recipe


def wrong_options(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Name and error of each option with a wrong value."""
    for name, known in (("units", UNITS), ("engine", ENGINES), ("topology", TOPOLOGIES)):
        value = getattr(args, name)
        if value not in known:
            yield name, f"--{name} {value} is not known{hint(value, known)}"
    if args.engine == "k2" and importlib.util.find_spec("k2") is None:
        yield "engine", NO_K2
    if find_compiler() is None:
        yield "compiler", NO_COMPILER
    if not DEVICE.fullmatch(args.device):
        yield "device", f"--device {args.device!r} must be cpu, cuda or cuda:N"
    if not 1 <= args.nj <= MOST_JOBS:
        yield "nj", f"--nj {args.nj} must be 1 to {MOST_JOBS}"
    if args.job and not (re.fullmatch(r"[1-9]\d{0,5}/[1-9]\d{0,5}", args.job) and Fraction(args.job) <= 1):
        yield "job", f"--job {args.job!r} must be J/N, a number from 1 to N and how many there are, such as 3/40"
    for name in ("experiment", "unlabelled"):
        try:
            names_of(f"--{name}", getattr(args, name))
        except ValueError as error:
            yield name, str(error)
    if args.hlg and not Path(args.hlg).is_file():
        yield "hlg", f"--hlg {args.hlg}: no such file; expected a decoding graph, OpenFst (.fst) or k2 (.pt)"


def wrong_folders(recipe: Recipe) -> Iterator[str]:
    """Errors of folders that would get into each other's way; nothing is written."""
    written = {"--data-dir": recipe.data_dir, "--exp-dir": recipe.exp_dir}
    read = {"--conf-dir": recipe.conf_dir}
    if recipe.corpus_dir is not None:
        read["--corpus-dir"] = recipe.corpus_dir
    yield from folders.not_separate("--data-dir", recipe.data_dir, {"--exp-dir": recipe.exp_dir})
    for option, folder in written.items():
        yield from folders.not_writable(option, folder)
        yield from folders.not_separate(option, folder, read)
    for option, folder in [*written.items(), *read.items()]:
        if (name := folders.below(folder, recipe.data_dir)) and OF_STAGES.fullmatch(name):
            yield f"{option} {folder} lies in {recipe.data_dir / name}, which a stage writes; give another"
        if (name := folders.below(folder, recipe.exp_dir)) and _of_experiments(recipe, name):
            yield f"{option} {folder} lies in {recipe.exp_dir / name}, an experiment's; give another"
    for option, folder in written.items():
        if recipe.corpus_dir is None or not (name := folders.below(folder, recipe.corpus_dir)):
            continue
        if OF_STAGES.fullmatch(name) or OF_CORPUS.fullmatch(name):
            place = recipe.corpus_dir / name
            yield f"{option} {folder} lies in {place}, where files of the corpus are looked for; give another"
        elif recipe.corpus == "custom" and not any(recipe.corpus_dir.glob("labelled*")):  # stage 0 would find its own
            yield f"{option} {folder} lies in {recipe.corpus_dir}, all of which is the labelled part; give another"


def _of_experiments(recipe: Recipe, name: str) -> bool:
    """Whether an experiment of the recipe may have this folder: one named after its YAML, or what comes before it."""
    known = {path.stem for path in recipe.conf_dir.glob("*.yaml")} | set(recipe.names)
    return any(name == stem or name.startswith((f"{stem}_", f"{stem}{ASIDE}")) for stem in known)
