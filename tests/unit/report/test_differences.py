"""Which decodings are compared, and their table, from fabricated files and from real scoring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.report import differences
from distill.report.collect import collect
from distill.report.experiments import page, terminal_report
from distill.report.runs import read_runs
from distill.scoring.compare import compare_folders, write_speakers
from distill.scoring.wer import score
from local.report import compared
from tests.support.results import facts, training, write_decoding

NAMES = [f"{speaker}-{i}" for speaker in "abcdefghijkl" for i in (1, 2)]
WRONG = {"teacher": 1, "sn": 2, "ss": 3, "single": 4, "m2": 2}


def experiment(exp: Path, name: str, stage: int, chunk: int = 0, init: str = "teacher") -> None:
    training(exp / name, stage, chunk, init)
    for mode in ("offline", "streaming") if chunk else ("offline",):
        folder = exp / name / f"decode_test-clean_{mode}_1best"
        folder.mkdir()
        words = ["A", "B", "C", "D", "E"]
        wrong = WRONG[name]
        scored = [score(u, words, ["X"] * wrong + words[wrong:] if u < "l-2" else words) for u in NAMES]
        write_decoding(folder, "test-clean", f"{mode}-1best", scored, facts(name, mode, "1best"))
        write_speakers(folder, {u: u[0] for u in NAMES})


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    experiment(tmp_path, "teacher", 6)
    experiment(tmp_path, "sn", 8)
    experiment(tmp_path, "m2", 8)
    experiment(tmp_path, "single", 8, chunk=16)
    experiment(tmp_path, "ss", 9, chunk=16, init="sn")
    return tmp_path


def test_steps_objectives_and_modes_are_compared(exp: Path) -> None:
    labels = [differences.label_of(vars(p.ours), vars(p.theirs)) for p in differences.pairs(read_runs(exp))]
    steps = ["sn - teacher", "ss - sn", "single - ss", "m2 - sn"]
    assert labels == [*steps, "single: streaming - offline", "ss: streaming - offline"]


def test_what_was_not_decoded_is_not_compared(exp: Path) -> None:
    (exp / "sn/decode_test-clean_offline_1best/wer.json").unlink()
    experiments = {p.ours.experiment for p in differences.pairs(read_runs(exp))}
    assert experiments == {"single", "ss"}


def test_the_table_has_differences_of_the_decodings(exp: Path) -> None:
    runs = read_runs(exp)
    rows = list(compared(exp, runs))
    cells = {row[0]: row[1:] for row in differences.table(rows).rows}
    assert cells["sn - teacher"][:2] == ("test-clean", "+19.17")  # 23 words of 120
    assert cells["sn - teacher"][4] == "0 %"
    assert cells["ss: streaming - offline"] == ("test-clean", "+0.00", "[+0.00, +0.00]", "[+0.00, +0.00]", "equal", "1")
    by_speaker = rows[0]["speaker"]
    assert cells["sn - teacher"][3] == f"[{by_speaker['low']:+.2f}, {by_speaker['high']:+.2f}]"
    assert by_speaker == compare_folders(*differences.pairs(runs)[0].folders(exp))["speaker"]


def test_the_file_brings_the_section_back(exp: Path) -> None:
    runs = read_runs(exp)
    assert differences.sections(differences.read(exp, runs)) == []
    assert differences.TITLE not in terminal_report(exp, runs, [])
    rows = list(compared(exp, runs))
    differences.write(exp, rows)
    assert differences.read(exp, runs) == rows
    text = page(exp, "Results")
    assert text.index("## Differences of word error rates") < text.index("## Training")
    assert "| ss - sn | test-clean | +19.17 |" in text
    assert max(map(len, terminal_report(exp, runs, rows).splitlines())) <= 100


def test_unknown_speakers_are_a_dash(exp: Path) -> None:
    for path in exp.glob("*/decode_*/utt2spk"):
        path.unlink()
    rows = list(compared(exp, read_runs(exp)))
    assert {row[4] for row in differences.table(rows).rows} == {"-"}


def test_collected_results_keep_their_differences(exp: Path, tmp_path: Path) -> None:
    differences.write(exp, list(compared(exp, read_runs(exp))))
    copies = collect(exp, tmp_path / "results", tmp_path)
    assert tmp_path / "results/differences.json" in copies
    runs = read_runs(tmp_path / "results")
    assert differences.read(tmp_path / "results", runs) == differences.read(exp, runs)


def test_a_stale_file_is_an_error(exp: Path) -> None:
    differences.write(exp, list(compared(exp, read_runs(exp))))
    path = exp / "sn/decode_test-clean_offline_1best/wer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wer": 7.0}))
    with pytest.raises(ValueError, match=r"for sn, test-clean, offline, wer\.json has 7\.0; run stage 13 again"):
        differences.read(exp, read_runs(exp))


def test_other_utterances_are_passed_over_with_a_warning(exp: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = exp / "teacher/decode_test-clean_offline_1best/recogs-test-clean-offline-1best.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    rows = list(compared(exp, read_runs(exp)))
    assert [row["theirs"]["experiment"] for row in rows] == ["sn", "ss", "sn", "single", "ss"]
    assert "not compared: the two systems were scored on different utterances" in caplog.text
