"""The tables, from fabricated result.json and wer.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distill.report import paper, recognition
from distill.report.collect import collect, portable
from distill.report.experiments import page, terminal_report
from distill.report.runs import GRAPH, read_runs
from distill.report.runs import test_sets as sets_of
from distill.report.table import Table
from tests.support.results import decoding, training

RATES = {"teacher": 2.0, "sn": 2.5, "ss": 3.0, "single": 4.0, "m1": 5.0}


def experiment(
    folder: Path, name: str, stage: int, chunk: int = 0, init: str | None = None, size: int = 1_000_000
) -> None:
    command = f"/repo/local/train.py --exp-dir /repo/exp --data-dir /else/where/{name}"
    sizes = {"trunk": size, "head": 10_000, "training_only": 500}
    training(folder / name, stage, chunk, init, params=sizes, command=command)
    for mode in ("offline", "streaming") if chunk else ("offline",):
        for test_set in ("test-clean", "test-other"):
            for method in ("1best", "greedy"):
                decoding(folder / name, test_set, mode, method, RATES[name])


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    folder = tmp_path / "repo/exp"
    experiment(folder, "teacher", 6, size=4_000_000)
    experiment(folder, "sn", 8, init="teacher")
    experiment(folder, "single", 8, chunk=16, init="teacher")
    experiment(folder, "ss", 9, chunk=16, init="sn")
    return folder


def test_rows_stand_by_stage_and_name(exp: Path) -> None:
    table = recognition.error_table(read_runs(exp), GRAPH)
    rows = [row[:2] for row in table.rows]
    streams = [("single", "offline"), ("single", "streaming")]
    assert rows == [("teacher", "offline"), *streams, ("sn", "offline"), ("ss", "offline"), ("ss", "streaming")]


def test_no_error_at_all_is_given_a_bound(exp: Path) -> None:
    assert recognition.zero_error_notes(read_runs(exp), GRAPH) == []
    decoding(exp / "ss", "test-clean", "streaming", "1best", 0.0, ref_words=1500)
    (note,) = recognition.zero_error_notes(read_runs(exp), GRAPH)
    assert note.startswith("ss, test-clean: no error in 1,500 words, so the rate is below 0.20 % with 95 % confidence")


def test_a_row_has_size_compression_and_rates(exp: Path) -> None:
    table = recognition.error_table(read_runs(exp), GRAPH)
    row = dict(zip(table.head, next(r for r in table.rows if r[0] == "sn")))
    assert row["params/M"] == "1.01"
    assert row["smaller"] == "4.0x"  # 4.01 M / 1.01 M
    assert row["test-clean"] == "2.50 [2.0-3.0]"


def test_what_was_not_decoded_is_a_dash(exp: Path) -> None:
    (exp / "sn/decode_test-other_offline_1best/wer.json").unlink()
    table = recognition.error_table(read_runs(exp), GRAPH)
    assert next(r for r in table.rows if r[0] == "sn")[-2:] == ("2.50 [2.0-3.0]", "-")


def test_half_a_decoding_is_none(exp: Path) -> None:
    folder = decoding(exp / "sn", "test-dev", "offline", "1best", 9.0)
    folder.rename(folder.with_name(folder.name + ".tmp"))
    assert sets_of(read_runs(exp)) == ["test-clean", "test-other"]


def test_the_terminal_table_fits(exp: Path) -> None:
    assert max(map(len, terminal_report(exp, read_runs(exp), [], 100).splitlines())) <= 100


def test_a_wide_table_is_cut_and_repeats_its_first_columns() -> None:
    head = ("model", *(f"column-{i}" for i in range(9)))
    lines = Table(head, (("sn", *"123456789"),)).terminal(40)
    assert max(map(len, lines)) <= 40
    assert [line.split()[0] for line in lines if line].count("sn") == lines.count("") + 1
    assert set(re.findall(r"column-\d", "\n".join(lines))) == set(head[1:])


def test_streaming_is_compared_with_offline(exp: Path) -> None:
    decoding(exp / "ss", "test-other", "streaming", "1best", 3.5, sub=4)
    notes = recognition.streaming_notes(read_runs(exp))
    assert notes == [
        "single: streaming and offline make the same errors in all 4 decodings",
        "ss: streaming differs from offline on test-other, 1best: 3.500 % against 3.000 %",
    ]


def test_steps_follow_from_settings_not_names(exp: Path) -> None:
    names = {step: run.name for step, run in paper.steps(read_runs(exp)).items()}
    assert names == {"teacher": "teacher", "single step": "single", "first step": "sn", "second step": "ss"}


def test_the_first_step_needs_no_second(exp: Path) -> None:
    experiment(exp, "m1", 8, init="teacher")
    runs = [run for run in read_runs(exp) if run.name != "ss"]
    assert paper.steps(runs)["first step"].name == "sn"


def test_pre_training_is_no_teacher_and_fine_tuning_no_second_step(exp: Path) -> None:
    training(exp / "hubert", 5)
    training(exp / "dt", 8)
    experiment(exp, "m1", 9, init="dt")
    names = {step: run.name for step, run in paper.steps(read_runs(exp)).items()}
    assert names == {"teacher": "teacher", "single step": "single", "first step": "sn", "second step": "ss"}
    agnostic = [run for run in read_runs(exp) if run.name in ("hubert", "dt", "m1")]
    assert "second step" not in paper.steps(agnostic) and "first step" not in paper.steps(agnostic)


def test_step_table_stands_beside_the_papers(exp: Path) -> None:
    rows = {row[0]: row[1:] for row in paper.step_table(read_runs(exp)).rows}
    assert rows["second step"] == ("ss", "3.00 [2.5-3.5]", "3.00 [2.5-3.5]", "12.90", "19.25", "3.54", "7.57")
    assert rows["single step"][-2:] == ("-", "-")


def test_objectives_only_when_they_were_run(exp: Path) -> None:
    assert paper.objective_table(read_runs(exp)) is None
    experiment(exp, "m1", 8, init="teacher")
    table = paper.objective_table(read_runs(exp))
    assert table is not None
    rates = {row[0]: row[3] for row in table.rows}
    assert rates == {"T": "2.00 [1.5-2.5]", "M1": "5.00 [4.5-5.5]", "M2": "-", "M3": "-", "M4": "2.50 [2.0-3.0]"}


def test_the_report_names_its_provenance(exp: Path) -> None:
    text = page(exp, "Results")
    for fact in ("librispeech", "a processor", "0.10 h", "/repo/local/train.py", "1.25"):
        assert fact in text


def test_collected_files_name_no_machine(exp: Path, tmp_path: Path) -> None:
    result = exp / "sn/result.json"
    result.write_text(result.read_text().replace("/repo/", f"{tmp_path}/repo/"))
    copies = collect(exp, tmp_path / "results", tmp_path / "repo")
    assert len(copies) == 4 + 2 * 4 + 2 * 8
    command = json.loads((tmp_path / "results/sn/result.json").read_text())["command"]
    assert command == "local/train.py --exp-dir exp --data-dir sn"
    assert len(read_runs(tmp_path / "results")) == 4
    collect(exp, tmp_path / "some", tmp_path / "repo", only=["sn", "ss"])
    assert [run.name for run in read_runs(tmp_path / "some")] == ["sn", "ss"]


def test_paths_beside_the_repository_stay_relative(tmp_path: Path) -> None:
    text = f"run --corpus-dir {tmp_path}/repo/egs/../../shared/corpora"
    assert portable({"command": [text]}, tmp_path / "repo") == {"command": ["run --corpus-dir ../shared/corpora"]}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("whisper:/models/base", "whisper:base"),
        ("fairseq:{root}/models/a.pt", "fairseq:models/a.pt"),
        ("hf:openai/whisper-base", "hf:openai/whisper-base"),
        ("./models/base", "./models/base"),
    ],
)
def test_paths_of_published_models_are_made_relative(tmp_path: Path, source: str, expected: str) -> None:
    assert portable({"pretrained": source.format(root=tmp_path)}, tmp_path) == {"pretrained": expected}


def test_nothing_to_report_names_the_stages(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stages 6, 8 and 9"):
        read_runs(tmp_path)


def test_a_broken_file_is_named(exp: Path) -> None:
    (exp / "sn/result.json").write_text("{")
    with pytest.raises(ValueError, match=r"sn/result\.json is not a valid result\.json"):
        read_runs(exp)


def test_each_latency_of_a_model_has_its_row(exp: Path) -> None:
    other = {"chunk_ms": 80.0, "lookahead_mean_ms": 30.0, "lookahead_max_ms": 60.0}
    decoding(exp / "ss", "test-clean", "streaming-4", "1best", 4.0, **other)
    table = recognition.latency_table(read_runs(exp))
    assert ("single", "streaming", "320", "150", "300") in table.rows
    assert table.rows[-2:] == (("ss", "streaming-4", "80", "30", "60"), ("ss", "streaming", "320", "150", "300"))
    errors = recognition.error_table(read_runs(exp), GRAPH)
    assert ("ss", "streaming-4") in [row[:2] for row in errors.rows]
