"""Tables of language models from fabricated files."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.report import differences, language_models
from distill.report.experiments import terminal_report
from distill.report.runs import read_runs
from distill.scoring.compare import compare_folders, write_speakers
from distill.scoring.wer import score
from tests.support.results import facts, training, write, write_decoding

NAMES = [f"{speaker}-{i}" for speaker in "abcdefghijkl" for i in (1, 2)]
SETS = ("test-clean", "test-other")
WORDS = ["A", "B", "C", "D", "E"]
WRONG = {
    ("teacher", "1best"): 3, ("teacher", "transformer-lm"): 1, ("teacher", "nbest-rescoring"): 3,
    ("ss", "1best"): 2, ("ss", "transformer-lm"): 2, ("ss", "nbest-rescoring"): 4,
}  # fmt: skip
LMS = {"1best": "3gram", "nbest-rescoring": "4gram", "transformer-lm": "transformer"}
TUNED = {  # dev's errors before and after, weights, errors of the best of each list
    "transformer-lm": (9, 4, {"graph": 0.5, "lm": 0.75, "word": -1.0}, 12),
    "nbest-rescoring": (99, 99, {"graph": 1.0, "lm": 0.0, "word": 0.0}, 48),
}


def decode(exp: Path, name: str, mode: str, method: str) -> None:
    for test_set in SETS:
        folder = exp / name / f"decode_{test_set}_{mode}_{method}"
        folder.mkdir()
        wrong = WRONG[name, method]
        content = facts(name, mode, method, lm=LMS[method])
        if method in TUNED:
            before, errors, weights, oracle = TUNED[method]
            tuning = {"set": "dev", "mode": mode, "utterances": 9, "ref_words": 99, "before": before, "errors": errors,
                      "oracle": 0}  # fmt: skip
            content |= {"weights": weights, "tuning": tuning, "nbest": 30, "oracle_errors": oracle}
        hypothesis = ["X"] * wrong + WORDS[wrong:]
        write_decoding(folder, test_set, f"{mode}-{method}", [score(u, WORDS, hypothesis) for u in NAMES], content)
        write_speakers(folder, {u: u[0] for u in NAMES})


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    for name, stage, chunk, init in (("teacher", 6, 0, None), ("sn", 8, 0, "teacher"), ("ss", 9, 16, "sn")):
        training(tmp_path / name, stage, chunk, init)
    for method in LMS:
        decode(tmp_path, "teacher", "offline", method)
        decode(tmp_path, "ss", "streaming", method)
    models = {
        "3gram": {"perplexity": 43.138},
        "4gram": {"perplexity": 44.4},
        "transformer": {"perplexity": 25.9, "unknown": 3},
    }
    summary = {"set": "dev", "sentences": 9, "left_out": 0, "models": models}
    write(tmp_path / "lm/perplexity/summary.json", summary)
    sizes = {"trunk": 900_000, "head": 100_000, "training_only": 0}
    training(tmp_path / "lm", 11, params=sizes, updates=600)
    return tmp_path


def compared(exp: Path) -> list[dict]:
    runs = read_runs(exp)
    return [differences.row(pair, compare_folders(*pair.folders(exp))) for pair in differences.pairs(runs)]


def test_the_language_model_is_no_recogniser(exp: Path) -> None:
    assert [run.name for run in read_runs(exp)] == ["teacher", "sn", "ss"]
    assert language_models.files(exp) == ["lm/result.json", "lm/perplexity/summary.json"]


def test_perplexities_stand_beside_each_other(exp: Path) -> None:
    table = language_models.perplexity_table(exp)
    assert table is not None and table.head[1] == "perplexity, dev"
    assert table.rows == (
        ("3gram", "43.14", "-", "-", "-", "-"), ("4gram", "44.40", "-", "-", "-", "-"),
        ("transformer", "25.90", "3", "1.00", "600", "1.5"),
    )  # fmt: skip


def test_systems_stand_beside_table_5(exp: Path) -> None:
    table = language_models.systems_table(read_runs(exp))
    assert table is not None
    rows = {(row[1], row[3]): row for row in table.rows}
    assert list(rows) == [(name, method) for name in ("teacher", "ss") for method in LMS]
    teacher, student = rows["teacher", "transformer-lm"], rows["ss", "transformer-lm"]
    assert (teacher[2], teacher[4], teacher[-2:]) == ("transformer", "no", ("2.20", "4.26"))
    assert (student[0], student[4], student[-2:]) == ("student in step 2", "yes/150ms", ("2.50", "5.27"))
    assert rows["teacher", "1best"][-2:] == ("-", "-"), "the paper has no 3-gram"
    assert rows["ss", "nbest-rescoring"][2] == "4gram" and rows["ss", "nbest-rescoring"][-2:] == ("3.54", "7.57")
    assert teacher[6] == "20.00 [20.0-20.0]"


def test_every_language_model_has_its_difference_and_p(exp: Path) -> None:
    table = language_models.gains_table(read_runs(exp), compared(exp))
    assert table is not None and len(table.rows) == 8
    rows = {row[:3]: dict(zip(table.head, row)) for row in table.rows}
    better = rows["teacher", "transformer", "test-clean"]
    assert (better["diff."], better["by utterance"]) == ("-40.00", "[-40.00, -40.00]")
    assert (better["dev errors"], better["graph, LM, word"]) == ("9 before, 4 after", "0.5, 0.75, -1")
    assert better["oracle"] == "10.00"  # 12 of 24 * 5 words
    assert rows["teacher", "4gram", "test-other"]["p"] == "1"
    assert rows["ss", "4gram", "test-clean"]["diff."] == "+40.00"


def test_differences_name_the_methods(exp: Path) -> None:
    labels = {differences.label_of(row["ours"], row["theirs"]) for row in compared(exp)}
    assert {"teacher: transformer-lm - 1best", "ss: transformer-lm - 1best"} <= labels
    differences.write(exp, compared(exp))
    assert len(differences.read(exp, read_runs(exp))) == len(compared(exp))


def test_reports_have_it_and_fit_the_terminal(exp: Path) -> None:
    runs = read_runs(exp)
    titles = [title for title, _ in language_models.sections(exp, runs, compared(exp))]
    assert titles[0] == "Language models" and "table 5" in titles[1] and len(titles) == 3
    assert not any("transformer" in row[0] for row in differences.table(compared(exp)).rows), "it stands in its own"
    assert max(map(len, terminal_report(exp, runs, compared(exp)).splitlines())) <= 100


def test_without_one_there_is_no_section(exp: Path) -> None:
    (exp / "lm/result.json").unlink()
    for method in ("transformer-lm", "nbest-rescoring"):
        for path in exp.glob(f"*/decode_*_{method}/wer.json"):
            path.unlink()
    runs = read_runs(exp)
    assert language_models.sections(exp, runs, []) == []
    assert language_models.files(exp) == []
