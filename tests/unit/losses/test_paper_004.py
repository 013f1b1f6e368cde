"""STaR's losses frame by frame, with padding that does not count, without parameters and in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from distill.batch import Batch, Output, Targets
from distill.config.losses import Objective as Settings
from distill.config.model import Model, Pruning
from distill.losses import term
from distill.losses.objective import Objective, fit_frames
from distill.losses.term import TermContext

DIM, WIDE, BLOCKS, FRAMES = 6, 12, 3, 9
HEADS, WIDE_HEADS = 2, 3
LENGTHS = torch.tensor([FRAMES, 5])
BATCH = Batch(("a", "b"), torch.empty(0), LENGTHS)


def shape(dim: int, heads: int, layers: int = BLOCKS, **changes: Any) -> Model:
    encoder = {"dim": dim, "layers": layers, "heads": heads, "position_groups": 2, **changes.pop("encoder", {})}
    return Model.model_validate({"encoder": encoder, **changes})


STUDENT, TEACHER = shape(DIM, HEADS), shape(WIDE, WIDE_HEADS, 4)


def made(objective: dict, dtype: torch.dtype = torch.float32) -> tuple[Objective, Output, Targets]:
    """An objective, and random states, queries and keys of student and teacher, behind each utterance's end too."""
    torch.manual_seed(0)
    terms = Objective(Settings.model_validate(objective), TermContext(STUDENT, TEACHER))
    draws = [torch.randn(2, FRAMES, DIM, dtype=dtype).requires_grad_() for _ in range(BLOCKS + 1)]
    pairs = {i: torch.randn(2, FRAMES, 2 * DIM, dtype=dtype).requires_grad_() for i in range(1, BLOCKS + 1)}
    student = Output(torch.empty(2, FRAMES, 3), LENGTHS, tuple(draws), attention=pairs)
    hidden = {g: torch.randn(2, FRAMES, WIDE, dtype=dtype) for g in range(5)}
    theirs = {g: torch.randn(2, FRAMES, 2 * WIDE, dtype=dtype) for g in range(1, 5)}
    return terms, student, Targets(student.logits, hidden, LENGTHS, attention=theirs)


def loss(terms: Objective, student: Output, teacher: Targets) -> torch.Tensor:
    every = terms(student, teacher, BATCH).terms.values()
    return sum((term.weight * term.total / term.count for term in every), start=torch.zeros(()))


def average_attention(pairs: torch.Tensor, heads: int, frame: int, length: int) -> list[float]:
    """Of one query of one utterance over the valid keys, as (B = 1) loops over heads and keys."""
    queries, keys = (x.detach().double() for x in pairs.chunk(2, 1))
    size, average = queries.shape[1] // heads, [0.0] * length
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = [math.exp(float(queries[frame, part] @ keys[key, part]) / math.sqrt(size)) for key in range(length)]
        average = [mean + score / sum(scores) / heads for mean, score in zip(average, scores)]
    return average


def attention_by_hand(student: Output, teacher: Targets, layer_map: dict[int, int]) -> float:
    """Eq. 1, a mean over frames: loops over blocks, utterances, frames, heads and keys."""
    assert student.attention is not None and teacher.attention is not None
    total = 0.0
    for i, g in layer_map.items():
        for row, length in enumerate(LENGTHS.tolist()):
            for frame in range(length):
                ours = average_attention(student.attention[i][row], HEADS, frame, length)
                theirs = average_attention(teacher.attention[g][row], WIDE_HEADS, frame, length)
                total += sum(t * math.log(t / s) for t, s in zip(theirs, ours))
    return total / int(LENGTHS.sum())


def gram_by_hand(x: torch.Tensor, y: torch.Tensor, norm: str) -> torch.Tensor:
    """Eq. 3 and 5 of one utterance (T, C) twice, product by product."""
    gram = torch.zeros(len(x), len(y), dtype=x.dtype)
    for i, first in enumerate(x):
        for j, second in enumerate(y):
            product = sum(a * b for a, b in zip(first, second))
            scale = {"none": 1.0, "dim": len(first), "cosine": first.norm() * second.norm()}[norm]
            gram[i, j] = product / scale
    return gram


def temporal_by_hand(student: Output, teacher: Targets, blocks: list[tuple], norm: str) -> torch.Tensor:
    """Eq. 4 and 6, a mean over pairs of frames; blocks: input and output, of student and of teacher."""
    total = torch.zeros((), dtype=torch.float64)
    for (x, y), (v, w) in blocks:
        for row, length in enumerate(LENGTHS.tolist()):
            ours = gram_by_hand(student.hidden[x][row, :length], student.hidden[y][row, :length], norm)
            theirs = gram_by_hand(teacher.hidden[v][row, :length], teacher.hidden[w][row, :length], norm)
            total = total + (ours - theirs).square().sum()
    return total / sum(length**2 for length in LENGTHS.tolist())


LAST = {"attention": {"layers": [0, 0, 4]}}
LAYER, INTRA = ([((i, i), (i, i)) for i in range(4)], [((i - 1, i), (i - 1, i)) for i in (1, 2, 3)])


@pytest.mark.parametrize(
    ("objective", "layer_map"), [({"attention": {}}, {1: 1, 2: 2, 3: 3}), (LAST, {3: 4})], ids=["all", "last"]
)
def test_average_attention_maps_are_compared(objective: dict, layer_map: dict[int, int]) -> None:
    terms, student, teacher = made(objective)
    assert terms.attention_map == layer_map and terms.teacher_blocks == []
    assert [*terms(student, teacher, BATCH).terms] == [f"attention{i}" for i in layer_map]
    expected = attention_by_hand(student, teacher, layer_map)
    assert loss(terms, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "dim", "cosine"])
@pytest.mark.parametrize(
    ("kinds", "blocks"), [(["layer"], LAYER), (["intra"], INTRA), (["layer", "intra"], [*LAYER, *INTRA])]
)
def test_gram_matrices_are_compared(kinds: list[str], blocks: list[tuple], norm: str) -> None:
    terms, student, teacher = made({"temporal": {"kinds": kinds, "norm": norm}}, torch.float64)
    assert terms.teacher_blocks == [0, 1, 2, 3]
    value = loss(terms, student, teacher)
    expected = temporal_by_hand(student, teacher, blocks, norm)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, reference = (torch.autograd.grad(x, student.hidden) for x in (value, expected))
    for one, other in zip(ours, reference):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_input_of_a_mapped_block_is_the_teachers_too() -> None:
    terms, student, teacher = made({"temporal": {"kinds": ["intra"], "layers": [0, 2, 4]}})
    assert terms.teacher_blocks == [1, 2, 3, 4]
    expected = temporal_by_hand(student, teacher, [((1, 2), (1, 2)), ((2, 3), (3, 4))], "dim")
    assert loss(terms, student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


def test_attention_has_the_gradient_of_whole_maps() -> None:
    terms, student, teacher = made(LAST, torch.float64)
    assert student.attention is not None and teacher.attention is not None

    def whole(pairs: torch.Tensor, heads: int) -> torch.Tensor:
        queries, keys = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in pairs.chunk(2, 2))
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        hidden = torch.arange(FRAMES) >= LENGTHS[:, None, None, None]
        return scores.masked_fill(hidden, -math.inf).softmax(3).mean(1)

    ours, theirs = whole(student.attention[3], HEADS), whole(teacher.attention[4], WIDE_HEADS)
    both = (torch.arange(FRAMES) < LENGTHS[:, None])[..., None] & (theirs > 0)
    divergence = (theirs[both] * (theirs[both] / ours[both]).log()).sum() / LENGTHS.sum()
    value = loss(terms, student, teacher)
    torch.testing.assert_close(value.double(), divergence, rtol=1e-5, atol=0)
    found, expected = (torch.autograd.grad(x, student.attention[3])[0] for x in (value, divergence))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


OBJECTIVES = [
    {"attention": {}}, LAST, {"temporal": {}}, {"temporal": {"norm": "cosine"}}, {"temporal": {}, "attention": {}},
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_rows_at_a_time_give_the_same_and_keep_nothing(objective: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    terms, student, teacher = made(objective)
    leaves = (*student.hidden, *(student.attention or {}).values())
    found = []
    for rows in (FRAMES, 4):
        monkeypatch.setattr(term, "ROWS", rows)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            value = loss(terms, student, teacher)
        assert not [x.shape for x in saved if x.ndim > 2 and x.shape[-1] == FRAMES], "no map is kept"
        found.append((value, *torch.autograd.grad(value, leaves, allow_unused=True)))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_padding_does_not_count(objective: dict) -> None:
    terms, student, teacher = made(objective)
    before = loss(terms, student, teacher)

    def elsewhere(x: torch.Tensor) -> torch.Tensor:
        """Other padding, and more of it."""
        return torch.nn.functional.pad(x.index_fill(1, torch.arange(5, 9), 7.0).where(inside, x), (0, 0, 0, 3))

    inside = torch.tensor([False, True])[:, None, None]
    hidden = {g: elsewhere(x) for g, x in teacher.hidden.items()}
    theirs = {g: elsewhere(x) for g, x in (teacher.attention or {}).items()}
    pairs = {i: elsewhere(x) for i, x in (student.attention or {}).items()}
    longer = torch.empty(2, FRAMES + 3, 3)
    other = student._replace(logits=longer, hidden=tuple(map(elsewhere, student.hidden)), attention=pairs)
    after = loss(terms, other, Targets(longer, hidden, LENGTHS, attention=theirs))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_no_parameters_are_added(objective: dict) -> None:
    assert [*made(objective)[0].parameters()] == []


def test_a_batch_is_the_count_weighted_mean_of_its_utterances() -> None:
    """As for all terms: ranks add totals and counts."""
    terms, student, teacher = made({"temporal": {}, "attention": {}})
    together = terms(student, teacher, BATCH).terms
    for row, length in enumerate(LENGTHS.tolist()):
        cut = [x[row : row + 1, :length] for x in student.hidden]
        pairs = {i: x[row : row + 1, :length] for i, x in (student.attention or {}).items()}
        ours = Output(torch.empty(1, length, 3), LENGTHS[row : row + 1], tuple(cut), attention=pairs)
        hidden = {g: x[row : row + 1, :length] for g, x in teacher.hidden.items()}
        theirs = {g: x[row : row + 1, :length] for g, x in (teacher.attention or {}).items()}
        alone = terms(ours, Targets(ours.logits, hidden, ours.lengths, attention=theirs), BATCH).terms
        together = {
            name: term._replace(total=term.total - alone[name].total, count=term.count - alone[name].count)
            for name, term in together.items()
        }
    for rest in together.values():
        assert rest.total.item() == pytest.approx(0, abs=1e-3) and not rest.count


def test_queries_and_keys_are_cut_to_the_students_frames() -> None:
    x = torch.arange(10.0).view(1, 5, 2)
    fitted = fit_frames(Targets(x, {}, torch.tensor([5]), attention={2: x}), 1, torch.tensor([4]), 4)
    assert fitted.attention is not None and fitted.attention[2].tolist() == x[:, :4].tolist()


CHUNKS = shape(
    DIM, HEADS, encoder={"position_causal": True}, streaming={"chunk_frames": 8, "history_frames": 8},
    front_end={"norm": "frame", "waveform": "none"},
)  # fmt: skip
WHISPER = shape(
    WIDE, WIDE_HEADS, 4, encoder={"positions": "sinusoid", "feature_norm": False},
    front_end={
        "input": "log_mel", "mels": 8, "layers": [[8, 3, 1], [8, 3, 2]], "norm": "frame", "norm_layers": "none",
        "waveform": "none", "tail": 50,
    },
)  # fmt: skip
WAVLM = shape(WIDE, WIDE_HEADS, 4, encoder={"relative_buckets": 8})
REUSING = shape(DIM, HEADS, encoder={"attention_of": [0, 1, 0]})
GATED = STUDENT.model_copy(update={"pruning": Pruning(units=("heads",))})
JOINED = shape(DIM, HEADS, encoder={"time_reduction": 2})
COARSE = shape(DIM, HEADS, front_end={"layers": [[8, 640, 640]]})


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "message"),
    [
        ({"attention": {}}, CHUNKS, TEACHER, "attention: the student sees chunks of 8 frames.* give both full context"),
        ({"attention": {}}, STUDENT, WAVLM, "the teacher adds gated relative positions.* use the term temporal"),
        ({"attention": {}}, STUDENT, WHISPER, "the teacher also attends to 50 frames of silence.* term temporal"),
        ({"attention": {}}, GATED, TEACHER, "gates of the student close heads.* use the term temporal"),
        ({"attention": {}}, REUSING, TEACHER, "blocks of the student take maps from others.* use the term temporal"),
        ({"attention": {}}, JOINED, TEACHER, "maps of the student are of every 2 frames together"),
        ({"attention": {}}, COARSE, TEACHER, "student's are 40 ms apart and the teacher's 20 ms; give the student"),
        ({"temporal": {}}, COARSE, TEACHER, "temporal: .* need the same frames.*40 ms apart and the teacher's 20 ms"),
        ({"temporal": {"layers": [1, 2, 5]}}, STUDENT, TEACHER, r"temporal names teacher blocks \[5\]"),
        ({"attention": {"layers": [0, 0, 9]}}, STUDENT, TEACHER, r"attention names teacher blocks \[9\]"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_compared_are_refused(objective: dict, student: Model, teacher: Model, message) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(Settings.model_validate(objective), TermContext(student, teacher))


def test_gram_matrices_serve_streaming_students_and_wavlm() -> None:
    assert Objective(Settings.model_validate({"temporal": {}}), TermContext(CHUNKS, WAVLM)).teacher_blocks == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("norm", ["none", "cosine"])
def test_a_slower_student_has_the_gram_matrices_of_averaged_frames(norm: str) -> None:
    """Where it is asked for: a student's frame is compared with the mean of the teacher's two."""
    coarse = shape(DIM, HEADS, front_end={"layers": [[8, 640, 640]]})
    terms = Objective(
        Settings.model_validate({"temporal": {"average": True, "norm": norm}}), TermContext(coarse, TEACHER)
    )
    _, student, teacher = made({"temporal": {}}, torch.float64)
    frames = {g: torch.randn(2, 2 * FRAMES, WIDE, dtype=torch.float64) for g in teacher.hidden}
    means = {g: torch.stack([(x[:, 2 * t] + x[:, 2 * t + 1]) / 2 for t in range(FRAMES)], 1) for g, x in frames.items()}
    value = loss(terms, student, Targets(torch.empty(2, 2 * FRAMES, 3), frames, 2 * LENGTHS))
    expected = temporal_by_hand(student, teacher._replace(hidden=means), [*LAYER, *INTRA], norm)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(*(torch.autograd.grad(x, student.hidden) for x in (value, expected))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"student's are 20 ms apart and the teacher's 40 ms"):
        Objective(Settings.model_validate({"temporal": {"average": True}}), TermContext(STUDENT, coarse))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"temporal": {"kinds": []}}, "at least 1"), ({"temporal": {"kinds": ["intra"] * 2}}, "each of its entries"),
        ({"temporal": {"kinds": ["layers"]}}, "'layer' or 'intra'"), ({"temporal": {"norm": "d"}}, "'dim' or 'cosine'"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(objective: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.model_validate(objective)
