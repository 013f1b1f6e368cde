"""Windows and confidence of numerators, against masks and gradients made state by state."""

from __future__ import annotations

from dataclasses import fields

import torch

from distill.fsa.graph import Fsa, Numerator
from distill.graphs import topology
from distill.lfmmi import NativeEngine
from distill.lfmmi.frame_constraints import weighted, within_windows


def numerator(**what: torch.Tensor) -> Numerator:
    graph = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 2, 2, 0.0)], {2: 0.0}, 3))
    return Numerator(**{field.name: getattr(graph, field.name) for field in fields(graph)}, **what)


def log_probs(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, 3, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_outputs_stand_only_within_windows() -> None:
    plain = numerator()
    window = torch.tensor([[0, 2], [3, 9], [0, 1], [2, 2], [5, 4]])[: plain.num_states]
    values, graph = log_probs(), numerator(window=window)
    found = within_windows(values, [plain, graph])
    assert torch.equal(found[0], values[0])
    for frame in range(6):
        for output in range(3):
            states = [s for s in range(graph.num_states) if graph.label[s] == output]
            inside = any(window[s, 0] <= frame <= window[s, 1] for s in states)
            assert found[1, frame, output] == (values[1, frame, output] if inside else -torch.inf)


def test_without_windows_nothing_changes() -> None:
    values = log_probs()
    assert within_windows(values, [numerator(), numerator()]) is values
    assert weighted(values, [numerator(), numerator()]) is values


def test_windows_leave_only_paths_inside() -> None:
    values, lengths = log_probs()[:1], torch.tensor([6])
    engine, plain = NativeEngine(), numerator()
    free = engine.score(values, lengths, [plain]).total
    early = torch.tensor([[0, 2] if label == 1 else [0, 9] for label in plain.label.tolist()])
    bound = engine.score(within_windows(values, [numerator(window=early)]), lengths, [plain])
    assert bound.valid.all() and (bound.total < free).all()
    never = torch.tensor([[4, 9] if label == 1 else [0, 3] for label in plain.label.tolist()])
    assert not engine.score(within_windows(values, [numerator(window=never)]), lengths, [plain]).valid.any()


def test_confidence_scales_gradients_and_not_values() -> None:
    values = log_probs()
    values[0, 0, 0] = -torch.inf
    confidence = torch.tensor([0.0, 0.5, 1.0, 0.25])
    leaf = values.clone().requires_grad_()
    found = weighted(leaf, [numerator(confidence=confidence), numerator()])
    assert torch.equal(found, values)
    (gradient,) = torch.autograd.grad(found, leaf, torch.ones_like(found))
    expected = torch.ones(2, 6, 3, dtype=torch.float64)
    expected[0, :4] = confidence[:, None]  # frames beyond what is known count in full
    assert torch.equal(gradient, expected)
