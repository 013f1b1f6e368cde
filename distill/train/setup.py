"""From an experiment's settings and a recipe's folders to a trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.batch import SAMPLE_RATE, Batch
from distill.config.experiment import Experiment
from distill.config.model import Model, lost_gates
from distill.corpora.audio import readable
from distill.corpora.cut_sets import CutBlocks, load_cuts
from distill.data.distortions import Distorter
from distill.data.lattices import Lattices
from distill.data.loader import SpeechDataset, TrainLoader, distortion, in_order
from distill.data.numerators import Numerators, usable
from distill.data.statistics import fbank_statistics, level
from distill.data.transcripts import Transcripts
from distill.data.units import UnitLabels
from distill.files import write_text
from distill.fsa.graph import Hmm
from distill.fsa.k2_format import load_fsa
from distill.graphs.lexicon import Lang
from distill.graphs.numerator import UnitLm
from distill.losses.objective import Objective, needs_of
from distill.losses.term import TermContext
from distill.models import checkpoint
from distill.models.front_end import FbankFrontEnd, FrontEnd, WaveFrontEnd
from distill.models.pruning import open_units, slimmed_state, with_widths
from distill.models.recogniser import Recogniser, build_model, count_parameters
from distill.models.transfer import TITLES, CopyReport, copy_matching, frozen_parameters, kind_of_copy
from distill.train.distributed import Ranks
from distill.train.loop import Trainer, TrainingPlan, TrainingStep
from distill.train.schedule import count_updates
from distill.train.supernet import SupernetStep
from distill.train.teacher import TeacherTargets, load_codes

log = logging.getLogger(__name__)
CODEWORDS = "hubert.head.codewords"  # of an objective
CALIBRATED = 200  # utterances from which a front-end's statistics are taken


@dataclass(frozen=True)
class Folders:
    """Folders of earlier stages: data (cuts, num), lang, graphs, exp."""

    data: Path
    lang: Path
    graphs: Path
    exp: Path


@dataclass(frozen=True)
class Graphs:
    """Units and the denominator: language, its LM with look-up, and the graph the engine runs."""

    lang: Lang
    lm: UnitLm
    denominator: Hmm

    @classmethod
    def load(cls, folders: Folders, lang: Lang) -> Graphs:
        """Raises FileNotFoundError naming the stage that writes the denominator, ValueError for one that is wrong."""
        path = folders.graphs / "denominator.pt"
        if not path.is_file():
            raise FileNotFoundError(f"no denominator at {path}; stage 4 writes it (run.sh --stage 4 --stop-stage 4)")
        fsa = load_fsa(path)
        fsa.validate(lang.topology.num_units, str(path))
        return cls(lang, UnitLm(fsa, len(lang.tokens)), lang.topology.compose(fsa))


def build_trainer(
    experiment: Experiment, folders: Folders, folder: Path, engine: str, ranks: Ranks, device: torch.device
) -> Trainer:
    """A trainer with graphs and teacher as the objective's terms need them.

    folder: of checkpoints, and lists of copied tensors (init.tsv) and cuts left out (skipped.tsv).
    """
    torch.manual_seed(experiment.seed)
    start = start_model(experiment, experiment.init, folders) if experiment.init and experiment.init_slim else None
    if start is not None:
        widths = with_widths(experiment.model, open_units(start), start.settings.encoder.widths().head_dim)
        experiment = experiment.model_copy(update={"model": widths})
    lang, data = Lang.load(folders.lang), experiment.data
    if experiment.model.ctc_output and lang.topology.kind == "two_pdf":
        raise ValueError(f"{experiment.name}: model.ctc_output needs a blank; use --topology ctc or ctc_compact")
    if problem := experiment.model.transducer_obstacle(lang.topology.kind, lang.topology.has_context):
        raise ValueError(f"{experiment.name}: {problem}")
    needs = needs_of(experiment.objective)
    graphs = Graphs.load(folders, lang) if "graphs" in needs else None
    numerators = stored_numerators(experiment, folders, graphs) if graphs else None
    teacher = None
    if experiment.teacher is not None and needs & {"hidden", "attention", "outputs", "features", "codes", "joint"}:
        teacher = checkpoint.load_recogniser(folders.exp / experiment.teacher.experiment)[0].to(device)
    codes = None
    if teacher is not None and "codes" in needs:
        codes = load_codes(experiment, teacher, folders.exp, folders.data / "units").to(device)
    source = experiment.teacher.input if teacher and experiment.teacher else None
    reading = partial(
        SpeechDataset, with_clean="clean" in needs or source == "clean", keep_audio=data.keep_audio,
        distorter=Distorter(experiment.distort, folders.data) if experiment.distort else None,
        with_second=source == "second", transcripts=transcripts(experiment, folders),
    )  # fmt: skip
    loader = training(experiment, folders, numerators, reading, ranks)
    if "masks" in needs and ranks.first:
        warn_of_long_masks(experiment, loader)
    updates = count_updates(experiment.optim, loader.count)
    if ranks.first:
        warn_of_low_sparsity(experiment, updates)
    model = initial_model(experiment, lang.outputs, folders, folder, loader, ranks.first, start)
    denominator = graphs.denominator.to(device) if graphs else None
    clusters = codes.clusters if codes else experiment.units.clusters if experiment.units else 0
    theirs = teacher.settings if teacher else None
    context = TermContext(experiment.model, theirs, engine, denominator, clusters, len(experiment.distortions))
    step = training_step(experiment, model, context)
    if experiment.init:
        lines = continue_projections(step.objective, stored_heads(experiment, experiment.init, folders))
        if ranks.first:
            write_text(folder / "init.tsv", (folder / "init.tsv").read_text(encoding="utf-8") + lines)
    targets = TeacherTargets(
        experiment.teacher, teacher, step.objective.teacher_blocks, folders.data / "targets", "features" in needs,
        codes, step.objective.attention_map.values(), experiment.model.mask, "joint" in needs,
    ) if experiment.teacher and teacher else None  # fmt: skip
    plan = TrainingPlan(
        experiment, loader.epoch, validation(experiment, folders, graphs, reading, ranks),
        updates, lang.outputs, count_parameters(model), folder, ranks, device,
        targets, frozen_parameters(experiment, model), probe_of(experiment, folders, lang, ranks),
    )  # fmt: skip
    return Trainer(plan, step)


def training_step(experiment: Experiment, model: Recogniser, context: TermContext) -> TrainingStep:
    """A model and its objective; of a supernet, with those of the networks in it."""
    objective = Objective(experiment.objective, context)
    if experiment.supernet is None:
        return TrainingStep(model, objective)

    def objective_of(student: Model) -> Objective:
        return Objective(experiment.objective, replace(context, student=student))

    return SupernetStep(model, objective, experiment.supernet, objective_of)


def probe_of(
    experiment: Experiment, folders: Folders, lang: Lang, ranks: Ranks
) -> Callable[[Recogniser], dict[str, float]] | None:
    """The linear probe of validations, on the first rank; None without one, or before its aligner is trained."""
    if experiment.probe is None or not ranks.first:
        return None
    if not checkpoint.epoch_paths(folders.exp / experiment.probe):
        log.warning("no probe: %s, which aligns for it, is not trained", folders.exp / experiment.probe)
        return None
    from distill.analysis.probe import LEAST_ALIGNED, align, probe

    reading = partial(SpeechDataset, with_clean=False, keep_audio=experiment.data.keep_audio)
    valid = validation(experiment, folders, Graphs.load(folders, lang), reading, Ranks())
    aligner = checkpoint.load_recogniser(folders.exp / experiment.probe)[0]
    aligned = align(aligner, valid, None if lang.topology.kind == "two_pdf" else 0)
    if len(aligned.labels) < LEAST_ALIGNED:
        log.warning(
            "no probe: %s aligns %d utterances of %s, and %d are needed",
            experiment.probe, len(aligned.labels), experiment.data.valid, LEAST_ALIGNED,
        )  # fmt: skip
        return None
    log.info("linear probe on %d utterances; the most frequent unit: %.3f", len(aligned.labels), aligned.majority)
    return partial(probe, aligned=aligned)


def stored_numerators(experiment: Experiment, folders: Folders, graphs: Graphs) -> Numerators:
    """Numerators of the training parts, from transcripts and from the lattices of stage 7.

    Raises ValueError where the lattices have a smaller beam than the experiment needs.
    """
    data = experiment.data
    if experiment.teacher is None:
        return Numerators(graphs.lang, graphs.lm, None, data)
    stored = lattices(experiment, folders, experiment.teacher.experiment)
    key = {"lattice": "beam", "nbest": "nbest_beam"}.get(data.numerator)
    wanted = getattr(data.lattice, key) if key else 0.0
    if stored.beam is not None and stored.beam < wanted:
        raise ValueError(
            f"{experiment.name} needs sequences within {wanted} of the best, but the lattices of"
            f" {experiment.teacher.experiment} have those within {stored.beam}; lower data.lattice.{key} or raise"
            " decoding.lattice_beam of the teacher and run stage 7 again"
        )
    shift = experiment.model.front_end.hop / SAMPLE_RATE
    return Numerators(graphs.lang, graphs.lm, stored, data, (stored.frame_shift or shift) / shift)


def transcripts(experiment: Experiment, folders: Folders) -> Transcripts | None:
    """Unit sequences of cuts, None for an experiment whose terms need none."""
    if "tokens" not in needs_of(experiment.objective):
        return None
    stored = None
    if experiment.teacher is not None and experiment.data.numerator != "transcript":
        stored = lattices(experiment, folders, experiment.teacher.experiment)
    return Transcripts(Lang.load(folders.lang), stored)


def lattices(experiment: Experiment, folders: Folders, teacher: str) -> Lattices:
    """The teacher's lattices of the training parts."""
    labels = folders.data / "num" / teacher
    return Lattices([labels / part for part in experiment.data.train if (labels / part).is_dir()])


def stored_units(experiment: Experiment, folders: Folders, parts: Sequence[str]) -> UnitLabels | None:
    """Units of the frames of some parts, None for an experiment whose terms need none."""
    if experiment.units is None or not experiment.predicts_units:
        return None
    folder = folders.data / "units" / experiment.units_folder
    return UnitLabels([folder / part for part in parts], experiment.model.front_end, experiment.units.clusters)


def initial_model(
    experiment: Experiment, outputs: Sequence[str], folders: Folders, folder: Path, loader: TrainLoader,
    first: bool = True, start: Recogniser | None = None,
) -> Recogniser:  # fmt: skip
    """Random weights, then those of `init` where name and shape agree; the first rank lists copies in init.tsv.

    start: the model of `init`, where what its gates leave is taken over.
    """
    model = build_model(experiment.model, len(outputs), experiment.seed)
    calibrated = False
    if experiment.init:
        content = start_of(experiment, experiment.init, folders)
        other_units = content["units"] != list(outputs)
        if other_units and experiment.init_units is None:
            raise ValueError(
                f"{experiment.init} has other outputs than {folders.lang}; train it on this lang folder, or give its"
                " units (init_units), and its prediction layers are drawn anew"
            )
        earlier = Model.model_validate(content["experiment"]["model"])
        if start is not None:
            content["model"] = slimmed_state(start)
        elif lost := lost_gates(experiment.init, earlier, experiment.model):
            raise ValueError(f"{experiment.name}: {lost}")
        before, now = earlier.front_end, experiment.model.front_end
        other_input = before.input != now.input  # same names, but other layers
        leave = ["front_end.", "encoder.feature_norm."] if other_input else []
        leave += ["encoder.projection."] if other_input and experiment.objective.front is None else []
        leave += ["head.output.", "ctc.", "transducer."] if other_units else []
        report = copy_matching(content["model"], model, experiment.init_blocks, experiment.init_slice, leave)
        check_widths(experiment, content["experiment"].get("init_slim") or earlier.encoder.of_gates, report)
        if first:
            write_text(folder / "init.tsv", "".join(f"{line}\n" for line in report.lines()))
        log.info("from %s: %s (listed in %s)", experiment.init, report.summary(), folder / "init.tsv")
        calibrated = not other_input and before.waveform == now.waveform and content["progress"]["updates"] > 0
    if not calibrated:
        calibrate(model.front_end, loader)
    return model


def check_widths(experiment: Experiment, slim: bool, report: CopyReport) -> None:
    """Raises ValueError where a model with gates, or slimmed, is not taken over whole. slim: `init` is slimmed."""
    if not experiment.init_slim:
        if anew := [name for name in report.other_shape if name.startswith("gates.")]:
            raise ValueError(
                f"{experiment.name}: {anew[0]} and {len(anew) - 1} more gates have other widths in {experiment.init},"
                " and would be open again; give the same widths, or cut off what they close with init_slim: true"
            )
        if slim and any(name.startswith(("encoder.blocks.", "front_end.")) for name in report.other_shape):
            raise ValueError(
                f"{experiment.name}: {experiment.init} has the widths that gates left, and model others; set"
                " init_slim: true, which takes them over, or give the same"
            )
        return
    other = [name for name in report.other_shape if name.startswith(("encoder.", "front_end."))]
    other += [name for name in (*report.absent, *report.unused) if name.startswith(("encoder.blocks.", "front_end."))]
    if other:
        raise ValueError(
            f"{experiment.name}: init_slim: true takes the widths of {experiment.init}, but {other[0]} and"
            f" {len(other) - 1} more are of one of them alone, or have another shape there; give the other settings of"
            " model.encoder and model.front_end as there"
        )


def start_of(experiment: Experiment, name: str, folders: Folders) -> dict[str, Any]:
    """The checkpoint of the experiment `name` that another one starts from."""
    return checkpoint.load_epoch(folders.exp / name, experiment.init_epoch)


def stored_heads(experiment: Experiment, name: str, folders: Folders) -> dict[str, Tensor]:
    """Parameters of the terms of a checkpoint, but for embeddings of other units and multipliers of other gates.

    An imported checkpoint has other units than a k-means of ours, whatever its settings are. Multipliers of a pruning
    begin with its target, at 0.
    """
    content = start_of(experiment, name, folders)
    trained = content["progress"]["updates"] > 0
    same_units = trained and content["experiment"].get("units") == experiment.resolved()["units"]
    stored = {key: x for key, x in content["objective"].items() if not key.startswith("sparsity.")}
    return {key: x for key, x in stored.items() if same_units or key != CODEWORDS}


def start_model(experiment: Experiment, name: str, folders: Folders) -> Recogniser:
    """The model of the experiment `name` that another one starts from, its gates settled."""
    model = checkpoint.load_recogniser(folders.exp / name, experiment.init_epoch)[0]
    if experiment.init_sparsity:
        model.gates.settle(experiment.init_sparsity)
    return model


def warn_of_long_masks(experiment: Experiment, loader: TrainLoader) -> None:
    """Warn where a span leaves one frame of most utterances: there is next to nothing to predict the others from."""
    length, hop, cuts = experiment.model.mask.time_length, experiment.model.front_end.hop, loader.sample(CALIBRATED)
    short = [cut for cut in cuts if cut.num_samples <= (length + 1) * hop]
    if 2 * len(short) > len(cuts):
        log.warning(
            "%s: model.mask.time_length %d (%g s) leaves one frame of %d of %d utterances, and the masked ones learn"
            " next to nothing from it; give a shorter one", experiment.name, length, length * hop / SAMPLE_RATE,
            len(short), len(cuts),
        )  # fmt: skip


def warn_of_low_sparsity(experiment: Experiment, updates: int) -> None:
    """Warn of a target that has not risen to its end when the training ends."""
    sparsity = experiment.objective.sparsity
    if sparsity is not None and sparsity.warm_up > updates:
        log.warning(
            "%s: objective.sparsity: the target rises for %d updates (warm_up), and the training ends after %d, at %.3f"
            " in place of %g", experiment.name, sparsity.warm_up, updates, sparsity.target * updates / sparsity.warm_up,
            sparsity.target,
        )  # fmt: skip


def calibrate(front_end: FrontEnd, loader: TrainLoader) -> None:
    """Set the front-end's statistics of the training audio: the waveform's gain, or the Fbank's mean and scale."""
    if isinstance(front_end, FbankFrontEnd):
        for stored, value in zip(
            (front_end.mean, front_end.scale), fbank_statistics(loader.sample(CALIBRATED), front_end.settings.mels)
        ):
            stored.copy_(value)
    elif isinstance(front_end, WaveFrontEnd) and front_end.settings.waveform == "gain":
        front_end.gain.fill_(1 / level(loader.sample(CALIBRATED)))


def continue_projections(objective: torch.nn.Module, stored: Mapping[str, Tensor]) -> str:
    """Copy parameters of the objective's terms (W_i, heads of pre-training) where name and shape agree.

    Returns lines that list them, as in init.tsv.
    """
    own = objective.state_dict()
    kinds = {name: kind_of_copy(value, stored.get(name)) for name, value in own.items()}
    with torch.no_grad():
        for name in (name for name, kind in kinds.items() if kind == "copied"):
            own[name].copy_(stored[name])
    return "".join(f"{TITLES[kind]}\tobjective.{name}\n" for name, kind in kinds.items())


def training(
    experiment: Experiment, folders: Folders, numerators: Numerators | None, reading: Callable[..., SpeechDataset],
    ranks: Ranks,
) -> TrainLoader:  # fmt: skip
    """A rank's share of the training parts. reading: as for `validation`."""
    data, seed = experiment.data, experiment.seed
    units = stored_units(experiment, folders, data.train)
    dataset = reading(numerators, distortion(experiment.augment, folders.data), seed, units=units)
    files = [CutBlocks(folders.data / "cuts", part) for part in data.train]
    return TrainLoader(files, dataset, data, seed, ranks.rank, ranks.world)


def validation(
    experiment: Experiment, folders: Folders, graphs: Graphs | None, reading: Callable[..., SpeechDataset], ranks: Ranks
) -> Callable[[], Iterator[Batch]]:
    """Batches of a rank's share of the validation part, with transcripts as numerators; the same in each call.

    reading: makes the dataset of numerators, augmentation (none here), seed and units.
    Raises ValueError where a file is missing, or differs from its manifest.
    """
    part, cuts = experiment.data.valid, load_cuts(folders.data / "cuts", [experiment.data.valid])
    numerators = Numerators(graphs.lang, graphs.lm) if graphs else None
    good, skipped = usable(cuts, numerators) if numerators else (list(cuts), [])
    if units := stored_units(experiment, folders, [part]):
        skipped += [(cut.id, f"cut {cut.id} has no units") for cut in good if units.find(cut.id) is None]
        good = [cut for cut in good if units.find(cut.id) is not None]
    dataset = reading(numerators, None, 0, units=units)
    if tokens := dataset.transcripts:
        reasons = {cut.id: reason for cut in good if isinstance(reason := tokens.of(cut), str)}
        skipped += reasons.items()
        good = [cut for cut in good if cut.id not in reasons]
    if not good:
        raise ValueError(f"no cut of '{part}' can be scored; the first: {skipped[0][1]}")
    if skipped:
        log.warning("%d cuts of '%s' left out of validation: %s", len(skipped), part, skipped[0][1])
    count = experiment.data.valid_utterances or len(good)
    every = max(1, len(good) // count)
    chosen = sorted(good[::every][:count], key=lambda cut: (-cut.duration, cut.id))  # alike on all ranks
    for cut in chosen:  # now, not after an epoch
        readable(cut)
    return partial(in_order, type(cuts).from_cuts(ranks.mine(chosen)), dataset, experiment.data.max_duration)
