"""Checkpoints: parameters of older ones by their new names; heads over codewords."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.config.experiment import Experiment
from distill.config.model import Encoder, Model
from distill.models import checkpoint
from distill.models.codes import CodeHead
from distill.models.recogniser import build_model

SHARED = Model(encoder=Encoder(dim=8, ffn_dim=8, layers=1, heads=2, position_groups=2), shared_head_dim=12)


def test_the_shared_projection_of_older_checkpoints_is_renamed(tmp_path: Path) -> None:
    state = build_model(SHARED, 4).state_dict()
    state["head.through.weight"] = state.pop("head.shared_projection.weight")
    checkpoint.save(tmp_path / "epoch-1.pt", {"model": state})
    loaded = checkpoint.load(tmp_path / "epoch-1.pt")["model"]
    build_model(SHARED, 4, seed=1).load_state_dict(loaded)
    assert torch.equal(loaded["head.shared_projection.weight"], state["head.through.weight"])


@pytest.mark.parametrize(
    ("objective", "temperature", "block"),
    [({"hubert": {"temperature": 0.2, "block": 1}}, 0.2, 1), ({"mmi": {}}, 0.1, -1)],  # trained with one, or imported
)
def test_the_head_over_codewords_is_that_of_the_last_epoch(
    objective: dict, temperature: float, block: int, tmp_path: Path
) -> None:
    values = {"name": "t", "stage": 6, "objective": objective, "optim": {"updates": 1}}
    if "hubert" in objective:
        values |= {"stage": 5, "pretrained": "random", "units": {}, "model": {"mask": {"time_probability": 0.8}}}
    expected = CodeHead(8, 4, 5)
    states = {
        2: {f"hubert.head.{name}": x for name, x in expected.state_dict().items()},
        1: {f"hubert.head.{name}": x for name, x in CodeHead(8, 4, 5).state_dict().items()},
    }
    for epoch, state in states.items():
        content = {"objective": state, "experiment": Experiment.parse(values, "test").resolved()}
        checkpoint.save(tmp_path / f"epoch-{epoch}.pt", content)
    head = checkpoint.load_code_head(tmp_path)
    assert head is not None and not head.training and (head.temperature, head.block) == (temperature, block)
    assert all(torch.equal(x, expected.state_dict()[name]) for name, x in head.state_dict().items())
    checkpoint.save(tmp_path / "epoch-3.pt", {**content, "objective": {"hidden.projections.1.weight": torch.ones(2)}})
    assert checkpoint.load_code_head(tmp_path) is None
