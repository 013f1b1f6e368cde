"""The stage contract: what a stage reads, what it leaves behind, and when it may be passed over.

A stage writes into a temporary folder that is renamed when complete, and leaves `.done` with its settings and
hashes of what its inputs hold. The same again: nothing to do. Others: done again, saying why. What a stage is not
known to have made is never removed; a folder that it would continue in is put aside where it cannot. Only the
standard library is imported, so asking a finished recipe costs no time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeVar

from distill import files, folders, launch
from distill.contents import Contents
from distill.extras import explained
from distill.folders import ASIDE, DONE, STARTED
from distill.locks import locked

log = logging.getLogger(__name__)

ENGINES = ("native", "torch", "k2")
UNITS = ("phones", "chars", "bpe", "biphones")
TOPOLOGIES = ("ctc", "ctc_compact", "two_pdf")  # the first is what units come with
GRAPHS, LM = "graphs.", "lm."
LEFTOVERS = (".tmp", ".old", ".lock")
OF_STAGES = re.compile(r"(manifests|cuts|fbank|text|num|audio)|(lang|lm|graphs)(_.*)?")  # folders in a data-dir
OF_CORPUS = re.compile(r"labelled|unlabelled|dev|test-.*|LibriSpeech|(train|dev)-.*|fsdd|intent|wakeword")
Result = TypeVar("Result")
MOST_JOBS = 4096
NAME = re.compile(r"(?!.*(?:\.aside-|\.(?:tmp|old|lock)\Z))[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
NAME_RULE = "letters a to z, digits, . _ - (no . or - first, at most 200, no .aside-, not ending in .tmp, .old, .lock)"
NO_K2 = (
    "--engine k2 needs k2, which this Python does not have; wheels for each torch stand at"
    " https://k2-fsa.github.io/k2/installation. --engine native gives the same values, faster"
)


def mark(variant: str) -> str:
    """What folders and experiments of other units or another topology are marked with; nothing for plain phones."""
    return "" if variant == "phones" else f"_{variant}"


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

    @property
    def threads(self) -> int:
        """Threads of each process that runs a stage on this machine: its share of `nj`."""
        return launch.threads(self.nj)

    @property
    def manifests(self) -> Path:
        return self.data_dir / "manifests"

    @property
    def cuts(self) -> Path:
        return self.data_dir / "cuts"

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
        return self.data_dir / f"graphs{self.suffix}"

    @property
    def num(self) -> Path:
        return self.data_dir / "num"

    @property
    def graph_overrides(self) -> tuple[str, ...]:
        """The `--set graphs.KEY=VALUE` of this call, without "graphs."."""
        return tuple(item.removeprefix(GRAPHS) for item in self.settings if item.startswith(GRAPHS))

    @property
    def lm_overrides(self) -> tuple[str, ...]:
        """The `--set lm.KEY=VALUE` of this call, without "lm."."""
        return tuple(item.removeprefix(LM) for item in self.settings if item.startswith(LM))

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set KEY=VALUE` that concern experiments."""
        return tuple(item for item in self.settings if not item.startswith((GRAPHS, LM)))

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
        """Settings of an experiment; raises FileNotFoundError with the known ones, the nearest first."""
        path = self.conf_dir / f"{name}.yaml"
        if path in (self.graphs_yaml, self.lm_yaml) or not path.is_file():
            known = sorted(p.stem for p in self.conf_dir.glob("*.yaml") if p not in (self.graphs_yaml, self.lm_yaml))
            near = get_close_matches(name, known, n=len(known) or 1, cutoff=0.0)
            raise FileNotFoundError(f"no experiment '{name}' in {self.conf_dir}; there are: {', '.join(near)}")
        return path


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
    parser.add_argument("--topology", default="", help=f"{', '.join(TOPOLOGIES)}; empty: {TOPOLOGIES[0]}")
    parser.add_argument("--launcher", default="", help="starts the processes of stages 6 to 11, such as torchrun")
    parser.add_argument("--mini", choices=("true", "false"), default="false")
    parser.add_argument("--rehearse", choices=("true", "false"), default="false")
    parser.add_argument("--allow-commands", choices=("true", "false"), default="false", help="run commands in data")
    parser.add_argument("--resample", choices=("true", "false"), default="false", help="convert audio to 16 kHz")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    return parser


def log_to_console() -> None:
    """Time, level and message of everything from INFO up; on ranks but the first from WARNING up."""
    level = logging.WARNING if launch.rank() else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe of parsed options; also sets up logging and the thread count for the script."""
    log_to_console()
    units = _known("--units", args.units, UNITS)
    if _known("--engine", args.engine, ENGINES) == "k2" and importlib.util.find_spec("k2") is None:
        raise ValueError(NO_K2)
    topology = _known("--topology", args.topology or TOPOLOGIES[0], TOPOLOGIES)
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", args.device):
        raise ValueError(f"--device {args.device!r} must be cpu, cuda or cuda:N")
    if not 1 <= args.nj <= MOST_JOBS:
        raise ValueError(f"--nj {args.nj} must be 1 to {MOST_JOBS}")
    recipe = Recipe(
        args.corpus, args.conf_dir, args.data_dir, args.exp_dir, Path(args.corpus_dir) if args.corpus_dir else None,
        args.nj, args.device, args.engine, units, topology, args.mini == "true", args.rehearse == "true",
        tuple(args.set), names_of("--experiment", args.experiment), args.launcher,
        args.allow_commands == "true", args.resample == "true",
    )  # fmt: skip
    check_folders(recipe)
    if "RANK" in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(recipe.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.nj))
    return recipe


def check_folders(recipe: Recipe) -> None:
    """Raise ValueError, before anything is written, where the folders of a call would get into each other's way."""
    written = {"--data-dir": recipe.data_dir, "--exp-dir": recipe.exp_dir}
    read = {"--conf-dir": recipe.conf_dir}
    if recipe.corpus_dir is not None:
        read["--corpus-dir"] = recipe.corpus_dir
    folders.check_separate("--data-dir", recipe.data_dir, {"--exp-dir": recipe.exp_dir})
    for option, folder in written.items():
        folders.check_writable_place(option, folder)
        folders.check_separate(option, folder, read)
    for option, folder in [*written.items(), *read.items()]:
        if (name := folders.below(folder, recipe.data_dir)) and OF_STAGES.fullmatch(name):
            raise ValueError(f"{option} {folder} lies in {recipe.data_dir / name}, which a stage writes; give another")
        if (name := folders.below(folder, recipe.exp_dir)) and _of_experiments(recipe, name):
            raise ValueError(f"{option} {folder} lies in {recipe.exp_dir / name}, an experiment's; give another")
    if recipe.corpus_dir is not None:
        _check_beside_corpus(written, recipe.corpus_dir)


def _of_experiments(recipe: Recipe, name: str) -> bool:
    """Whether an experiment of the recipe may have this folder: one named after its YAML, or what comes before it."""
    known = {path.stem for path in recipe.conf_dir.glob("*.yaml")} | set(recipe.names)
    return any(name == stem or name.startswith((f"{stem}_", f"{stem}{ASIDE}")) for stem in known)


def _check_beside_corpus(written: Mapping[str, Path], corpus_dir: Path) -> None:
    """Raise ValueError for a folder to write in that is a part of the corpus: one with files that no stage made."""
    for option, folder in written.items():
        name = folders.below(folder, corpus_dir)
        if name and (OF_STAGES.fullmatch(name) or OF_CORPUS.fullmatch(name)):
            raise ValueError(
                f"{option} {folder} lies in {corpus_dir / name}, where files of the corpus are looked for; give another"
            )


def _known(option: str, value: str, known: Iterable[str]) -> str:
    """The value, if it is known; else ValueError with the known ones, the nearest first."""
    if value not in known:
        near = get_close_matches(value, list(known), n=len(list(known)), cutoff=0.0)
        raise ValueError(f"{option} {value} is not known; did you mean '{near[0]}'? There are: {', '.join(near)}")
    return value


def check_name(name: str) -> str:
    """The name, if its file or folder lies where it should and is not taken for another; else ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(f"must be a name: {NAME_RULE}")
    return name


def names_of(option: str, text: str) -> tuple[str, ...]:
    """The names, separated by commas, that an option gives; ValueError names the option and what is wrong."""
    names = tuple(text.split(",")) if text else ()
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{option} {text!r}: {name!r} must be a name: {NAME_RULE}")
        if names.count(name) > 1:
            raise ValueError(f"{option} {text!r}: {name} stands there more than once")
    return names


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: user errors become one line, an interruption a quiet exit, children end with it."""
    launch.end_cleanly()
    try:
        main()
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        _log_error(error)
        sys.exit(1)
    except ImportError as error:
        message = explained(error, Path(sys.argv[0]).name) if error.name else str(error)  # ours explain themselves
        if not message or os.environ.get("DISTILL_TRACEBACK"):
            raise
        log.error("%s", message)
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        sys.exit(getattr(interruption, "status", 130))
    finally:
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.terminate()
        launch.ending()


def _log_error(error: Exception) -> None:
    """One line; of several ranks with the same error the first alone gives it, of those that lost another none."""
    if launch.another_ended(error):
        reason = str(error).strip().splitlines()[0]
        log.info("stopping, as another process of this stage is gone: %s", reason)
        return
    if launch.rank():
        try:
            time.sleep(3.0)  # the end of the first one ends this process meanwhile, if that has the same error
        except KeyboardInterrupt:
            return
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        way_out = f"; {files.WAYS_OUT[error.errno]}" if error.errno in files.WAYS_OUT else ""
        reason = (f"{error.strerror}: {error.filename}" if error.filename else error.strerror) + way_out
    log.error("%s (DISTILL_TRACEBACK=1 shows where)", reason)


def command_line() -> str:
    """What results name as the command that made them: run.sh's where it started this script, else the script's."""
    return shlex.join(shlex.split(os.environ.get("RECIPE_COMMAND", "")) or sys.argv)


class Stage:
    """One stage with one output folder.

    inputs: files or folders it reads -> number of the stage that writes them, None for those of the user.
    resumable: the work continues in the folder itself after a kill, as long as settings and inputs are the same.
    """

    def __init__(
        self,
        number: int,
        out: Path,
        settings: Mapping[str, Any],
        inputs: Mapping[Path, int | None],
        resumable: bool = False,
    ) -> None:
        self.number, self.out, self.resumable = number, Path(out), resumable
        self.settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        self.inputs = {Path(path): stage for path, stage in inputs.items()}
        self.contents = Contents()

    def check_inputs(self) -> None:
        """Raise FileNotFoundError naming the stage that makes what is missing or not complete."""
        for path, stage in self.inputs.items():
            if path.is_file():
                continue
            try:
                folders.read_mark(path / DONE)
            except (FileNotFoundError, ValueError) as error:
                why = f" ({error})" if isinstance(error, ValueError) else ""
                raise FileNotFoundError(
                    f"stage {self.number} needs {path}, which is not there{why}"
                    if stage is None
                    else f"stage {self.number} needs {path}, which stage {stage} makes{why}; run it first:"
                    f" run.sh --stage {stage} --stop-stage {stage} with the same options"
                ) from None

    def identity(self) -> dict[str, Any]:
        """Settings and hashes of the inputs: what must be equal for the output to be valid."""
        made = {path: found for path in self.inputs if (found := _made_hash(path))}
        hashes = made | self.contents.hashes([path for path in self.inputs if path not in made])
        inputs: dict[str, str] = {}
        for path in self.inputs:
            key = _key(path)
            inputs[key] = _hash([inputs[key], hashes[path]]) if key in inputs else hashes[path]
        return {"settings": self.settings, "inputs": inputs}

    def up_to_date(self, quiet: bool = False) -> bool:
        """Whether the output was made from these settings and inputs; logs what changed if not."""
        try:
            done = folders.read_mark(self.out / DONE)
        except FileNotFoundError:
            return False
        except ValueError as error:
            if not quiet:
                log.warning("stage %d: not taken as done: %s", self.number, error)
            return False
        self.contents.remember(done.get("seen"))
        changes = self._changes(done, self.identity())
        if changes and not quiet:
            log.info("stage %d: making %s again: %s", self.number, self.out, "; ".join(changes))
        if not changes and self.contents.seen != done.get("seen", {}) and launch.rank() == 0:
            with contextlib.suppress(OSError):  # only saves reading the same files again
                write_json(self.out / DONE, {**done, "seen": self.contents.seen})
        return not changes

    def _changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """What differs, a phrase each; other names of folders in which stages have made inputs are no difference."""
        made = [_key(path) for path, stage in self.inputs.items() if stage is not None]
        return _changes({**before, "inputs": _renamed(before["inputs"], now["inputs"], made)}, now)

    def begin(self, stack: contextlib.ExitStack) -> Path | None:
        """The folder to write into until `stack` is closed; None where the output is up to date."""
        self.check_inputs()
        if self.up_to_date():
            self.tidy()
            return None
        stack.enter_context(self._lock())
        if self.up_to_date(quiet=True):  # another process has made it meanwhile
            return None
        return stack.enter_context(self._written())

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """The folder to write into; renamed and marked done when the block ends without an error."""
        self.check_inputs()
        with self._lock(), self._written() as folder:
            yield folder

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.out):
            yield

    @contextlib.contextmanager
    def _written(self) -> Iterator[Path]:
        started = time.monotonic()
        folder = self.out if self.resumable else self._tmp
        identity = self._open(folder)
        try:
            yield folder
            self._complete(folder, identity, time.monotonic() - started)
        except BaseException as error:
            of_disk = files.of_disk(folder, error)
            if not self.resumable and folder.is_dir():
                with contextlib.suppress(OSError):  # a full disk gets its room back
                    folders.remove(folder)
            if of_disk:
                raise of_disk from error
            raise

    def _open(self, folder: Path) -> dict[str, Any]:
        """Make the folder to write into, free of other work, with the mark of this stage; returns the identity."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"stage {self.number} writes a folder {self.out}, and that is a file; move it away")
        if self.resumable:
            identity = self._continue_or_put_aside()
        else:
            identity = self.identity()
            folders.check_own(self.out, DONE, self.number)
            self._remove_leftovers()
        if (folder / DONE).is_dir():
            raise ValueError(f"{folder / DONE} is a folder, where stage {self.number} writes a file; move it away")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STARTED, {**identity, "stage": self.number, "seen": self.contents.seen})
        (folder / DONE).unlink(missing_ok=True)
        return identity

    @property
    def _tmp(self) -> Path:
        return self.out.with_name(self.out.name + ".tmp")

    @property
    def _old(self) -> Path:
        return self.out.with_name(self.out.name + ".old")

    def _remove_leftovers(self) -> None:
        """Remove what a killed call of this stage has left beside its output; ValueError for what is another's."""
        for leftover, mark in ((self._tmp, STARTED), (self._old, DONE)):
            folders.check_own(leftover, mark, self.number)
            if os.path.lexists(leftover):
                folders.remove(leftover)

    def tidy(self) -> None:
        """Remove a killed call's leftovers where the output is complete, as far as that can be done."""
        if launch.rank() or not any(os.path.lexists(self.out.with_name(self.out.name + end)) for end in LEFTOVERS):
            return
        with contextlib.suppress(OSError, RuntimeError, ValueError), locked(self.out):
            if not self.resumable:
                self._remove_leftovers()
                (self.out / STARTED).unlink(missing_ok=True)

    def _continue_or_put_aside(self) -> dict[str, Any]:
        """Leave a folder that the work may continue in; rename one that it may not, saying why."""
        started, why = None, ""
        try:
            started = folders.read_mark(self.out / STARTED)
            self.contents.remember(started.get("seen"))
        except (FileNotFoundError, ValueError) as error:
            why = str(error)
        identity = self.identity()
        if not os.path.lexists(self.out) or folders.is_blank(self.out):
            return identity
        if started is not None:
            folders.check_stage(self.out, started, self.number)
            why = "; ".join(self._changes(started, identity))
        if why:
            aside = folders.put_aside(self.out)
            log.warning("stage %d: put %s aside as %s, starting afresh: %s", self.number, self.out, aside, why)
        return identity

    def _complete(self, folder: Path, identity: Mapping[str, Any], seconds: float) -> None:
        """Write `.done`, and put the folder in its place."""
        done = {
            **identity, "stage": self.number, "seen": self.contents.seen, "hash": _hash(identity),
            "seconds": round(seconds, 1), "files": [] if self.resumable else folders.files_in(folder),
        }  # fmt: skip
        write_json(folder / DONE, done)
        if not self.resumable:
            self._replace(folder)

    def _replace(self, folder: Path) -> None:
        if added := self._added():
            aside = folders.put_aside(self.out)
            log.warning("put %s aside as %s: it holds what no stage wrote: %s", self.out, aside, ", ".join(added[:5]))
        if replaced := os.path.lexists(self.out):
            self.out.rename(self._old)
        folder.rename(self.out)
        (self.out / STARTED).unlink()
        if replaced:
            folders.remove(self._old)

    def _added(self) -> list[str]:
        """Files in the output folder that this stage has not written."""
        if not os.path.lexists(self.out) or folders.is_blank(self.out):
            return []
        written = folders.read_mark(self.out / DONE).get("files")
        return sorted(set(folders.files_in(self.out)) - set(written)) if isinstance(written, list) else []


class Group(Protocol):
    """The processes that run a stage together (`distill.train.distributed.Ranks`)."""

    @property
    def first(self) -> bool: ...

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""

    def wait(self) -> None:
        """Return once every process has called it."""


class Alone:
    """The group of a single process."""

    first = True

    def share(self, value: Any) -> Any:
        return value

    def wait(self) -> None:
        return None


def run_stage(stage: Stage, work: Callable[[Path], None], ranks: Group | None = None) -> bool:
    """Do the work unless it is done already; returns whether anything was done.

    With several `ranks` the first one checks, locks, opens and completes the folder; all of them work in it.
    """
    ranks = ranks or Alone()
    with contextlib.ExitStack() as stack:
        folder = by_first(ranks, lambda: stage.begin(stack))
        if folder is None:
            log.info("stage %d: up to date (%s)", stage.number, stage.out)
            return False
        work(folder)
        ranks.wait()
    ranks.wait()
    return True


def by_first(ranks: Group, call: Callable[[], Result]) -> Result:
    """What the first rank's call returns, on every rank; its error ends them all, and the first alone raises it."""
    result, error = None, None
    if ranks.first:
        try:
            result = call()
        except Exception as raised:
            error = raised
    result, failed = ranks.share((result, error is not None))
    if error is not None:
        raise error
    if failed:
        sys.exit(1)
    return result


def relaunched(recipe: Recipe, stages: Sequence[Stage], more: Sequence[str] = ()) -> bool:
    """Run this script in several processes if one of its stages has work to do; returns whether that was done.

    They come from the recipe's launcher, or on a CPU there are `nj`, each of one thread; they are given `more` options.
    False: this process does the work, or is one of them, or there is nothing to do. Ends the script with their exit
    status if they fail.
    """
    if "RANK" in os.environ or not (recipe.launcher or (recipe.device == "cpu" and recipe.nj > 1)):
        return False
    if launch.LAUNCHED in os.environ:
        raise ValueError(f"--launcher {recipe.launcher}: expected it to set RANK and WORLD_SIZE, as torchrun does")
    pending = next((stage for stage in stages if not stage.up_to_date(quiet=True)), None)
    if pending is None:
        return False
    pending.check_inputs()
    if status := launch.by_launcher(recipe.launcher, more) if recipe.launcher else launch.by_count(recipe.nj, more):
        sys.exit(status)
    return True


def _made_hash(path: Path) -> str | None:
    """Hash of the stage that made a path where it lies in a stage's folder."""
    for folder in (path, path.parent):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return str(folders.read_mark(folder / DONE)["hash"])
    return None


def _key(path: Path) -> str:
    """What marks call an input."""
    return f"{path.parent.name}/{path.name}"


def _renamed(old: Mapping[str, str], new: Mapping[str, str], made: Iterable[str]) -> dict[str, str]:
    """Old inputs, where the folder above has another name now under the new one: same name, same hash."""
    inputs = dict(old)
    for key in made:
        name, digest = key.rpartition("/")[2], new[key]
        gone = (k for k in inputs if k not in new and k.rpartition("/")[2] == name and inputs[k] == digest)
        if key not in inputs and (before := next(gone, None)):
            inputs[key] = inputs.pop(before)
    return inputs


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(before["settings"]), _flat(now["settings"])
    changes = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    old_inputs, new_inputs = before["inputs"], now["inputs"]
    changed = [p for p in sorted(old_inputs | new_inputs) if old_inputs.get(p) != new_inputs.get(p)]
    more = [f"and {len(changed) - 8} more"] if len(changed) > 8 else []
    return changes[:4] + [f"{path} {_how(path, old_inputs, new_inputs)}" for path in changed[:8]] + more


def _how(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if path not in old:
        return "is new"
    return "changed" if path in new else "is gone"


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name in value for k, v in _flat(value[name], f"{key}.{name}" if key else name).items()}
    return {key: value}


def link(source: Path, target: Path) -> None:
    """The same file in another place, or a copy of it where the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or nothing, keys sorted."""
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
