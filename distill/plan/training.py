"""What a training takes: memory of each GPU, hours, and disk; from settings, a throughput and stated assumptions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.config.model import SAMPLE_RATE, Model
from distill.config.units import CODEWORDS
from distill.models.cost import training_flops
from distill.models.encoder import BLOCKS
from distill.models.macs import macs
from distill.models.pruning import check_rank
from distill.plan.memory import Memory, update_memory

OVERHEAD = 2**30
"""Bytes of CUDA's context and NCCL's buffers."""
FRAGMENTATION = 1.1
"""Share of the allocator: reserved memory over used memory."""
CUT_BYTES = 100
"""Of a cut in a compressed manifest: 71 without and 100 with a transcript, in a rehearsal."""
LATTICE_BYTES = 55.0
"""Of stage 7's lattices for a second of audio, in a rehearsal with an untrained teacher."""
FBANK_BYTES = 100 * 80
"""Of stored Fbank frames for a second of audio, compressed to about a byte a number."""
READ_SPEED = 1e9
"""Bytes a second that a disk gives to all GPUs together."""


@dataclass(frozen=True)
class Throughput:
    """peak: operations a second of a GPU; mfu: share of them that a training makes use of; source: in words."""

    peak: float = 312e12
    mfu: float = 0.2
    source: str = "assumed: 20 % of 312 TFLOP/s, an A100's peak in bfloat16 (--throughput gives a measurement)"

    @classmethod
    def read(cls, path: Path) -> Throughput:
        """From the JSON of tools/gpu_check.sh or benchmarks.step; FileNotFoundError, ValueError for another file."""
        if not path.is_file():
            raise FileNotFoundError(f"no throughput at {path}; tools/gpu_check.sh --json FILE writes one")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            peak = next(row["flops_per_second"] for row in content["rows"] if "flops_per_second" in row)
            update = next(row for row in content["rows"] if "mfu_share" in row)
            return cls(peak, update["mfu_share"], f"measured on {content['hardware']}: {update['case']}")
        except (ValueError, KeyError, TypeError, StopIteration):
            raise ValueError(
                f"{path}: no measured update; expected the JSON of tools/gpu_check.sh or python -m benchmarks.step"
            ) from None


@dataclass(frozen=True)
class Task:
    """What is planned: GPUs, hours of unlabelled and labelled audio, mean seconds of an utterance, units, states."""

    gpus: int = 1
    hours: float = 960.0
    labelled_hours: float = 100.0
    utterance: float = 12.0
    outputs: int = 43
    states: int = 2145

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < 1e9:
                raise ValueError(f"{name} must be greater than 0 (got {value})")


@dataclass(frozen=True)
class Plan:
    """Of one training. Bytes, seconds, hours of audio as the names have them; targets: of stored teacher outputs."""

    experiment: str
    memory: Memory
    rows: int  # utterances of a batch on each GPU
    reserved_bytes: float  # of each GPU, with overhead and fragmentation
    flops_per_audio_second: float
    audio_hours_per_hour: float
    epoch_hours: float  # of time
    training_hours: float  # of time
    training_audio_hours: float
    checkpoint_bytes: int
    targets_bytes: float  # 0 without a teacher
    online_gpu_hours: float  # of the teacher's forward passes in the whole training, on all GPUs together
    stored_read_hours: float  # of time, that a disk needs to give the stored targets in the whole training


def plan_of(yaml: Path, overrides: Sequence[str], task: Task, throughput: Throughput) -> Plan:
    """The plan of an experiment; its teacher is the YAML of that name in the same folder.

    Raises FileNotFoundError, or ValueError for wrong settings and for an experiment that is not trained.
    """
    experiment = Experiment.load(yaml, overrides)
    if not experiment.trained:
        raise ValueError(f"{yaml}: {experiment.name} is published fine-tuned (stage 5): nothing is trained")
    check_rank(experiment.model)
    return plan(experiment, teacher_beside(experiment, yaml.parent), task, throughput)


def teacher_beside(experiment: Experiment, conf_dir: Path) -> Model | None:
    """The teacher's settings, from the YAML of its name in a folder; None without a teacher.

    Raises FileNotFoundError where that is not there, ValueError where the terms cannot compare the two.
    """
    if experiment.teacher is None:
        return None
    yaml = conf_dir / f"{experiment.teacher.experiment}.yaml"
    if not yaml.is_file():
        raise FileNotFoundError(
            f"{experiment.name}: teacher.experiment: there is no {yaml}; put the experiment beside the YAML of its"
            " teacher, on which its loss terms depend"
        )
    teacher = Experiment.load(yaml).model
    experiment.objective.check_models(experiment.model, teacher)
    experiment.objective.teacher_blocks(experiment.model.encoder.layers, teacher.encoder.layers)
    return teacher


def plan(experiment: Experiment, teacher: Model | None, task: Task, throughput: Throughput) -> Plan:
    """The plan of a training by a teacher of this shape."""
    share = experiment.data.max_duration / task.gpus
    rows = max(1, int(share // task.utterance))
    length = max(task.utterance, share / rows)  # an utterance is not split over GPUs
    memory = update_memory(experiment, teacher, task.outputs, task.states, rows, length)
    flops, optim = training_flops(experiment, teacher, task.outputs), experiment.optim
    encoder, own = experiment.model.encoder, macs(experiment.model, task.outputs)
    again = 2 * sum(own[part] for part in BLOCKS[encoder.block].macs(encoder, 0, 1))
    spent = flops + (again if experiment.compute.checkpoint_activations else 0.0)
    speed = task.gpus * throughput.peak * throughput.mfu / spent
    epoch = task.labelled_hours if experiment.data.train == ("labelled",) else task.hours
    audio = optim.epochs * epoch or optim.updates * optim.accumulate * experiment.data.max_duration / 3600
    targets, forward = 0.0, 0.0
    if teacher is not None:
        blocks = experiment.objective.teacher_blocks(experiment.model.encoder.layers, teacher.encoder.layers)
        attended = {*experiment.objective.attention_map(experiment.model.encoder.layers).values()}
        widths = [teacher.encoder.widths(block - 1) for block in attended]
        joiner = teacher.transducer if "transducer_kl" in experiment.objective.terms else None
        numbers = (
            len(blocks) * teacher.encoder.dim + sum(2 * heads * size for _, heads, size, *_ in widths)
            + (1 + teacher.ctc_output) * task.outputs + (joiner.joiner_dim if joiner else 0)
        )  # fmt: skip
        targets = 2 * numbers * SAMPLE_RATE / teacher.front_end.hop * 3600 * epoch
        forward = 2 * sum(macs(teacher, task.outputs).values())
    return Plan(
        experiment.name, memory, rows, FRAGMENTATION * memory.total + OVERHEAD, flops, speed, epoch / speed,
        audio / speed, audio, experiment.saving.keep * memory.weights + memory.weights + memory.optimizer, targets,
        audio * forward / (throughput.peak * throughput.mfu), audio / epoch * targets / READ_SPEED / 3600,
    )  # fmt: skip


def corpus_bytes(task: Task, lattice_bytes: float = LATTICE_BYTES) -> Mapping[str, float]:
    """Disk of what stages 0, 1 and 7 make for the unlabelled audio; audio itself is read where it is."""
    seconds = 3600 * task.hours
    return {
        "cut manifests": CUT_BYTES * seconds / task.utterance, "lattices": lattice_bytes * seconds,
        "Fbank, where it is stored": FBANK_BYTES * seconds,
    }  # fmt: skip


def measured_lattice_bytes(data: Path) -> float | None:
    """Bytes of lattices for a second of audio in a recipe's data folder; None before stage 7.

    Raises FileNotFoundError where there is no such folder.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {data}; expected a recipe's, such as egs/librispeech/data")
    rates: list[Any] = []
    for path in sorted(data.glob("num*/*/summary.json")):
        rates += [part["bytes_per_second"] for part in json.loads(path.read_text(encoding="utf-8")).values()]
    return max(rates, default=None)


def assumptions(task: Task, throughput: Throughput, lattice_bytes: float | None) -> list[str]:
    """What the figures rest on, a line each."""
    source = "a rehearsal's; --data-dir reads those of stage 7" if lattice_bytes is None else "measured by stage 7"
    return [
        f"throughput: {throughput.source}",
        f"utterances of {task.utterance:g} s; {task.outputs} outputs, a denominator of {task.states} states",
        f"epochs have {task.hours:g} h of unlabelled audio, or {task.labelled_hours:g} h where data.train is labelled",
        f"a GPU's memory: {OVERHEAD / 2**30:g} GiB for CUDA and NCCL, {FRAGMENTATION - 1:.0%} lost to fragmentation",
        f"lattices: {lattice_bytes or LATTICE_BYTES:g} bytes per second of audio ({source})",
        f"manifests: {CUT_BYTES} bytes per cut; Fbank: {FBANK_BYTES} bytes per second; disk: {READ_SPEED / 1e9:g} GB/s",
        f"a teacher without units in the experiment has {CODEWORDS} codewords, where they are compared",
        "experiments with init_slim: as before slimming; what is left is known when their start is trained",
        "heads of pre-training: parameters, optimiser and gradients; neither their activations nor their operations",
        "validation, decoding, data loading and waiting for other GPUs take no time; attention: utterances of 15 s",
    ]
