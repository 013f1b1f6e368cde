"""Differences of error rates, against all draws of a tiny test set; matched pairs against scipy."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distill.scoring import bootstrap, compare, wer
from distill.scoring.wer import Scored, score
from tools import compare as tool

WORDS = list("ABCDEFGH")


def system(errors: Iterable[int], lengths: Iterable[int]) -> list[Scored]:
    """Utterances u0, u1, ... of these lengths, with that many words wrong in each."""
    return [
        score(f"u{i}", WORDS[:length], ["X"] * wrong + WORDS[wrong:length])
        for i, (wrong, length) in enumerate(zip(errors, lengths))
    ]


def every_draw(ours: Sequence[Scored], theirs: Sequence[Scored], groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Differences of all equally likely draws of groups of utterances, by the definition."""
    differences = []
    for drawn in itertools.product(groups, repeat=len(groups)):
        places = [i for group in drawn for i in group]
        words = sum(len(ours[i].reference) for i in places)
        more = sum(ours[i].errors for i in places) - sum(theirs[i].errors for i in places)
        differences.append(100 * more / words)
    return np.array(differences)


A = system([0, 3, 1, 2, 0], [4, 8, 2, 6, 5])
B = system([1, 2, 2, 4, 0], [4, 8, 2, 6, 5])
SPEAKERS = {"u0": "x", "u1": "x", "u2": "y", "u3": "z", "u4": "y"}


@pytest.mark.parametrize(("speakers", "groups"), [(None, [[0], [1], [2], [3], [4]]), (SPEAKERS, [[0, 1], [2, 4], [3]])])
def test_draws_follow_the_exact_distribution(speakers: dict | None, groups: list) -> None:
    exact = every_draw(A, B, groups)
    found = compare.paired_bootstrap(A, B, speakers, samples=40_000)
    assert found.units == len(groups)
    assert found.difference == pytest.approx(100 * (6 - 9) / 25)
    assert found.better == pytest.approx((exact < -1e-9).mean(), abs=0.01)
    assert found.worse == pytest.approx((exact > 1e-9).mean(), abs=0.01)
    for share, bound in ((0.025, found.low), (0.975, found.high)):
        assert (exact < bound - 0.01).mean() <= share + 0.005
        assert (exact <= bound + 0.01).mean() >= share - 0.005


def test_blocks_change_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(14).reshape(7, 2)
    whole = bootstrap.resampled(counts, 50, seed=3)
    monkeypatch.setattr(bootstrap, "BLOCK", 30)
    assert np.array_equal(whole, bootstrap.resampled(counts, 50, seed=3))
    assert not np.array_equal(whole, bootstrap.resampled(counts, 50, seed=4))


def test_groups_are_summed() -> None:
    counts = np.array([[1, 10], [2, 20], [4, 40]])
    assert bootstrap.grouped(counts, ["x", "y", "x"]).tolist() == [[5, 50], [2, 20]]


def test_exchanged_systems_have_the_opposite_difference() -> None:
    there, back = compare.paired_bootstrap(A, B), compare.paired_bootstrap(B, A)
    assert (there.difference, there.low, there.high) == (-back.difference, -back.high, -back.low)
    assert (there.better, there.worse) == (back.worse, back.better)


def test_order_of_utterances_is_no_matter() -> None:
    assert compare.paired_bootstrap(A, B) == compare.paired_bootstrap(A[::-1], B[2:] + B[:2])


def test_a_system_is_no_better_than_itself() -> None:
    found = compare.paired_bootstrap(A, A)
    assert (found.difference, found.low, found.high, found.better, found.worse) == (0, 0, 0, 0, 0)
    assert compare.matched_pairs(A, A) == compare.MatchedPairs(3, 0.0, 1.0)


def test_other_utterances_are_an_error_that_names_them() -> None:
    with pytest.raises(ValueError, match=r"1 only in the first \(u4\), 0 only in the second"):
        compare.paired_bootstrap(A, B[:4])


def test_utterances_without_speaker_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"3 utterances have no speaker \(u2, u3, u4\)"):
        compare.paired_bootstrap(A, B, {"u0": "x", "u1": "x"})


def test_one_speaker_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="one speaker only"):
        compare.paired_bootstrap(A, B, dict.fromkeys(SPEAKERS, "x"))


def test_a_set_without_words_is_an_error() -> None:
    empty = [score("u", [], ["A"])]
    with pytest.raises(ValueError, match="no reference words"):
        compare.paired_bootstrap(empty, empty)


# Matched pairs


def test_two_right_words_divide_segments() -> None:
    reference = list("ABCDEFGH")
    one = score("u", reference, list("XBCDYFGH"))  # three right words between A and E
    assert compare.segments(one, score("u", reference, reference)) == [(1, 0), (1, 0)]
    near = score("u", reference, list("ABZDEFGH"))  # B, and D: single right words
    assert compare.segments(one, near) == [(2, 1)]


def test_insertions_belong_between_words() -> None:
    reference = list("ABCD")
    ends = score("u", reference, list("XABCDY"))
    assert compare.segments(ends, score("u", reference, reference)) == [(1, 0), (1, 0)]
    assert compare.segments(ends, score("u", reference, list("ABXCD"))) == [(1, 0), (0, 1), (1, 0)]


def random_pair(rng: np.random.Generator) -> tuple[Scored, Scored]:
    words = [f"w{i}" for i in range(rng.integers(0, 12))]
    halves = []
    for _ in range(2):
        heard: list[str] = []
        for word in words:
            kind = rng.choice(["right", "sub", "del", "ins"], p=[0.7, 0.1, 0.1, 0.1])
            heard += {"right": [word], "sub": ["x"], "del": [], "ins": [word, "y"]}[str(kind)]
        halves.append(score("u", words, heard))
    return halves[0], halves[1]


def stretches(ours: Scored, theirs: Scored) -> int:
    """Number of segments, by a regular expression over right words (w), wrong words and insertions (E)."""
    places = compare._errors_by_place(ours) + compare._errors_by_place(theirs)
    text = "".join(("E" if wrong else "w" if place % 2 else "") for place, wrong in enumerate(places))
    return sum("E" in part for part in re.split("w{2,}", text))


def test_segments_contain_every_error_once() -> None:
    rng = np.random.default_rng(1)
    for ours, theirs in (random_pair(rng) for _ in range(300)):
        found = compare.segments(ours, theirs)
        assert (sum(a for a, _ in found), sum(b for _, b in found)) == (ours.errors, theirs.errors)
        assert len(found) == stretches(ours, theirs)


def test_matched_pairs_equal_scipy() -> None:
    rng = np.random.default_rng(2)
    pairs = [random_pair(rng) for _ in range(200)]
    ours, theirs = ([score(f"u{i}", p[k].reference, p[k].hypothesis) for i, p in enumerate(pairs)] for k in (0, 1))
    differences = [a - b for pair in pairs for a, b in compare.segments(*pair)]
    expected = stats.ttest_1samp(differences, 0).statistic
    found = compare.matched_pairs(ours, theirs)
    assert found is not None and found.z is not None and found.p is not None
    assert (found.segments, found.z) == (len(differences), pytest.approx(expected, abs=5e-4))
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(expected)), rel=5e-3)


def test_no_matched_pairs_without_variance_or_on_other_references() -> None:
    worse = [score("u", ["A", "B"], ["X", "B"])]
    assert compare.matched_pairs(worse, [score("u", ["A", "B"], ["A", "B"])]) == compare.MatchedPairs(1, None, None)
    assert compare.matched_pairs(worse, [score("u", ["A", "C"], ["A", "C"])]) is None


# Files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, scored in (("a", A), ("b", B)):
        (tmp_path / name).mkdir()
        wer.write_results(tmp_path / name, "test", "offline-1best", scored)
        compare.write_speakers(tmp_path / name, SPEAKERS)
    return tmp_path / "a", tmp_path / "b"


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    odd = [score("a-1", ["IT'S", '"', "Ä\u2028"], ["IT'S"]), score("b", ["*", "A"], ["A"]), score("c: x", [], ["\\"])]
    wer.write_results(tmp_path, "test", "offline-1best", odd)
    assert wer.read_results(tmp_path) == odd
    assert wer.alignment(odd[1]) == [("*", None), ("A", "A")]


@pytest.mark.parametrize("text", ["u0:\tref=['A'\n", "nothing\n", "u0:\tref=['A']\n"])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "recogs-test-x.txt").write_text(text)
    with pytest.raises(ValueError, match=r"recogs-test-x\.txt"):
        wer.read_results(tmp_path)


def test_a_folder_without_results_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stage 10"):
        wer.read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="stage 10"):
        compare.read_speakers(tmp_path)


def test_speakers_are_read_as_they_were_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert compare.read_speakers(folders[0]) == SPEAKERS
    (tmp_path / "utt2spk").write_text("u0 x\nu1\n")
    with pytest.raises(ValueError, match="line 2: expected UTTERANCE SPEAKER, got 'u1'"):
        compare.read_speakers(tmp_path)


def test_folders_are_compared_by_utterance_and_speaker(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare.compare_folders(*folders)["speaker"] is None  # three are too few
    monkeypatch.setattr(compare, "FEWEST", 3)
    found = compare.compare_folders(*folders)
    assert found["utterance"]["units"] == 5
    assert found["speaker"]["units"] == 3
    (folders[0] / "utt2spk").unlink()
    (folders[1] / "utt2spk").unlink()
    assert compare.compare_folders(*folders)["speaker"] is None


def test_the_command_prints_and_writes_the_same_figures(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["compare.py", *map(str, folders), "--by", "speaker", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    tool.main()
    found, printed = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    assert f"A - B  -12.000 %, 95 % interval [{found['low']:+.3f}, {found['high']:+.3f}]" in printed
    assert "3 speakers, rough: below 10)" in printed
    assert (found["by"], found["matched_pairs"]["segments"]) == ("speaker", 4)
