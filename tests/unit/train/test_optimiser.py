"""Parameter groups of the optimiser."""

from __future__ import annotations

import pytest
import torch

from distill.config.training import Optim
from distill.losses.term import LossTerm, ParameterGroup
from distill.train.optimiser import build_optimiser, set_rate


def step_with(group: ParameterGroup | None) -> torch.nn.Module:
    step, term = torch.nn.Module(), LossTerm()
    step.model, term.linear = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)
    step.frozen, step.term = torch.nn.Parameter(torch.zeros(1), requires_grad=False), term
    term.group = group
    return step


def test_without_groups_of_their_own_all_parameters_are_in_one() -> None:
    optimiser = build_optimiser(step_with(None), Optim(updates=1), torch.device("cpu"))
    assert [len(group["params"]) for group in optimiser.param_groups] == [3]


def test_the_trunk_may_have_a_rate_of_its_own_below_other_groups() -> None:
    step = step_with(ParameterGroup("term", 3.0))
    step.model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    step.model["encoder"].term = step.term
    optimiser = build_optimiser(step, Optim(updates=1, trunk_scale=0.1), torch.device("cpu"))
    set_rate(optimiser, 0.01)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in step.named_parameters() if p.requires_grad}
    assert found["model.encoder.weight"] == pytest.approx(0.001) and found["model.head.bias"] == pytest.approx(0.01)
    assert found["model.encoder.term.linear.weight"] == pytest.approx(0.03)


def test_a_group_has_its_rate_and_may_ascend() -> None:
    step = step_with(ParameterGroup("multipliers", 10.0, ascent=True))
    optimiser = build_optimiser(step, Optim(updates=1, weight_decay=0.0), torch.device("cpu"))
    set_rate(optimiser, 0.01)
    before = {name: parameter.detach().clone() for name, parameter in step.named_parameters()}
    sum(parameter.sum() for parameter in step.parameters() if parameter.requires_grad).backward()
    optimiser.step()
    moved = {name: float((parameter.detach() - before[name]).mean()) for name, parameter in step.named_parameters()}
    torch.testing.assert_close(moved["model.weight"], -0.01, rtol=1e-3, atol=0)
    torch.testing.assert_close(moved["term.linear.weight"], 0.1, rtol=1e-3, atol=0)
