"""The Lagrangian of pruning by hand: value, gradients, the rising target; its multipliers go up, gates go down."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.batch import Batch, Output
from distill.config.experiment import Experiment
from distill.config.losses import Objective as Settings
from distill.config.model import Model
from distill.config.training import Optim
from distill.losses.objective import Objective
from distill.losses.sparsity import Sparsity
from distill.losses.term import TermContext
from distill.models.recogniser import Recogniser, without_values
from distill.train.loop import TrainingStep
from distill.train.optimiser import build_optimiser, set_rate
from tests.support.training import SETTINGS

SHAPE = {
    "front_end": {"layers": [[8, 40, 20], [8, 8, 4]], "norm": "frame", "causal": True, "waveform": "gain"},
    "encoder": {"dim": 8, "ffn_dim": 16, "layers": 2, "heads": 2, "position_kernel": 3, "position_groups": 2},
}
BATCH = Batch(("a",), torch.empty(0), torch.tensor([4]))


def model(**pruning: Any) -> Model:
    return Model.model_validate({**SHAPE, "pruning": pruning})


def term(target: float = 0.5, warm_up: int = 10) -> Sparsity:
    context = TermContext(model(units=["conv", "heads", "ffn", "layers"]))
    objective = Objective(
        Settings.model_validate({"mmi": None, "sparsity": {"target": target, "warm_up": warm_up}}), context
    )
    return objective["sparsity"]  # type: ignore[return-value]


@pytest.mark.parametrize(("update", "target"), [(0, 0.0), (5, 0.25), (10, 0.5), (99, 0.5)])
def test_the_penalty_and_its_gradients_are_those_of_the_lagrangian(update: int, target: float) -> None:
    module, reached = term(), torch.tensor(0.3, requires_grad=True)
    module.update_number = update
    with torch.no_grad():
        module.multipliers.copy_(torch.tensor([2.0, 3.0]))
    losses = module(Output(torch.empty(1, 4, 3), torch.tensor([4]), (), sparsity=reached), None, BATCH).terms
    penalty, figure = losses["sparsity_penalty"], losses["sparsity"]
    assert penalty.total.item() == pytest.approx(2 * (0.3 - target) + 3 * (0.3 - target) ** 2)
    assert (float(penalty.count), penalty.weight, figure.weight) == (1, 1.0, 0.0) and figure.total is reached
    penalty.total.backward()
    assert reached.grad.item() == pytest.approx(2 + 6 * (0.3 - target))
    torch.testing.assert_close(module.multipliers.grad, torch.tensor([0.3 - target, (0.3 - target) ** 2]))
    module.eval()
    losses = module(Output(torch.empty(1, 4, 3), torch.tensor([4]), (), sparsity=reached), None, BATCH).terms
    assert losses["sparsity_penalty"].weight == 0, "not of the loss by which checkpoints are chosen"


def test_without_warm_up_the_target_is_there_at_once() -> None:
    assert term(0.4, 0).target_now == 0.4


def test_gates_close_and_multipliers_follow_in_groups_of_their_own() -> None:
    """At rate 0 of the model the two alone reach the target, and weight decay does not touch them."""
    torch.manual_seed(0)
    settings = model(units=["heads", "ffn", "layers"], lr_scale=50)
    terms = Settings.model_validate({"sparsity": {"target": 0.4, "warm_up": 50}})
    net, objective = Recogniser(settings, 3), Objective(terms, TermContext(settings))
    step = TrainingStep(net, objective)
    optimiser = build_optimiser(step, Optim(updates=1, weight_decay=0.1), torch.device("cpu"))
    set_rate(optimiser, 0.001)
    groups = {key: [group[key] for group in optimiser.param_groups] for key in ("lr", "maximize", "weight_decay")}
    assert groups == {"lr": [0.001, 0.05, 0.05], "maximize": [False, False, True], "weight_decay": [0.1, 0, 0]}
    assert [len(group["params"]) for group in optimiser.param_groups[1:]] == [8, 1]
    reached = []
    for objective.update_number in range(500):
        optimiser.zero_grad()
        output = Output(torch.empty(1, 4, 3), torch.tensor([4]), (), sparsity=net.gates.sparsity())
        objective(output, None, BATCH).terms["sparsity_penalty"].total.backward()
        optimiser.step()
        reached.append(output.sparsity.item())
    assert reached[0] < 0.2
    assert reached[-1] == pytest.approx(0.4, abs=0.02)


def test_a_target_out_of_reach_says_what_is_in_reach() -> None:
    context = TermContext(model(units=["heads"]))
    greatest = without_values(context.student).gates.greatest_sparsity()
    settings = Settings.model_validate({"sparsity": {"target": 0.9}}).sparsity
    said = rf"sparsity\.target: 0\.9 is not in reach.*\(heads\) closed .* is {greatest:.4f}; give a share"
    with pytest.raises(ValueError, match=said):
        Sparsity.build(settings, context)
    with pytest.raises(ValueError, match=r"sparsity\.target: 0\.9 .* has no gates; set model\.pruning"):
        Sparsity.build(settings, TermContext(Model.model_validate(SHAPE)))


PRUNED = {
    "model": {**SETTINGS["model"], "pruning": {}}, "objective": {"mmi": {}, "sparsity": {}},
}  # fmt: skip


def experiment(**changes: Any) -> Experiment:
    return Experiment.parse({**SETTINGS, "objective": {"mmi": {}}, **changes}, "toy")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"mmi": {}, "sparsity": {}}}, r"sparsity .* model\.pruning need each"),
        ({"model": {**SETTINGS["model"], "pruning": {}}}, r"sparsity .* model\.pruning need each"),
        ({"model": {"pruning": {"units": ["head"]}}}, r"units.*'conv', 'heads', 'ffn' or 'layers'"),
        ({"model": {"pruning": {"units": []}}}, r"units.* at least 1"),
        ({"model": {"pruning": {}, "encoder": {"relative_buckets": 8}}}, r"heads and layers, while blocks share"),
        ({"init_slim": True}, r"init_slim: true needs init"),
        ({"init_sparsity": 0.5}, r"init_sparsity is of what init_slim: true cuts off"),
        ({**PRUNED, "decoding": {"epoch": "best"}}, r"decoding\.epoch: best: gates close while"),
        ({"init": "gated", "init_slim": True, "init_epoch": "best"}, r"init_epoch: best: init_slim takes"),
    ],
    ids=str,
)
def test_wrong_settings_of_pruning_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        experiment(**changes)


def test_a_model_with_gates_has_no_runtime_graph() -> None:
    assert "init_slim: true cuts off what its gates close" in model().runtime_obstacle
