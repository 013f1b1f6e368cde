"""Checks before the first stage: all names, settings and options of a call of run.sh, with all errors at once."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

from distill.config.distortions import AUDIO_SUFFIXES, CODECS, Distort, noise_clips
from distill.config.experiment import TEACHERS, Experiment
from distill.config.language_model import LanguageModel
from distill.config.loading import WrongSettings
from distill.config.model import lost_gates
from distill.config.names import hint
from distill.config.units import FEATURES, HOP, Units
from distill.corpora import kind_of
from distill.extras import way_out
from distill.recipe import launch
from distill.recipe.first_weights import fine_tuned, first_weights_stage, source_problem
from distill.recipe.ngram_rescoring import RESCORING
from distill.recipe.options import JOB_STAGES, Recipe, recipe_parser, wrong_folders, wrong_options
from distill.recipe.stage import written_by_slim

CUT_SETS = ("labelled", "unlabelled", "dev")  # of every corpus, beside its test-*
GPUS = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")  # below /dev


def check(args: argparse.Namespace) -> list[str]:
    """The errors of the parsed options of a call, a line each; the rest is checked with defaults for wrong options."""
    wrong, defaults = dict(wrong_options(args)), recipe_parser(None)
    for name in wrong:
        setattr(args, name, defaults.get_default(name))
    recipe = Recipe.of(args)
    return [*wrong.values(), *wrong_folders(recipe), *problems(recipe, range(args.stage, args.stop_stage + 1))]


def problems(recipe: Recipe, stages: range) -> list[str]:
    """The errors of a call, a line each; an error shared by several files is listed once."""
    experiments: dict[str, Experiment] = {}
    wrong: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except WrongSettings as error:
            for where, text in error.problems.items():
                wrong.setdefault(text, []).append(where)
        except (ValueError, OSError) as error:
            wrong.setdefault(str(error), [])

    for name in recipe.names:
        with noted():
            experiments[name] = recipe.experiment(name)
    with noted():
        recipe.graph_settings()
    call = Call(recipe, stages, experiments)
    further = list(call.problems())
    if 11 in stages or recipe.overrides[LanguageModel.SCOPE] or recipe.lm_yaml.is_file():
        with noted():
            settings = recipe.lm_settings()
            further += call.unknown_cut_sets(recipe.lm_yaml, "text.valid", (settings.text.valid,))
    lines = [": ".join(filter(None, (", ".join(dict.fromkeys(places)), text))) for text, places in wrong.items()]
    return lines + further


def refusal(call: Callable[[], object], place: str = "") -> Iterator[str]:
    """What a call refuses, with its place in front."""
    try:
        call()
    except ValueError as error:
        yield f"{place}{error}"


def noise_problems(folder: Path) -> Iterator[str]:
    """What is wrong with a folder of recorded noise: each clip's header is read."""
    clips = sorted(noise_clips(folder))
    if not folder.is_dir():
        yield f"there is no folder {folder}; put recordings of 16 kHz there"
    elif not clips:
        yield f"{folder} has no {' or '.join(AUDIO_SUFFIXES)} file"
    else:
        from distill.data.augment import clip_length

        wrong = [text for clip in clips for text in refusal(partial(clip_length, clip))]
        yield from wrong[:1]
        if len(wrong) > 1:
            yield f"{len(wrong) - 1} more of {len(clips)} clips in {folder} cannot be used"


@dataclass
class Call:
    """The experiments of a call, by the names of their files in order, and the stages that it runs."""

    recipe: Recipe
    stages: range
    experiments: dict[str, Experiment]
    _noise: dict[str, list[str]] = field(default_factory=dict)  # what is wrong in a folder, which several may name

    @cached_property
    def by_name(self) -> dict[str, Experiment]:
        return {each.name: each for each in self.experiments.values()}

    def problems(self) -> Iterator[str]:
        """Conflicts between experiments, options and existing folders."""
        recipe, owner = self.recipe, dict[str, str]()
        if recipe.device != "cpu" and not any(path for kind in GPUS for path in Path("/dev").glob(kind)):
            yield f"--device {recipe.device}: this machine shows no GPU; use --device cpu"
        kind = kind_of(recipe.corpus)
        if recipe.mini and not kind.has_mini:
            further = "" if kind.synthetic else " and give --corpus-dir"
            yield f"--mini true: {recipe.corpus} has no mini version; leave it out{further}"
        if recipe.job and not {*self.stages} <= {*JOB_STAGES}:
            yield (
                f"--job: stages {', '.join(map(str, JOB_STAGES))} take jobs, and this call runs stages"
                f" {self.stages[0]} to {self.stages[-1]}; give --stage and --stop-stage one of those"
            )
        if recipe.launcher:
            try:
                launch.command_of(recipe.launcher)
            except (ValueError, OSError) as error:
                yield str(error)
        if recipe.units == "letters" and len(self.experiments) == len(recipe.names):
            if recipe.topology == "two_pdf":
                yield "--units letters: a fine-tuned model has a blank; use --topology ctc or ctc_compact"
            try:
                fine_tuned(recipe)
            except (ValueError, OSError) as error:
                yield str(error)
        if recipe.hlg and 4 not in self.stages:
            yield (
                f"--hlg {recipe.hlg}: stage 4 reads it, and this call runs stages {self.stages[0]} to"
                f" {self.stages[-1]}; start with --stage 4 (complete stages are skipped), or leave --hlg out"
            )
        for stem, experiment in self.experiments.items():
            path = recipe.conf_dir / f"{stem}.yaml"
            first = owner.setdefault(experiment.name, stem)
            if first != stem:
                yield f"{path}: name: {experiment.name} is also that of {first}.yaml; each needs a name of its own"
            yield from self.unknown_cut_sets(path, "data.train", experiment.data.train)
            yield from self.unknown_cut_sets(path, "data.valid", (experiment.data.valid,))
            yield from self.unknown_cut_sets(path, "decoding.condition_sets", experiment.decoding.condition_sets)
            try:
                yield from (f"{path}: {text}" for text in self.unfit(experiment))
            except (ValueError, OSError) as error:  # of a file that init or teacher leads to
                yield str(error)

    def unknown_cut_sets(self, path: Path, key: str, names: tuple[str, ...]) -> Iterator[str]:
        """One line per cut set that stage 0 does not make, or has not made where it is not run."""
        made = [path.name.removesuffix(".jsonl.gz") for path in self.recipe.cuts.glob("*.jsonl.gz")]
        known = [*CUT_SETS, *made] if 0 in self.stages or not made else made
        for name in names:
            if name not in known and not (name.startswith("test-") and known is not made):
                yield f"{path}: {key}: no cut set {name!r}{hint(name, known)}"

    def unfit(self, experiment: Experiment) -> Iterator[str]:
        """Settings of an experiment that do not fit its topology, teacher, initial weights or files."""
        if self.recipe.topology == "two_pdf" and "ctc" in experiment.objective.terms:
            yield "model.ctc_output: true needs a blank; use --topology ctc or ctc_compact"
        if problem := experiment.model.transducer_obstacle(self.recipe.topology, self.recipe.units == "biphones"):
            yield problem
        if self.recipe.topology == "two_pdf" and experiment.decoding.blank_skip:
            yield "decoding.blank_skip needs a blank; set it to 0, or use --topology ctc or ctc_compact"
        methods = experiment.decoding.methods
        if self.recipe.hlg and (rescored := [method for method in methods if method in RESCORING]):
            others = ",".join(method for method in methods if method not in RESCORING)
            yield (
                f"decoding.methods: {', '.join(rescored)}: rescoring subtracts words.3gram.arpa, which the graph of"
                f" --hlg does not contain; give --set decoding.methods=[{others or '1best'}], or leave --hlg out"
            )
        if not experiment.trained and experiment.recognises and self.recipe.units != "letters":
            yield (
                f"stage: 5: {experiment.pretrained} is taken over with its own units; give --units letters, or for a"
                " teacher of hidden states alone decoding.methods: []"
            )
        stage = first_weights_stage(self.recipe, experiment) if 5 in self.stages else None
        if stage and not self.done(stage.out) and (problem := source_problem(experiment.pretrained)):
            yield problem
        conditions = {f"decoding.conditions.{name}": each for name, each in experiment.decoding.conditions.items()}
        for key, part in experiment.noises.items() if self.trains(experiment) else ():
            yield from self.unfit_noise(key, part)
        decoded = conditions if 10 in self.stages else {}
        for key, distort in {"distort": experiment.distort, **decoded}.items():
            if distort is not None:
                yield from self.unfit_distortions(key, distort)
        for key, condition in decoded.items():
            for name, part in condition.noises.items():
                yield from self.unfit_noise(f"{key}.noises.{name}", part)
        if experiment.init is not None:
            yield from self.unfit_start(experiment, experiment.init)
        yield from self.unfit_pruning(experiment)
        if experiment.teacher is not None:
            yield from self.unfit_teacher(experiment, experiment.teacher.experiment)
        if experiment.units is not None:
            yield from self.unfit_units(experiment, experiment.units)
        if experiment.probe is not None:
            yield from self.unfit_probe(experiment, experiment.probe)

    def unfit_noise(self, key: str, part: str) -> Iterator[str]:
        if part not in self._noise:
            self._noise[part] = list(noise_problems(self.recipe.data_dir / part))
        yield from (f"{key}: {text}" for text in self._noise[part])

    def unfit_distortions(self, key: str, distort: Distort) -> Iterator[str]:
        if {*CODECS} & {*distort.names}:
            from distill.data.distortions import check_codecs

            yield from refusal(partial(check_codecs, distort.names), f"{key}: ")
        if "room" in distort.names and not find_spec("pyroomacoustics"):
            yield f"{key}: room needs pyroomacoustics, which is not installed; {way_out('pyroomacoustics')}"

    def unfit_start(self, experiment: Experiment, name: str) -> Iterator[str]:
        makers = [each for each in self.experiments.values() if each.stage in TEACHERS and each.init == name]
        if name == experiment.name:
            yield f"init: must be another experiment than itself (got {name!r})"
        elif self.known(name) is not None or self.done(self.recipe.exp(name)) or not makers:
            yield from self.untrained("init", experiment, name)
        elif not name.removesuffix(self.recipe.suffix).endswith("_init"):
            yield (
                f"init: {name} must be an experiment of {self.recipe.conf_dir}, or end in _init, such as"
                " teacher_init, as what stage 5 makes"
            )
        elif experiment.stage in self.stages and 5 not in self.stages:
            yield f"init: stage 5 makes {self.recipe.exp(name)}, which is not there; run it first (--stage 5)"

    def unfit_pruning(self, experiment: Experiment) -> Iterator[str]:
        """A share that gates cannot close, of the experiment or of what it starts from; a rank that changes nothing."""
        own, wanted = experiment.objective.sparsity, []
        if own is not None and experiment.model.pruning is not None:
            wanted.append((experiment.model, own.target, "objective.sparsity.target"))
        start = self.known(experiment.init) if experiment.init else None
        if start and not experiment.init_slim and (lost := lost_gates(start.name, start.model, experiment.model)):
            yield f"init: {lost}"
        if experiment.stage in self.stages and written_by_slim(self.recipe.exp(experiment.name)):
            yield (
                f"{experiment.name} is of tools/slim.py, and stage {experiment.stage} would train another one; run"
                " stages 10 to 12 alone, or train on under another name (init, init_slim: true)"
            )
        init = start if experiment.init_slim else None
        if init is not None and init.model.pruning is None:
            if experiment.init_sparsity:
                yield f"init_sparsity: {init.name} has no gates (model.pruning) to close; leave it out"
            elif not (init.init_slim or init.model.encoder.of_gates):
                yield (
                    f"init_slim: {init.name} has no gates (model.pruning), and nothing was cut off there; leave it out,"
                    " and give model.encoder the widths that are meant"
                )
        elif init is not None and experiment.init_sparsity:
            wanted.append((init.model, experiment.init_sparsity, "init_sparsity"))
        if wanted or experiment.model.encoder.rank is not None:
            from distill.models.pruning import check_rank
            from distill.models.recogniser import without_values

            for model, share, setting in wanted:
                yield from refusal(partial(without_values(model).gates.check_reach, share, setting))
            yield from refusal(partial(check_rank, experiment.model))

    def unfit_teacher(self, experiment: Experiment, name: str) -> Iterator[str]:
        teacher = self.known(name)
        yield from self.untrained("teacher.experiment", experiment, name)
        if teacher is None:
            return
        if teacher.stage not in TEACHERS:
            yield f"teacher.experiment: {name} is trained in stage {teacher.stage}; teachers are in stages 5 and 6"
        hops = teacher.model.front_end.hop, experiment.model.front_end.hop
        if experiment.teacher and experiment.teacher.masked and hops[0] != hops[1]:
            yield (
                f"teacher.masked: true needs frames of one rate, but {name} has one each {hops[0]} samples, and"
                f" {experiment.name} each {hops[1]}"
            )
        trained = {"outputs": teacher.recognises, "ctc_outputs": teacher.recognises or teacher.model.ctc_output}
        if read := [term for term, there in trained.items() if term in experiment.objective.terms and not there]:
            yield f"objective: {', '.join(read)}: {name} has no outputs to learn from before it is fine-tuned"
        try:
            experiment.objective.teacher_blocks(experiment.model.encoder.layers, teacher.model.encoder.layers)
            experiment.objective.check_models(experiment.model, teacher.model)
        except ValueError as error:
            yield str(error)
        labels = self.recipe.num / name
        unlabelled = experiment.reads_lattices and self.trains(experiment) and not self.done(labels)
        if unlabelled and teacher.transduces and not teacher.recognises:
            yield (
                f"teacher.experiment: {name} has a transducer alone, and stage 7 makes lattices of a main output; give"
                " it the term mmi too"
            )
        if unlabelled and not (7 in self.stages and name in self.by_name):
            yield f"teacher.experiment: stage 7 makes {labels}, which is not there; run it with {name} in --experiment"

    def unfit_units(self, experiment: Experiment, units: Units) -> Iterator[str]:
        source, hop = self.known(units.of), HOP
        if units.experiment is not None:
            yield from self.untrained("units.of", experiment, units.experiment, FEATURES)
            if source is None:
                return
            hop, blocks = source.model.front_end.hop, source.model.encoder.layers
            if units.layer is not None and units.layer > blocks:
                yield f"units.layer: {units.of} has blocks 1 to {blocks}, 0 is their input (got {units.layer})"
        if experiment.predicts_units and hop != experiment.model.front_end.hop:
            yield (
                f"units.of: {units.of} has a frame each {hop} samples, and {experiment.name} each"
                f" {experiment.model.front_end.hop}; give one of the same rate, or the model a front-end of that rate"
            )

    def unfit_probe(self, experiment: Experiment, name: str) -> Iterator[str]:
        aligner = self.known(name)
        if aligner is None and not self.done(self.recipe.exp(name)):
            yield f"probe: no experiment {name!r}{hint(name, self.names(experiment))}"
        elif aligner is not None and not aligner.recognises:
            yield f"probe: {name} has no outputs to align with; give an experiment that is trained with transcripts"

    def names(self, experiment: Experiment) -> list[str]:
        """Of all experiments but this one."""
        known = [each.name for each in self.by_name.values() if each is not experiment]
        return known + [path.stem + self.recipe.suffix for path in self.recipe.conf_dir.glob("*.yaml")]

    def untrained(self, key: str, experiment: Experiment, name: str, others: Sequence[str] = ()) -> Iterator[str]:
        """A line where a training depends on one that is neither complete nor run before it in this call.

        others: what may be named in place of an experiment.
        """
        needed, folder = self.known(name), self.recipe.exp(name)
        if self.done(folder):
            return
        if needed is None:
            yield f"{key}: no experiment {name!r}{hint(name, [*others, *self.names(experiment)])}"
            return
        order = list(self.by_name)
        before = name in order and (needed.stage, order.index(name)) < (experiment.stage, order.index(experiment.name))
        if self.trains(experiment) and not (before and needed.stage in self.stages):
            yield (
                f"{key}: {name} is not trained ({folder} is not complete), and this call does not train it before"
                f" {experiment.name}: name it in --experiment, and run its stage {needed.stage}"
            )

    def known(self, name: str) -> Experiment | None:
        """The experiment of this name: of this call, or of a YAML file beside those."""
        suffix = self.recipe.suffix
        if name in self.by_name:
            return self.by_name[name]
        for path in (self.recipe.conf_dir / f"{stem}.yaml" for stem in (name.removesuffix(suffix), name)):
            if path.is_file() and path not in (self.recipe.lm_yaml, self.recipe.graphs_yaml):
                return Experiment.load(path)
        return None

    def trains(self, experiment: Experiment) -> bool:
        return experiment.stage in self.stages and not self.done(self.recipe.exp(experiment.name))

    @staticmethod
    def done(folder: Path) -> bool:
        return (folder / ".done").is_file()
