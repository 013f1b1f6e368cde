"""Predicted memory of an update against the peak of a real one, on a CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.plan.memory import update_memory

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "name": "toy",
    "stage": 6,
    "model": {
        # statistics over time, whose convolutions run on a CPU as on a GPU
        "front_end": {"layers": [[96, 40, 40], [128, 8, 8]]},
        "encoder": {
            "dim": 256, "ffn_dim": 1024, "layers": 4, "heads": 4, "position_kernel": 4, "position_groups": 16,
            "norm_first": True,
        },
    },
    "objective": {"alpha": 1, "beta": 1},
    "optim": {"updates": 1},
    "data": {"max_duration": 60},
}  # fmt: skip
ROWS, SECONDS = 4, 5.0
COMPUTE = {"plain": {}, "checkpointed": {"checkpoint_activations": True}}


def real_peaks() -> list[float]:
    """MB that an update adds to a process that has made one before, for each of COMPUTE."""
    import torch

    from benchmarks.measure import measure
    from benchmarks.step import random_batch, random_trainer

    torch.set_num_threads(1)
    peaks = []
    for compute in COMPUTE.values():
        experiment = Experiment.parse({**SETTINGS, "compute": compute}, "a test")
        trainer = random_trainer(experiment, ROOT, torch.device("cpu"), "bigram")
        trainer._update([random_batch(1, 16000)], 1e-4)
        batch = random_batch(ROWS, int(SECONDS * 16000))
        peaks.append(measure(partial(trainer._update, [batch], 1e-4), 1)["peak_mb"])
    return peaks


def test_predictions_are_within_15_percent_of_a_real_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system at once
    from benchmarks.measure import in_process

    added = []
    for compute in COMPUTE.values():
        experiment = Experiment.parse({**SETTINGS, "compute": compute}, "a test")
        memory = update_memory(experiment, None, 43, 85, ROWS, SECONDS)
        added.append((memory.activations + memory.lfmmi) / 1e6)  # the gradients of the update before are replaced
    assert in_process(real_peaks) == pytest.approx(added, rel=0.15)
