"""L_reg, L_front and L_disc of papers/000, frame by frame, and with padding that does not count."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.batch import Batch, Output, Targets
from distill.config.losses import Objective as Settings
from distill.config.model import Model
from distill.losses.objective import Objective, fit_frames
from distill.losses.term import TermContext

DIM, WIDE, BLOCKS, CODES = 6, 10, 3, 5
LENGTHS = torch.tensor([9, 5])
BATCH = Batch(("a", "b"), torch.empty(0), LENGTHS)


def model_settings(dim: int, layers: int, channels: int) -> Model:
    front = {"layers": [[channels, 10, 5]]}
    encoder = {"dim": dim, "layers": layers, "heads": 2, "position_groups": 2}
    return Model.model_validate({"front_end": front, "encoder": encoder, "mask": {"time_probability": 0.5}})


def made(objective: dict, channels: int = 4) -> tuple[Objective, Output, Targets]:
    """An objective, and random outputs of student and teacher, with something else behind each utterance's end."""
    torch.manual_seed(0)
    context = TermContext(model_settings(DIM, BLOCKS, 4), model_settings(WIDE, 8, channels), clusters=CODES)
    terms = Objective(Settings.model_validate(objective), context)
    hidden = tuple(torch.randn(2, 9, DIM) for _ in range(BLOCKS + 1))
    masked = torch.rand(2, 9) < 0.5
    student = Output(torch.empty(2, 9, 3), LENGTHS, hidden, normed=torch.randn(2, 9, 4), masked=masked)
    blocks = {block: torch.randn(2, 9, WIDE) for block in range(9)}
    codes = torch.randn(2, 9, CODES)
    return terms, student, Targets(student.logits, blocks, LENGTHS, None, torch.randn(2, 9, channels), codes)


def loss(terms: Objective, student: Output, teacher: Targets) -> torch.Tensor:
    every = terms(student, teacher, BATCH).terms.values()
    return sum((term.weight * term.total / term.count for term in every), start=torch.zeros(()))


def valid(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[:length] for row, length in zip(x, LENGTHS)])


def regression_by_hand(ours: torch.Tensor, theirs: torch.Tensor, weight: float) -> float:
    """DistilHuBERT's formula for one block, frame by frame."""
    frames = []
    for p, t in zip(valid(ours.detach()), valid(theirs)):
        cosine = float(p @ t / (p.norm() * t.norm()))
        frames.append(float((p - t).abs().sum()) / WIDE + weight * math.log1p(math.exp(-cosine)))
    return sum(frames) / len(frames)


def test_blocks_are_predicted_from_the_last_one() -> None:
    terms, student, teacher = made({"regression": {"blocks": [2, 8], "cosine_weight": 0.5}})
    module = terms["regression"]
    assert set(terms(student, teacher, BATCH).terms) == {"regression3_2", "regression3_8"}
    first, second = module.expansion(student.hidden[3]).split(DIM, 2)
    predicted = module.predictions[0](first), module.predictions[1](second)
    expected = sum(regression_by_hand(p, teacher.hidden[g], 0.5) for p, g in zip(predicted, (2, 8))) / 2
    assert loss(terms, student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert terms.teacher_blocks == [2, 8]


def test_blocks_are_predicted_from_those_they_are_mapped_to() -> None:
    terms, student, teacher = made({"regression": {"heads": "layers", "layers": [4, 0, 8]}})
    module = terms["regression"]
    assert set(terms(student, teacher, BATCH).terms) == {"regression1_4", "regression3_8"}
    pairs = zip(module.predictions, (1, 3), (4, 8))
    expected = [regression_by_hand(layer(student.hidden[i]), teacher.hidden[g], 1.0) for layer, i, g in pairs]
    assert loss(terms, student, teacher).item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_the_mean_of_blocks_is_predicted_from_the_last_one() -> None:
    """LightHuBERT's: with no cosine, L1 alone."""
    terms, student, teacher = made({"regression": {"heads": "mean", "blocks": [1, 5, 8], "cosine_weight": 0}})
    assert terms.teacher_blocks == [1, 5, 8]
    assert set(terms(student, teacher, BATCH).terms) == {"regression3_mean"}
    mean = (teacher.hidden[1] + teacher.hidden[5] + teacher.hidden[8]) / 3
    (layer,) = terms["regression"].predictions
    value = loss(terms, student, teacher)
    assert value.item() == pytest.approx(regression_by_hand(layer(student.hidden[3]), mean, 0.0), rel=1e-5)
    expected = F.l1_loss(valid(layer(student.hidden[3])), valid(mean))
    for ours, theirs in zip(*(torch.autograd.grad(x, layer.parameters()) for x in (value, expected))):
        torch.testing.assert_close(ours, theirs)


def test_groups_of_blocks_share_a_layer_that_starts_as_the_identity() -> None:
    """DPHuBERT's loss: L1 minus the cosine itself, between blocks of the same number."""
    settings = {"heads": "groups", "groups": [[0], [1, 3]], "identity": True, "cosine": "plain", "cosine_weight": 0.5}
    terms, student, teacher = made({"regression": settings})
    module = terms["regression"]
    assert terms.teacher_blocks == [0, 1, 3] and len(module.predictions) == 2
    assert all(torch.equal(layer.weight, torch.eye(WIDE, DIM)) and not layer.bias.any() for layer in module.predictions)
    torch.nn.init.normal_(module.predictions[1].weight)
    expected = 0.0
    for block, layer in ((0, 0), (1, 1), (3, 1)):
        ours, theirs = valid(module.predictions[layer](student.hidden[block]).detach()), valid(teacher.hidden[block])
        for p, t in zip(ours, theirs):
            distance = float((p - t).abs().sum()) / WIDE - 0.5 * float(p @ t / (p.norm() * t.norm()))
            expected += distance / len(ours) / 3
    assert loss(terms, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_group_of_blocks_that_the_student_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"groups names blocks \[4\], but the student has 3"):
        made({"regression": {"heads": "groups", "groups": [[1], [4]]}})


@pytest.mark.parametrize("channels", [4, 7])
@pytest.mark.parametrize(("kind", "reference"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_front_ends_are_compared_at_the_teachers_width(channels: int, kind: str, reference) -> None:
    terms, student, teacher = made({"front": {"kind": kind}}, channels)
    assert isinstance(terms["front"].map, torch.nn.Identity) == (channels == 4)
    expected = reference(valid(terms["front"].map(student.normed)), valid(teacher.normed))
    torch.testing.assert_close(loss(terms, student, teacher), expected)


@pytest.mark.parametrize("frames", ["all", "masked"])
def test_distributions_over_codewords_are_compared(frames: str) -> None:
    terms, student, teacher = made({"discriminative": {"frames": frames, "final_dim": 3, "temperature": 0.2}})
    head = terms["discriminative"].head
    assert head.codewords.shape == (CODES, 3) and head.temperature == 0.2
    ours, theirs = (valid(x.softmax(2)) for x in (head(student.hidden[-1]), teacher.codes))
    used = valid(student.masked) if frames == "masked" else torch.ones(len(ours), dtype=torch.bool)
    expected = (theirs * (theirs / ours).log()).sum(1)[used].mean()
    torch.testing.assert_close(loss(terms, student, teacher), expected)


OBJECTIVES = [
    {"regression": {"blocks": [2, 8]}}, {"regression": {"heads": "layers", "layers": [4, 0, 8]}},
    {"regression": {"heads": "mean", "blocks": [2, 8]}},
    {"front": {}}, {"front": {"kind": "l2"}}, {"discriminative": {}}, {"discriminative": {"frames": "masked"}},
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_padding_does_not_count(objective: dict) -> None:
    terms, student, teacher = made(objective)
    before = loss(terms, student, teacher)

    def elsewhere(x: torch.Tensor) -> torch.Tensor:
        return x.index_put((torch.tensor(1), torch.arange(5, 9)), torch.tensor(torch.nan))

    other = student._replace(hidden=tuple(map(elsewhere, student.hidden)), normed=elsewhere(student.normed))
    hidden = {g: elsewhere(x) for g, x in teacher.hidden.items()}
    theirs = teacher._replace(hidden=hidden, normed=elsewhere(teacher.normed), codes=elsewhere(teacher.codes))
    torch.testing.assert_close(loss(terms, other, theirs), before)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_all_parameters_of_a_term_learn(objective: dict) -> None:
    terms, student, teacher = made(objective, 7)
    loss(terms, student, teacher).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in terms.parameters())


def test_the_teachers_further_targets_are_fitted_to_the_students_frames() -> None:
    x = torch.arange(16.0).view(1, 8, 2)
    fitted = fit_frames(Targets(x, {}, torch.tensor([8]), None, x, 2 * x), 2, torch.tensor([4]), 5)
    for target, scale in ((fitted.normed, 1), (fitted.codes, 2)):
        assert target[0, :, 0].tolist() == [scale * value for value in (1.0, 5.0, 9.0, 13.0, 0.0)]


def test_two_steps_are_two_terms_after_each_other() -> None:
    terms, student, teacher = made({"front": {"updates": 3}, "regression": {"blocks": [2], "start": 3}})
    for terms.update_number, names in ((2, {"front"}), (3, {"regression3_2"})):
        assert set(terms(student, teacher, BATCH).terms) == names


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"regression": {"layers": [1, 2, 3]}}, "layers are not read with heads: last"),
        ({"regression": {"heads": "layers", "blocks": [1]}}, "blocks are not read with heads: layers"),
        ({"regression": {"heads": "groups"}}, "groups must name blocks, each once"),
        ({"regression": {"heads": "groups", "groups": [[1], [1]]}}, "groups must name blocks, each once"),
        ({"regression": {"groups": [[1]]}}, "groups are not read with heads: last"),
        ({"regression": {"blocks": []}}, "at least 1"),
        ({"regression": {"blocks": [2, 2]}}, "each of its entries once"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(objective: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.model_validate(objective)


def test_masked_frames_need_a_mask() -> None:
    student = Model.model_validate({"encoder": {"dim": DIM, "layers": 1, "heads": 2, "position_groups": 2}})
    with pytest.raises(ValueError, match=r"frames: masked, but no frame is: set model\.mask\.time_probability"):
        Settings.model_validate({"discriminative": {"frames": "masked"}}).discriminative.check_model(student)
