"""A training of seconds on real parts: audio files, cut sets, loading processes, graphs, several ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.cut import Cut

from distill.batch import Batch
from distill.config.experiment import Experiment
from distill.corpora.cut_sets import CutBlocks
from distill.data.augment import Distortion
from distill.data.loader import SpeechDataset, TrainLoader, in_order
from distill.data.numerators import Numerators
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.numerator import UnitLm
from distill.graphs.unit_ngram import train_unit_ngram
from distill.losses.objective import Objective
from distill.losses.term import TermContext
from distill.models import checkpoint
from distill.models.recogniser import build_model, count_parameters
from distill.train.distributed import Ranks, join
from distill.train.loop import Trainer, TrainingPlan, TrainingStep
from distill.train.teacher import TeacherTargets

ALONE = Ranks()
PLAIN = {"dropout": 0.0, "layer_drop": 0.0}
RANDOM = {"dropout": 0.1, "layer_drop": 0.5}  # with masks and augmentation
SETTINGS = {
    "name": "toy",
    "stage": 6,
    "model": {
        "front_end": {"layers": [[8, 40, 20], [8, 8, 4]], "norm": "frame", "causal": True, "waveform": "gain"},
        "encoder": {
            "dim": 8, "ffn_dim": 16, "layers": 2, "heads": 2, "position_kernel": 3, "position_groups": 2,
            "norm_first": True, "position_causal": True,
        },
    },
    "data": {"max_duration": 1.5, "buckets": 2},
    "objective": {"alpha": 1, "beta": 1},
    "optim": {"updates": 16, "lr": 0.01},
    "saving": {"every_updates": 3},
}  # fmt: skip

GATES = {  # a model that is pruned, on the objective
    "model": {**SETTINGS["model"], "pruning": {"units": ["conv", "heads", "ffn", "layers"]}},
    "objective": {"mmi": {}, "sparsity": {"target": 0.3, "warm_up": 4}},
}


def write_speech(folder: Path, count: int = 24) -> CutSet:
    """Noisy tones of 0.15 to 0.6 s with transcripts of A and B."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, cuts = np.random.default_rng(1), []
    for number in range(count):
        text = " ".join(draw.choice(["A", "B"], draw.integers(1, 4)))
        time = np.arange(int(draw.uniform(0.15, 0.6) * 16000)) / 16000
        wave = 0.3 * np.sin(time * 2 * np.pi * draw.choice([220, 900])) + 0.01 * draw.standard_normal(len(time))
        path = folder / f"cut-{number:04}.wav"
        soundfile.write(path, wave, 16000, subtype="PCM_16")
        recording = Recording.from_file(path)
        cut = recording.to_cut()
        cut.id = path.stem
        cut.supervisions = [SupervisionSegment(path.stem, recording.id, 0.0, cut.duration, text=text)]
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def write_letters(folder: Path) -> Lang:
    """A language of the two words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lexicon.txt").write_text("A A\nB B\n", encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    return Lang.load(folder)


def made_numerators(lang: Lang) -> Numerators:
    lm = train_unit_ngram([(1, 2), (2, 2, 1), (1,), (1, 1, 2)], 2, len(lang.tokens))
    return Numerators(lang, UnitLm(lm, len(lang.tokens)))


class InMemory(CutBlocks):
    """Cuts in memory as if they were on disk, in one block or several."""

    def __init__(self, cuts: CutSet, size: int = 250) -> None:
        every = list(cuts)
        self.blocks = [every[start : start + size] for start in range(0, len(every), size)]
        self.counts = np.array([len(block) for block in self.blocks], dtype=np.int64)
        self.seconds = np.array([sum(cut.duration for cut in block) for block in self.blocks])

    def read(self, number: int) -> list[Cut]:
        return self.blocks[number]


def loader_of(
    cuts: CutSet, numerators: Numerators | None, experiment: Experiment, ranks: Ranks = ALONE, **dataset: Any
):
    """The loader of an experiment; dataset: arguments of its SpeechDataset, `block`: cuts in one."""
    made = SpeechDataset(
        numerators, dataset.get("distortion"), experiment.seed, dataset.get("with_clean", False),
        experiment.data.keep_audio, dataset.get("units"), dataset.get("distorter"), dataset.get("with_second", False),
        dataset.get("transcripts"),
    )  # fmt: skip
    return TrainLoader(
        [InMemory(cuts, dataset.get("block", 250))], made, experiment.data, experiment.seed, ranks.rank, ranks.world
    )


def toy_trainer(
    folder: Path,
    cuts: CutSet,
    lang: Lang,
    ranks: Ranks = ALONE,
    noise: dict[str, float] = PLAIN,
    double: bool = False,
    drawn: bool = False,
    **changes: Any,
) -> Trainer:
    """noise: PLAIN or RANDOM. double: float64 throughout. drawn: with pictures, which take half a second each.

    A `teacher` in the changes is untrained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**SETTINGS, **changes}
    encoder = {**content["model"]["encoder"], **noise}
    mask = {"time_probability": 0.2, "time_length": 3} if noise is RANDOM else {}
    experiment = Experiment.parse({**content, "model": {**content["model"], "encoder": encoder, "mask": mask}}, "toy")
    torch.manual_seed(experiment.seed)
    numerators, taught = made_numerators(lang), experiment.teacher is not None
    distortion = Distortion(pitch_probability=0.0, noise_probability=0.5) if noise is RANDOM else None
    loader = loader_of(cuts, numerators, experiment, ranks, distortion=distortion, with_clean=taught)
    valid = CutSet.from_cuts(ranks.mine(sorted(cuts, key=lambda cut: cut.id)[:9]))
    reading = SpeechDataset(numerators, None, 0, taught, False)
    model = build_model(experiment.model, len(lang.outputs))
    context = TermContext(experiment.model, experiment.model, "native", lang.topology.compose(numerators.lm.fsa))
    objective = Objective(experiment.objective, context)
    if double:
        model, objective = model.double(), objective.double()
    teacher = None
    if experiment.teacher is not None:
        teacher = TeacherTargets(
            experiment.teacher, build_model(experiment.model, len(lang.outputs), 7), [1, 2], folder
        )

    def moved(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        for batch in batches:
            yield replace(batch, wave=batch.wave.double()) if double else batch

    plan = TrainingPlan(
        experiment, lambda *place: moved(loader.epoch(*place)), lambda: moved(in_order(valid, reading, 1.5)),
        experiment.optim.updates, lang.outputs, count_parameters(model), folder, ranks, torch.device("cpu"), teacher,
    )  # fmt: skip
    trainer = Trainer(plan, TrainingStep(model, objective))
    if not drawn:
        trainer._draw = lambda monitor: None  # type: ignore[method-assign]
    return trainer


def assert_same_training(left: Path, right: Path) -> None:
    """Same epoch checkpoints, bit for bit, and the same losses."""
    names = sorted(path.name for path in left.glob("*.pt*"))
    assert names == sorted(path.name for path in right.glob("*.pt*")) and "last.pt" in names and len(names) > 1
    for name in names:
        one, other = (checkpoint.load(folder / name) for folder in (left, right))
        for part in ("model", "objective"):
            assert one[part].keys() == other[part].keys()
            assert [key for key in one[part] if not torch.equal(one[part][key], other[part][key])] == [], name
        facts = (repr({**content["progress"], "wall_seconds": 0}) for content in (one, other))
        assert next(facts) == next(facts), name  # as text: a loss that is not known yet, NaN, equals itself


def in_ranks(world: int, work: Callable[..., Any], *arguments: Any, lost: int | None = None) -> list[Any]:
    """What work(ranks, *arguments) returns in each of `world` processes; AssertionError with a failed one's trace.

    lost: a rank that returns nothing, as it ends itself.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # a new interpreter would import torch for seconds
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_rank, args=(rank, world, port, pipe[1], work, arguments))
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sending in pipes:
        sending.close()
    found = [(None, None) if rank == lost else _received(pipe) for rank, (pipe, _) in enumerate(pipes)]
    for process in processes:
        process.join(10)
        process.kill()
    assert [error for _, error in found if error] == []
    return [value for value, _ in found]


def _received(pipe: Any) -> tuple[Any, str | None]:
    try:
        return pipe.recv() if pipe.poll(120) else (None, "no answer within 120 s")
    except EOFError:
        return None, "ended without an answer"


def _rank(rank: int, world: int, port: int, pipe: Any, work: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        pipe.send((work(join("cpu")[0], *arguments), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
