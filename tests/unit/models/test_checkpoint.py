"""Checkpoints: parameters of older ones by their new names."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.config.model import Encoder, Model
from distill.models import checkpoint
from distill.models.recogniser import build_model

SHARED = Model(encoder=Encoder(dim=8, ffn_dim=8, layers=1, heads=2, position_groups=2), shared_head_dim=12)


def test_the_shared_projection_of_older_checkpoints_is_renamed(tmp_path: Path) -> None:
    state = build_model(SHARED, 4).state_dict()
    state["head.through.weight"] = state.pop("head.shared_projection.weight")
    checkpoint.save(tmp_path / "epoch-1.pt", {"model": state})
    loaded = checkpoint.load(tmp_path / "epoch-1.pt")["model"]
    build_model(SHARED, 4, seed=1).load_state_dict(loaded)
    assert torch.equal(loaded["head.shared_projection.weight"], state["head.through.weight"])
