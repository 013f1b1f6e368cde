"""Checkpoints as icefall's load_checkpoint and average_checkpoints (icefall/checkpoint.py) take them."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.config.experiment import Experiment
from distill.models import checkpoint
from distill.models.recogniser import build_model

SETTINGS = {
    "name": "toy",
    "stage": 6,
    "objective": {"alpha": 1, "beta": 1},
    "optim": {"updates": 1},
    "model": {
        "front_end": {"layers": [[8, 40, 20], [8, 8, 4]], "norm": "frame", "causal": True, "waveform": "gain"},
        "encoder": {"dim": 8, "ffn_dim": 16, "layers": 1, "heads": 2, "position_kernel": 3, "position_groups": 2},
    },
}  # fmt: skip


def epochs(folder: Path) -> list[dict[str, torch.Tensor]]:
    experiment = Experiment.parse(SETTINGS, "test")
    states = []
    for epoch in (1, 2):
        states.append(build_model(experiment.model, 3, seed=epoch).state_dict())
        content = {"experiment": experiment.resolved(), "units": ["<blk>", "A", "B"], "model": states[-1]}
        checkpoint.save(folder / f"epoch-{epoch}.pt", content)
    return states


def icefalls_average(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Sums in place and divides, whole numbers rounding down."""
    states = [torch.load(path, map_location="cpu")["model"] for path in paths]
    mean = states[0]
    for name in mean:
        for other in states[1:]:
            mean[name] += other[name]
        if mean[name].is_floating_point():
            mean[name] /= len(states)
        else:
            mean[name] //= len(states)
    return mean


def test_epochs_are_loaded_and_averaged(tmp_path: Path) -> None:
    states = epochs(tmp_path)
    model = build_model(Experiment.parse(SETTINGS, "test").model, 3, seed=3)
    saved = torch.load(tmp_path / "epoch-2.pt", map_location="cpu")
    assert not next(iter(saved["model"])).startswith("module.")  # icefall would take it for DDP's
    model.load_state_dict(saved["model"], strict=True)
    assert all(value.equal(states[1][name]) for name, value in model.state_dict().items())
    mean = icefalls_average([tmp_path / "epoch-1.pt", tmp_path / "epoch-2.pt"])
    ours = checkpoint.average(states)
    for name, value in mean.items():
        torch.testing.assert_close(value, ours[name])


def test_weights_alone(tmp_path: Path) -> None:
    states = epochs(tmp_path)
    assert checkpoint.export_weights(tmp_path, tmp_path / "pretrained.pt", avg=2) == 2
    content = torch.load(tmp_path / "pretrained.pt", map_location="cpu")
    assert list(content) == ["model"]
    for name, value in checkpoint.average(states).items():
        torch.testing.assert_close(content["model"][name], value)
    assert checkpoint.export_weights(tmp_path, tmp_path / "pretrained.pt", epoch=1) == 1
    first = torch.load(tmp_path / "pretrained.pt", map_location="cpu")["model"]
    assert all(value.equal(states[0][name]) for name, value in first.items())
