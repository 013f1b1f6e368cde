"""The transducer's loss as a sum over alignments, and its distillation along the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import pytest
import torch

from distill.batch import Batch, Joint, Output, Targets
from distill.config.losses import Objective as Settings
from distill.config.model import FrontEnd, Model, Transducer
from distill.losses import transducer
from distill.losses.objective import Objective
from distill.losses.term import TermContext
from distill.losses.transducer import best_alignment, sequence_costs, slices

UNITS, WIDTH, DIM = 4, 5, 6
STUDENT = Model.model_validate({"encoder": {"dim": DIM, "layers": 1, "heads": 1, "position_groups": 2}})
TAUGHT = STUDENT.model_copy(update={"transducer": Transducer()})
LENGTHS, TOKENS = torch.tensor([4, 2, 3, 1]), torch.tensor([[1, 1, 3], [2, 0, 0], [0, 0, 0], [3, 2, 1]])
FRAMES = int(LENGTHS.max())
BATCH = Batch(tuple("abcd"), torch.empty(0), LENGTHS, tokens=TOKENS)


def random_joint(seed: int, width: int = WIDTH) -> Joint:
    draw = torch.Generator().manual_seed(seed)
    shapes = (4, FRAMES, width), (4, TOKENS.shape[1] + 1, width), (UNITS, width), (UNITS,)
    return Joint(*(torch.randn(shape, generator=draw).requires_grad_() for shape in shapes))


def outputs(joint: Joint, lengths: torch.Tensor = LENGTHS) -> Output:
    return Output(torch.zeros(4, joint.frames.shape[1], UNITS), lengths, (), joint=joint)


def targets(joint: Joint) -> Targets:
    return Targets(torch.zeros(4, FRAMES, UNITS), {}, LENGTHS, joint=joint)


def alignments(frames: int, units: list[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Every alignment as its nodes: frame, units so far, and what is emitted there. Its last is a blank."""
    for places in combinations(range(frames + len(units) - 1), len(units)):
        nodes, frame, unit = [], 0, 0
        for step in range(frames + len(units)):
            nodes.append((frame, unit, units[unit] if step in places else 0))
            frame, unit = (frame, unit + 1) if step in places else (frame + 1, unit)
        yield nodes


def log_prob(joint: Joint, row: int, node: tuple[int, int]) -> torch.Tensor:
    frame, unit = node
    hidden = torch.tanh(joint.frames[row, frame] + joint.predicted[row, unit])
    return (joint.weight @ hidden + joint.bias).log_softmax(0)


def scores(joint: Joint, row: int) -> list[tuple[list[tuple[int, int, int]], torch.Tensor]]:
    """The alignments of an utterance with their log-probabilities."""
    units = [unit for unit in TOKENS[row].tolist() if unit]
    return [
        (nodes, torch.stack([log_prob(joint, row, node[:2])[node[2]] for node in nodes]).sum())
        for nodes in alignments(int(LENGTHS[row]), units)
    ]


def by_hand(joint: Joint) -> torch.Tensor:
    return torch.stack([-torch.stack([score for _, score in scores(joint, row)]).logsumexp(0) for row in range(4)])


def assert_same(found: torch.Tensor, expected: torch.Tensor, joint: Joint) -> None:
    """Values, and gradients by everything that the transducer gives."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(value, joint) for value in (found, expected))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def loss(objective: dict, student: Output, teacher: Targets | None = None, *, model: Model = TAUGHT) -> torch.Tensor:
    terms = Objective(Settings.model_validate(objective), TermContext(model, TAUGHT if teacher else None))
    every = terms(student, teacher, BATCH).terms.values()
    return sum((term.weight * term.total / term.count for term in every), start=torch.zeros(()))


def test_the_loss_is_the_sum_over_alignments() -> None:
    """More frames than units, none of these, and more of these than frames."""
    joint = random_joint(0)
    assert len(scores(joint, 0)) == math.comb(6, 3) and len(scores(joint, 3)) == 1
    torch.testing.assert_close(sequence_costs(joint, LENGTHS, TOKENS), by_hand(joint), rtol=1e-5, atol=1e-5)
    assert_same(loss({"transducer": {}}, outputs(joint)), by_hand(joint).sum() / LENGTHS.sum(), joint)


@pytest.mark.parametrize("objective", [{"transducer": {}}, {"transducer_kl": {}}], ids=str)
def test_padding_does_not_count(objective: dict) -> None:
    joint, other = random_joint(0), random_joint(1)
    teacher = None if "transducer" in objective else targets(random_joint(2, 7))
    outside = torch.arange(FRAMES + 3) >= LENGTHS[:, None]
    longer = torch.nn.functional.pad(joint.frames, (0, 0, 0, 3), value=9.0)
    frames = torch.where(outside[..., None], 5.0, longer)
    behind = torch.arange(TOKENS.shape[1] + 1) > (TOKENS > 0).sum(1)[:, None]
    padded = joint._replace(frames=frames, predicted=torch.where(behind[..., None], other.predicted, joint.predicted))
    torch.testing.assert_close(loss(objective, outputs(padded), teacher), loss(objective, outputs(joint), teacher))


@pytest.mark.parametrize("most", [1, 60, 100, 150])
def test_slices_give_the_same_and_keep_nothing(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    joint = random_joint(0)
    whole = sequence_costs(joint, LENGTHS, TOKENS).sum()
    monkeypatch.setattr(transducer, "VALUES", most)
    found = [(len(rows), frames, units) for rows, frames, units in slices(joint, LENGTHS, TOKENS)]
    assert sum(rows for rows, _, _ in found) == 4
    assert all(rows == 1 or rows * frames * (units + 1) * WIDTH <= most for rows, frames, units in found)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        parts = sequence_costs(joint, LENGTHS, TOKENS).sum()
    assert not [x.shape for x in saved if x.ndim > 3]
    assert_same(parts, whole, joint)


def test_an_utterance_without_frames_is_left_out_and_counted() -> None:
    joint, lengths = random_joint(0), torch.tensor([4, 0, 3, 1])
    terms = Objective(Settings.model_validate({"transducer": {}}), TermContext(TAUGHT))
    losses = terms(outputs(joint, lengths), None, BATCH)
    assert losses.dropped.tolist() == [False, True, False, False]
    assert losses.terms["transducer"].count == 8
    torch.testing.assert_close(losses.terms["transducer"].total, by_hand(joint)[[0, 2, 3]].sum(), rtol=1e-5, atol=0)


def test_a_batch_without_frames_has_gradients_of_zero() -> None:
    """A training on several devices waits for those of all parameters."""
    joint = random_joint(0)
    costs = sequence_costs(joint, torch.zeros(4, dtype=torch.int64), TOKENS)
    assert costs.tolist() == [0, 0, 0, 0]
    assert all(gradient.count_nonzero() == 0 for gradient in torch.autograd.grad(costs.sum(), joint))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_alignment_is_the_best_of_all(seed: int) -> None:
    joint = random_joint(seed)
    found = best_alignment(joint, LENGTHS, TOKENS)
    for row in range(4):
        best = max(scores(joint, row), key=lambda item: item[1].item())[0]
        assert found[row].nonzero().tolist() == [list(node[:2]) for node in best]


def test_posteriors_are_compared_along_the_teachers_best_alignment() -> None:
    student, teacher = random_joint(0), random_joint(1, 7)
    total, count = torch.zeros(()), 0
    for row in range(4):
        for *node, _ in max(scores(teacher, row), key=lambda item: item[1].item())[0]:
            ours, theirs = (log_prob(joint, row, tuple(node)) for joint in (student, teacher))
            total, count = total + sum(t.exp() * (t - s) for t, s in zip(theirs.detach(), ours)), count + 1
    assert count == int(LENGTHS.sum() + (TOKENS > 0).sum())
    assert_same(loss({"transducer_kl": {}}, outputs(student), targets(teacher)), total / count, student)


def test_frames_of_a_faster_teacher_are_averaged() -> None:
    student, slow = outputs(random_joint(0)), random_joint(1)
    doubled = slow.frames.repeat_interleave(2, 1) + torch.tensor([1.0, -1.0]).repeat(FRAMES)[:, None]
    fast = Targets(torch.zeros(4, 2 * FRAMES, UNITS), {}, 2 * LENGTHS, joint=slow._replace(frames=doubled))
    expected = loss({"transducer_kl": {}}, student, targets(slow))
    layers = *TAUGHT.front_end.layers, (TAUGHT.front_end.layers[0][0], 2, 2)
    half_rate = TAUGHT.model_copy(update={"front_end": FrontEnd(layers=layers)})
    torch.testing.assert_close(loss({"transducer_kl": {}}, student, fast, model=half_rate), expected)


def test_a_teacher_without_a_transducer_is_refused() -> None:
    with pytest.raises(ValueError, match="transducer_kl: the teacher has no transducer"):
        Objective(Settings.model_validate({"transducer_kl": {}}), TermContext(TAUGHT, STUDENT))
