"""Plans of trainings: hours, memory and disk follow from settings, GPUs and throughput; errors name the way out."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distill.plan.training import Task, Throughput, corpus_bytes, measured_lattice_bytes, plan_of

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "egs/librispeech/conf/mini"
TASK = Task(gpus=2, hours=1000, utterance=4)
LOG_MEL = (
    "model.front_end={input: log_mel, layers: [[64, 3, 2]], first: random, causal: false, waveform: none, "
    "norm_layers: none}"
)
FAST = Throughput(1e14, 0.5, "a test")
EPOCHS = ("optim.updates=0", "optim.epochs=3")


def test_hours_follow_from_operations_and_gpus() -> None:
    one = plan_of(CONF / "sn.yaml", EPOCHS, TASK, FAST)
    assert one.audio_hours_per_hour == pytest.approx(2 * 5e13 / one.flops_per_audio_second)
    assert one.training_audio_hours == 3000 and one.training_hours == pytest.approx(3 * one.epoch_hours)
    assert one.rows == 3  # 24 s over two GPUs
    more = plan_of(CONF / "sn.yaml", EPOCHS, replace(TASK, gpus=4), FAST)
    assert more.training_hours == pytest.approx(one.training_hours / 2) and more.memory.total < one.memory.total
    assert more.online_gpu_hours == one.online_gpu_hours > 0


def test_checkpointing_takes_time_and_gives_memory() -> None:
    plain = plan_of(CONF / "sn.yaml", EPOCHS, TASK, FAST)
    again = plan_of(CONF / "sn.yaml", (*EPOCHS, "compute.checkpoint_activations=true"), TASK, FAST)
    assert again.memory.activations < plain.memory.activations and again.training_hours > plain.training_hours
    assert again.flops_per_audio_second == plain.flops_per_audio_second


def test_a_teacher_has_no_targets_and_its_own_hours() -> None:
    teacher = plan_of(CONF / "teacher.yaml", EPOCHS, TASK, FAST)
    assert teacher.training_audio_hours == 300 and not teacher.targets_bytes and not teacher.memory.teacher
    student = plan_of(CONF / "sn.yaml", EPOCHS, TASK, FAST)
    assert student.memory.teacher == teacher.memory.weights
    assert student.targets_bytes == 2 * (3 * 192 + 43) * 50 * 3600 * 1000  # blocks 2, 4 and 5 and the logits


def test_relations_between_frames_take_memory_of_some_rows_alone() -> None:
    plans = {
        seconds: plan_of(CONF / "star_all.yaml", ["data.max_duration=60"], Task(utterance=seconds), FAST)
        for seconds in (15, 60)
    }
    peaks = {seconds: plan.memory.activations for seconds, plan in plans.items()}
    assert (plans[15].rows, plans[60].rows) == (4, 1) and peaks[60] == pytest.approx(peaks[15], rel=0.05)
    assert plans[60].targets_bytes == 2 * (6 + 2 * 5) * 192 * 50 * 3600 * 960 + 2 * 43 * 50 * 3600 * 960


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("sn_fbank", ()),
        ("conformer", ()),
        ("sn_rnnt_conformer", ("model.transducer.predictor=lstm",)),
        ("teacher", (LOG_MEL,)),
    ],
)
def test_parts_in_single_precision_have_a_plan(name: str, others: tuple[str, ...]) -> None:
    assert plan_of(CONF / f"{name}.yaml", (*EPOCHS, *others), TASK, FAST).memory.activations > 0


def test_disk_grows_with_the_audio(tmp_path: Path) -> None:
    small, large = corpus_bytes(TASK), corpus_bytes(replace(TASK, hours=60_000))
    assert all(large[name] == pytest.approx(60 * small[name]) for name in small)
    assert measured_lattice_bytes(tmp_path) is None
    (tmp_path / "num/teacher").mkdir(parents=True)
    (tmp_path / "num/teacher/summary.json").write_text(json.dumps({"unlabelled": {"bytes_per_second": 30.5}}))
    assert measured_lattice_bytes(tmp_path) == 30.5


def test_a_measurement_is_read(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    rows = [{"case": "product", "flops_per_second": 8e14}, {"case": "update of s5", "seconds": 1.0, "mfu_share": 0.4}]
    path.write_text(json.dumps({"hardware": "a GPU", "rows": rows}))
    assert Throughput.read(path) == Throughput(8e14, 0.4, "measured on a GPU: update of s5")
    path.write_text(json.dumps({"hardware": "a GPU", "rows": []}))
    with pytest.raises(ValueError, match=r"step.json: no measured update; expected .*gpu_check"):
        Throughput.read(path)
    with pytest.raises(FileNotFoundError, match=r"gpu_check.sh --json"):
        Throughput.read(tmp_path / "none.json")


def test_wrong_tasks_are_named() -> None:
    with pytest.raises(ValueError, match=r"gpus must be greater than 0 \(got 0\)"):
        Task(gpus=0)
    with pytest.raises(ValueError, match=r"stage 5.*nothing is trained"):
        plan_of(CONF.parent / "teacher_960h.yaml", (), TASK, FAST)
    with pytest.raises(FileNotFoundError, match=r"no experiment at .*mini; there are: .*teacher"):
        plan_of(CONF, (), TASK, FAST)
    with pytest.raises(FileNotFoundError, match="no folder /nowhere; expected a recipe's"):
        measured_lattice_bytes(Path("/nowhere"))


def test_the_tool_prints_units_and_assumptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    yaml = [str(CONF / "teacher.yaml"), str(CONF / "sn.yaml")]
    options = ["--gpus", "8", "--hours", "60000", "--device-memory", "0.001", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["plan.py", *yaml, *options])
    runpy.run_path(str(ROOT / "tools/plan.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "Assumptions" in output and "throughput: assumed" in output and "too large: use more GPUs" in output
    content = json.loads(path.read_text())
    assert [plan["experiment"] for plan in content["plans"]] == ["teacher", "sn"] and content["assumptions"]
