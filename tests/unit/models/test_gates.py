"""Hard concrete gates against their equations, and the parameters that they close against a count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from distill.config.model import Pruning
from distill.models.front_end import FrameNorm
from distill.models.gates import Gate, Units, hook_units, norm_of_open
from distill.models.groups import ParameterGroup
from distill.models.recogniser import Recogniser
from tests.support.models import CHUNK, HISTORY, MODELS, WAVE, build

GROUP = ParameterGroup("gates")
BETA, LOW, HIGH = 2 / 3, -0.1, 1.1


def gate_of(log_alpha: list[float], at_least: int = 0) -> Gate:
    gate = Gate(len(log_alpha), 0.5, at_least, GROUP)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor(log_alpha))
    return gate


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def open_by_hand(log_alpha: float) -> float:
    """Louizos et al. 2018, Eq. 12."""
    return sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


def plain_model(name: str) -> Recogniser:
    """One of tests.support.models, or a conformer of low rank."""
    if name in MODELS:
        return build(*MODELS[name])
    return build(*MODELS["conformer"][:6], (32, 2, None), 5, rank=5)


def gated(name: str, units: tuple[str, ...], spread: float = 2.0, of: str = "parameters") -> Recogniser:
    """A small model with gates of which some are closed."""
    plain = plain_model(name)
    pruning = Pruning.model_validate({"units": units, "of": of})
    model = Recogniser(plain.settings.model_copy(update={"pruning": pruning}), plain.outputs)
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.manual_seed(3)
    for gate in model.gates.each.values():
        with torch.no_grad():
            gate.log_alpha.normal_(0, spread)
    return model.eval()


def test_factors_in_training_are_those_of_the_equations() -> None:
    gate = gate_of([-1.0, 0.5, 2.0])
    torch.manual_seed(0)
    gate.draw()
    torch.manual_seed(0)
    uniform = torch.empty(3).uniform_(1e-6, 1 - 1e-6).tolist()
    for factor, u, log_alpha in zip(gate.factors.tolist(), uniform, [-1.0, 0.5, 2.0]):
        concrete = sigmoid((math.log(u) - math.log(1 - u) + log_alpha) / BETA)
        assert factor == pytest.approx(min(1.0, max(0.0, concrete * (HIGH - LOW) + LOW)), abs=1e-6)


def test_units_are_open_as_often_as_their_probability() -> None:
    gate = gate_of([-2.0, 0.0, 1.0] * 20000)
    gate.draw()
    found = gate.open.float().view(-1, 3).mean(0)
    torch.testing.assert_close(found, torch.tensor([open_by_hand(x) for x in (-2.0, 0.0, 1.0)]), rtol=0, atol=0.01)
    share = gate_of([-2.0, 0.0, 1.0]).share()
    assert share.item() == pytest.approx(sum(open_by_hand(x) for x in (-2.0, 0.0, 1.0)) / 3)


def test_initial_gates_are_closed_as_often_as_they_should_be() -> None:
    torch.manual_seed(0)
    for dropped in (0.01, 0.5):
        assert Gate(5000, dropped, 0, GROUP).log_alpha.sigmoid().mean().item() == pytest.approx(1 - dropped, rel=1e-3)


@pytest.mark.parametrize("at_least", [0, 1, 3])
def test_in_evaluation_the_smallest_are_closed_and_others_fixed(at_least: int) -> None:
    values = [0.3, -9.0, 1.2, -4.0, -4.5, -0.2]
    gate = gate_of(values, at_least).eval()
    gate.draw()
    closed = min(round(sum(1 - open_by_hand(x) for x in values)), len(values) - at_least)
    expected = [0.0 if x in sorted(values)[:closed] else sigmoid(0.8 * x / BETA) for x in values]
    torch.testing.assert_close(gate.factors, torch.tensor(expected))
    assert gate.share().item() == pytest.approx(1 - closed / 6)


def test_one_channel_stays_open() -> None:
    gate = gate_of([-9.0, -8.0, -10.0], at_least=1).eval()
    gate.draw()
    assert gate.open.tolist() == [False, True, False]


def test_a_norm_over_open_channels_is_one_without_the_others() -> None:
    torch.manual_seed(0)
    norm, gate = torch.nn.LayerNorm(5), gate_of([9.0, -9.0, 9.0, -9.0, 9.0]).eval()
    torch.nn.init.normal_(norm.weight)
    gate.draw()
    x, kept = torch.randn(2, 3, 5, requires_grad=True), [0, 2, 4]
    expected = torch.nn.functional.layer_norm(x[..., kept], (3,), norm.weight[kept], norm.bias[kept], norm.eps)
    ours = norm_of_open(norm, gate, x)
    torch.testing.assert_close(ours[..., kept], expected)
    pull = torch.randn_like(expected)
    for way in (ours[..., kept], expected):
        (gradient,) = torch.autograd.grad((way * pull).sum(), x)
        assert gradient[..., [1, 3]].abs().max() == 0
    torch.testing.assert_close(
        torch.autograd.grad((norm_of_open(norm, gate, x)[..., kept] * pull).sum(), x),
        torch.autograd.grad(
            (torch.nn.functional.layer_norm(x[..., kept], (3,), norm.weight[kept], norm.bias[kept]) * pull).sum(), x
        ),
    )


def count_by_hand(conv: list, heads: list, ffn: list, attention: list, feed_forward: list):
    """Parameters of the model "waveform" of tests.support.models with so many open units, of open layers."""
    shapes, dim, head_dim, total, inputs = [(16, 10), (16, 3), (24, 8)], 16, 8, 0.0, 1.0
    for count, (_, kernel) in zip(conv, shapes):
        total = total + inputs * count * kernel + 2 * count  # bias: none; norm
        inputs = count
    total = total + 2 * conv[-1] + conv[-1] * dim + dim  # norm and projection of features
    total = total + dim * dim / 2 * 6 + 6 + dim + dim + 2 * dim  # positions with their scale, mask embedding, norm
    for h, f, a, b in zip(heads, ffn, attention, feed_forward):
        total = total + a * (3 * (dim + 1) * h * head_dim + h * head_dim * dim + dim + 2 * dim)
        total = total + b * ((dim + 1) * f + f * dim + dim + 2 * dim)
    return total


def macs_by_hand(conv: list, heads: list, ffn: list, attention: list, feed_forward: list):
    """Multiply-adds of the same for a second of audio, each frame of which attends to a chunk and its history."""
    dim, head_dim, total, inputs, rate = 16, 8, 0.0, 1.0, 16000.0
    for count, (_, kernel, stride) in zip(conv, WAVE.layers):
        rate /= stride
        total, inputs = total + rate * inputs * count * kernel, count
    frame = conv[-1] * dim + dim * dim / 2 * 6  # projection and positions
    for h, f, a, b in zip(heads, ffn, attention, feed_forward):
        frame = frame + a * h * head_dim * (4 * dim + 2 * (CHUNK + HISTORY)) + b * 2 * dim * f
    return total + rate * frame


@pytest.mark.parametrize(("of", "by_hand"), [("parameters", count_by_hand), ("macs", macs_by_hand)])
def test_expected_sparsity_and_its_gradient_are_those_of_a_count_by_hand(of: str, by_hand: Callable) -> None:
    model = gated("waveform", ("conv", "heads", "ffn", "layers"), of=of).train()
    trunk = by_hand([16, 16, 24], [2, 2], [32, 32], [1, 1], [1, 1])
    if of == "parameters":
        assert trunk == sum(p.numel() for part in (model.front_end, model.encoder) for p in part.parameters())
    gates = model.gates.each

    def open_ones(name: str) -> torch.Tensor:
        return (gates[name].log_alpha - BETA * math.log(-LOW / HIGH)).sigmoid().sum()

    blocks = [
        [open_ones(f"block{i}_{kind}") for i in range(2)]
        for kind in ("heads", "ffn_dim", "heads_layer", "ffn_dim_layer")
    ]
    expected = 1 - by_hand([open_ones(f"conv{i}") for i in range(3)], *blocks) / trunk
    ours = model.gates.sparsity()
    torch.testing.assert_close(ours, expected)
    alphas = [gate.log_alpha for gate in gates.values()]
    torch.testing.assert_close(torch.autograd.grad(ours, alphas), torch.autograd.grad(expected, alphas))
    least = by_hand([1, 1, 1], [0, 0], [0, 0], [0, 0], [0, 0])
    assert model.gates.greatest_sparsity() == pytest.approx(1 - least / trunk)


@pytest.mark.parametrize("name", ["waveform", "gabor", "fbank"])
def test_both_ways_through_the_convolutions_are_gated_alike(name: str) -> None:
    """A CPU's training has products of matrices in place of convolutions."""
    model, x = gated(name, ("conv", "heads")), torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(1))
    x = x if name != "fbank" else torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(1))
    model.gates.train().draw()
    plain = model.front_end.convolve(x)
    torch.testing.assert_close(model.front_end.train().convolve(x), plain, rtol=1e-4, atol=1e-5)


def test_without_pruning_there_is_no_gate() -> None:
    model = build(*MODELS["waveform"])
    assert not model.gates.each and model.gates.sparsity() is None
    assert model(torch.zeros(1, 4000), torch.tensor([4000])).sparsity is None


def test_a_frame_norm_is_hooked_by_its_own_call() -> None:
    norm, gate = FrameNorm(2), gate_of([9.0, -9.0]).eval()
    owner = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(1, 2, 1), "norm": norm, "next": torch.nn.Linear(2, 2)})
    hook_units(gate, owner, Units("conv", 2, ("conv", "norm"), "next", at_least=1))
    gate.draw()
    x = torch.randn(1, 2, 4)
    torch.testing.assert_close(norm(x), torch.zeros_like(x), msg="one channel alone is its own mean")
