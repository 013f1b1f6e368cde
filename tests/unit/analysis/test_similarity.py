"""SVCCA and CKA against scikit-learn, sums over pairs of frames, and what they leave out of account."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

from distill.analysis import similarity
from distill.analysis.hidden import paired_states
from distill.batch import Batch, pad_waves
from distill.report.plots import heat_maps
from tests.support.models import FBANK, WAVE, build

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((200, 4))
Y = X[:, :3] @ RANDOM.standard_normal((3, 3)) + RANDOM.standard_normal((200, 3))
ROTATION = np.linalg.qr(RANDOM.standard_normal((4, 4)))[0]


def test_mean_correlation_is_that_of_cca(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "VARIANCE", 1 - 1e-9)  # all directions
    ours, theirs = CCA(3, max_iter=10_000, tol=1e-10).fit_transform(X, Y)
    expected = np.mean([np.corrcoef(ours[:, k], theirs[:, k])[0, 1] for k in range(3)])
    found = similarity.mean_correlation(similarity.directions(X), similarity.directions(Y))
    assert found == pytest.approx(expected, abs=1e-6)


def test_directions_of_little_variance_are_left_out() -> None:
    strong = RANDOM.standard_normal((200, 2))
    noise = 0.01 * RANDOM.standard_normal((200, 3))
    kept = similarity.directions(np.hstack([strong, noise]))
    assert kept.shape == (200, 2)
    assert similarity.mean_correlation(kept, similarity.directions(strong)) == pytest.approx(1, abs=1e-3)


def test_cka_compares_the_frames_similarities_to_each_other() -> None:
    """HSIC of the centred Gram matrices, Kornblith et al. 2019, Eq. 3."""
    centre = np.eye(200) - 1 / 200
    k, m = (centre @ x @ x.T @ centre for x in (X, Y))
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert similarity.linear_cka(X, Y) == pytest.approx(expected)


def test_rotated_and_scaled_states_are_alike_and_unrelated_ones_are_not() -> None:
    other = RANDOM.standard_normal((200, 4))
    for values in similarity.by_block([X, other], [3 * X @ ROTATION + 1]).values():
        assert values.shape == (2, 1) and values[0, 0] == pytest.approx(1) and values[1, 0] < 0.3


def test_a_block_that_is_the_same_in_every_frame_is_similar_to_none() -> None:
    for values in similarity.by_block([np.ones((200, 4))], [X, np.ones((200, 2))]).values():
        assert values.tolist() == [[0.0, 0.0]]


def test_too_few_frames_for_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"39 frames of up to 4 channels are too few .* at least 40 frames"):
        similarity.by_block([X[:39]], [Y[:39]])


def test_states_of_two_models_are_of_the_same_frames(tmp_path: Path) -> None:
    teacher = build(WAVE.model_copy(update={"layers": ((16, 10, 5), (16, 8, 4), (24, 8, 4))}), False)
    student = build(FBANK, False)  # of an eighth of the frames
    assert student.front_end.hop % teacher.front_end.hop == 0
    torch.manual_seed(0)
    wave, samples = pad_waves([torch.randn(16000), torch.randn(9000)])
    batch = Batch(("a", "b"), wave, samples)
    theirs, ours = paired_states(teacher, student, [batch], frames=5)
    assert len(theirs) == len(ours) == 3 and all(len(x) == 10 for x in (*theirs, *ours))
    output = student(wave, samples)
    for row, length, states in zip(output.hidden[2], output.lengths, np.split(ours[2], 2)):
        place = [int((row == torch.from_numpy(x).float()).all(1).nonzero()[0, 0]) for x in states]
        assert sorted(set(place)) == place and place[-1] < length
    measures = similarity.by_block([np.tile(x, (16, 1)) for x in theirs], [np.tile(x, (16, 1)) for x in ours])
    heat_maps(measures, "student", "teacher", tmp_path / "maps")
    assert (tmp_path / "maps.svg").is_file() and (tmp_path / "maps.png").is_file()
