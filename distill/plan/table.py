"""Plans as tables with units: a column for each training, and the disk of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill.plan.training import Plan
from distill.report.table import Table

SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def shown(plans: Sequence[Plan], disk: Mapping[str, float], device_memory: float) -> list[str]:
    """Lines for a terminal; device_memory: bytes of one GPU."""
    rows = [(name, *map(figure, plans)) for name, figure in FIGURES.items()]
    rows.append((f"a GPU of {size(device_memory)}", *(fit(plan, device_memory) for plan in plans)))
    corpus = Table(("disk of the unlabelled audio", "size"), tuple((name, size(n)) for name, n in disk.items()))
    head = ("", *(plan.experiment for plan in plans))
    advice = [] if all(plan.reserved_bytes <= device_memory for plan in plans) else [WAY_OUT]
    return [*Table(head, tuple(rows)).terminal(120), *advice, "", *corpus.terminal(), ""]


def fit(plan: Plan, device_memory: float) -> str:
    """Whether a training fits a GPU."""
    return "fits" if plan.reserved_bytes <= device_memory else "too large"


def size(count: float) -> str:
    """Bytes with a unit, 1.26 GB; "-" for none."""
    if not count:
        return "-"
    return next((f"{count / unit:.3g} {name}" for unit, name in SIZES if count >= unit), f"{count:.0f} B")


WAY_OUT = (
    "too large: use more GPUs, less data.max_duration with more optim.accumulate, or compute.checkpoint_activations"
)
FIGURES = {
    "parameters trained": lambda plan: f"{plan.memory.parameters / 1e6:.1f} M",
    "weights": lambda plan: size(plan.memory.weights),
    "gradients": lambda plan: size(plan.memory.gradients),
    "optimizer": lambda plan: size(plan.memory.optimizer),
    "teacher": lambda plan: size(plan.memory.teacher),
    "activations": lambda plan: size(plan.memory.activations),
    "LF-MMI": lambda plan: size(plan.memory.lfmmi),
    "transducer": lambda plan: size(plan.memory.transducer),
    "memory of each GPU": lambda plan: size(plan.reserved_bytes),
    "utterances per GPU": lambda plan: f"{plan.rows}",
    "operations per s of audio": lambda plan: f"{plan.flops_per_audio_second / 1e9:,.0f} G",
    "audio per hour": lambda plan: f"{plan.audio_hours_per_hour:,.0f} h",
    "an epoch": lambda plan: f"{plan.epoch_hours:,.2f} h",
    "audio of the training": lambda plan: f"{plan.training_audio_hours:,.0f} h",
    "the training": lambda plan: f"{plan.training_hours:,.1f} h",
    "checkpoints": lambda plan: size(plan.checkpoint_bytes),
    "stored targets, disk": lambda plan: size(plan.targets_bytes),
    "stored targets, reading": lambda plan: f"{plan.stored_read_hours:,.1f} h" if plan.targets_bytes else "-",
    "online targets, all GPUs": lambda plan: f"{plan.online_gpu_hours:,.1f} GPU h" if plan.targets_bytes else "-",
}
