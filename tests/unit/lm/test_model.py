"""The network: what each place may see, that it is a distribution, and its formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.config.language_model import Model
from distill.lm.model import TransformerLm, build_lm, count_parameters
from distill.lm.scoring import log_probabilities
from distill.lm.text import PADDING, padded

UNITS = 11
SETTINGS = Model(dim=8, ffn_dim=12, layers=2, heads=2, dropout=0.3)
ROWS = [[1, 4, 1], [1, 5, 6, 7, 8, 3, 1], [1, 9, 1], [1, 10, 2, 4, 1]]


@pytest.fixture
def model() -> TransformerLm:
    return build_lm(SETTINGS, UNITS, seed=3).double().eval()


def by_hand(model: TransformerLm, row: list[int]) -> Tensor:
    """Log-probability of each unit after the first, by the formulas of Vaswani et al. (2017), one unit at a time."""
    found = []
    for place in range(1, len(row)):
        state = torch.stack([_embedded(model, number, at) for at, number in enumerate(row[:place])])
        for block in model.blocks:
            state = state + _attended(block.attention, block.attention_norm(state))
            state = state + block.ffn_down(torch.nn.functional.gelu(block.ffn_up(block.ffn_norm(state))))
        logits = model.embedding.weight @ model.norm(state[-1])
        found.append(logits[row[place]] - logits.exp().sum().log())
    return torch.stack(found)


def _embedded(model: TransformerLm, number: int, place: int) -> Tensor:
    dim = SETTINGS.dim
    waves = [place / 10000 ** (2 * (i // 2) / dim) for i in range(dim)]
    sines = torch.tensor([math.sin(w) if i % 2 == 0 else math.cos(w) for i, w in enumerate(waves)])
    return model.embedding.weight[number] * math.sqrt(dim) + sines


def _attended(attention: torch.nn.Module, x: Tensor) -> Tensor:
    size = SETTINGS.dim // SETTINGS.heads
    query, key, value = (layer(x) for layer in (attention.query, attention.key, attention.value))
    heads = []
    for head in range(SETTINGS.heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
        heads.append(scores.softmax(1) @ value[:, part])
    return attention.out(torch.cat(heads, 1))


def test_log_probabilities_are_those_of_the_formulas(model: TransformerLm) -> None:
    inputs, targets = padded(ROWS)
    found = log_probabilities(model, inputs, targets)
    for row, values in zip(ROWS, found):
        torch.testing.assert_close(values[: len(row) - 1], by_hand(model, row).float(), atol=2e-6, rtol=2e-6)
        assert not values[len(row) - 1 :].any()


def test_every_place_is_a_distribution(model: TransformerLm) -> None:
    inputs, _ = padded(ROWS)
    everything = torch.stack([log_probabilities(model, inputs, torch.full_like(inputs, u)) for u in range(UNITS)])
    torch.testing.assert_close(everything.exp().sum(0), torch.ones(inputs.shape), atol=1e-5, rtol=0)


def test_padding_and_neighbours_change_nothing(model: TransformerLm) -> None:
    inputs, targets = padded(ROWS)
    together = log_probabilities(model, inputs, targets)
    for place, row in enumerate(ROWS):
        alone = log_probabilities(model, *padded([row]))[0]
        torch.testing.assert_close(together[place, : len(row) - 1], alone, atol=1e-6, rtol=1e-6)
    other = torch.where(targets == PADDING, 7, inputs)
    torch.testing.assert_close(log_probabilities(model, other, targets), together, atol=0, rtol=0)


def test_no_place_sees_what_follows_it(model: TransformerLm) -> None:
    seen: list[Tensor] = []

    def watch(_, __, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    model.embedding.register_forward_hook(watch)
    logits = model(torch.tensor([[1, 4, 5, 6, 7]]))
    for place in range(5):
        (gradient,) = torch.autograd.grad(logits[0, place].square().sum(), seen[-1], retain_graph=True)
        moved = gradient[0].abs().sum(1) > 0
        assert moved.tolist() == [at <= place for at in range(5)]


def test_the_output_is_the_embedding_and_seeds_decide(model: TransformerLm) -> None:
    sizes = count_parameters(model)
    assert sizes["head"] == UNITS * SETTINGS.dim
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    again = build_lm(SETTINGS, UNITS, seed=3).double()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert not torch.equal(build_lm(SETTINGS, UNITS, seed=4).double().embedding.weight, model.embedding.weight)
