"""What run.sh checks before its first stage: options, and every experiment of the call with what it builds on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from local import check_call

ROOT = Path(__file__).resolve().parents[3]
TEACHER = "{stage: 6, init: teacher_init, pretrained: random, objective: {alpha: 1, beta: 1}, optim: {updates: 1}}"
SN = "{base: teacher.yaml, stage: 8, init: teacher, teacher: {experiment: teacher}, model: {encoder: {layers: 2}}, "
SN += "objective: {alpha: 0.8, beta: 0.8, teacher_layers: [2, 4]}, data: {train: [unlabelled]}}"
FILES = {
    "teacher": TEACHER, "sn": SN, "ss": "{base: sn.yaml, stage: 9, init: sn}", "lm": "optim: {updates: 1}",
    "again": "{base: teacher.yaml, init: teacher}", "self": "{base: teacher.yaml, init: self}",
    "astray": "{base: teacher.yaml, init: techer}", "odd_teacher": "{base: sn.yaml, teacher: {experiment: ss}}",
    "no_teacher": "{base: sn.yaml, teacher: {experiment: techer}}", "same": "{base: teacher.yaml, name: teacher}",
    "deep": "{base: sn.yaml, objective: {teacher_layers: [2, 13]}}",
    "part": "{base: teacher.yaml, data: {train: [dve]}}",
    "wrong": "{base: teacher.yaml, seed: -1}", "from_wrong": "{base: teacher.yaml, init: wrong}",
    "file": "{base: teacher.yaml, pretrained: 'fairseq:none.pt'}",
    "tuned": "{base: teacher.yaml, stage: 5, init: null, pretrained: 'hf:a/b'}",
    "states": "{base: tuned.yaml, decoding: {methods: []}}",
    "agnostic": "{base: teacher.yaml, stage: 8, init: states, teacher: {experiment: states}, "
    "objective: {alpha: null, beta: null, regression: {}}}",
    "coarse": "{base: agnostic.yaml, objective: {regression: null, temporal: {}}, "
    "model: {front_end: {layers: [[8, 640, 640]]}}}",
    "codes": "{base: agnostic.yaml, init: null, objective: {regression: null, discriminative: {}}, "
    "units: {of: teacher, layer: 13}, teacher: {experiment: teacher}}",
    "slow_codes": "{base: codes.yaml, units: {of: teacher, layer: 2}, "
    "model: {mask: {time_probability: 0.5}, "
    "front_end: {input: fbank, waveform: none, norm: frame, layers: [[16, 3, 4]]}}}",
    "slow_units": "{base: slow_codes.yaml, objective: {hubert: {}}}",
    "no_units": "{base: codes.yaml, units: {of: techer, layer: 2}}",
    "skips": "{base: teacher.yaml, decoding: {blank_skip: 1}}",
    "rnnt": "{base: teacher.yaml, model: {transducer: {}}, objective: {alpha: null, beta: null, transducer: {}}, "
    "decoding: {methods: [transducer_beam]}}",
    "both": "{base: rnnt.yaml, model: {ctc_output: true}, objective: {ctc: {}}}",
    "of_both": "{base: sn.yaml, teacher: {experiment: both}, model: {ctc_output: true}, "
    "objective: {alpha: null, beta: null, teacher_layers: [], mmi: {}, outputs: {}, ctc: {}, ctc_outputs: {}}}",
    "of_rnnt": "{base: sn.yaml, teacher: {experiment: rnnt}}",
    "noisy": "{base: teacher.yaml, decoding: {conditions: {fsd: {steps: [[fsd]], noises: {fsd: noise/fsd}}}}}",
    "coded": "{base: teacher.yaml, decoding: {conditions: {mp3: {steps: [[mp3]]}}}}",
    "hall": "{base: teacher.yaml, decoding: {conditions: {hall: {steps: [[room]]}}}}",
    "masked": "{base: agnostic.yaml, init: null, teacher: {masked: true}, objective: {regression: null, hidden: {}}, "
    "model: {mask: {time_probability: 0.5}, front_end: {layers: [[8, 640, 640]]}}}",
    "gated": "{base: teacher.yaml, model: {pruning: {units: [heads]}}, "
    "objective: {sparsity: {target: 0.9, warm_up: 0}}}",
    "slim": "{base: teacher.yaml, init: teacher, init_slim: true, init_sparsity: 0.5}",
    "reopened": "{base: teacher.yaml, init: gated}",
    "slim_plain": "{base: teacher.yaml, init: teacher, init_slim: true}",
    "slim_gated": "{base: slim.yaml, init: gated, init_sparsity: 0.7}",
    "ranked": "{base: teacher.yaml, model: {encoder: {rank: 700}}}",
    "phones": "{base: teacher.yaml, init: teacher, init_units: phones}",
    "labelled_sn": "{base: sn.yaml, data: {train: [labelled]}}",
    "some_conditions": "{base: teacher.yaml, decoding: {condition_sets: [tset-clean]}}",
}  # fmt: skip
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """check(experiments, *options) -> exit status, what was printed; folders are conf, data and exp of tmp_path."""
    (tmp_path / "conf").mkdir()
    for name, text in FILES.items():
        (tmp_path / f"conf/{name}.yaml").write_text(text)

    def run(experiments: str, *options: str) -> tuple[int, str]:
        folders = [part for kind in ("conf", "data", "exp") for part in (f"--{kind}-dir", str(tmp_path / kind))]
        monkeypatch.setattr(
            "sys.argv", ["check_call", "--corpus", "mine", *folders, "--experiment", experiments, *options]
        )
        with pytest.raises(SystemExit) as stop:
            check_call.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.parametrize("job", ["0/4", "5/4", "4", "1/0", "-1/4", "1/4/2", "01/4", "a/b", "1 / 4", "1/4\n"])
def test_a_job_is_a_number_of_how_many(check: Check, job: str) -> None:
    status, lines = check("", "--stage", "7", "--stop-stage", "7", f"--job={job}")
    assert status == 2 and f"--job {job!r} must be J/N" in lines


@pytest.mark.parametrize(
    ("first", "last", "fits"), [(0, 1, True), (5, 5, True), (7, 7, True), (10, 10, True), (6, 7, False)]
)
def test_a_job_is_of_stages_that_have_shards(check: Check, first: int, last: int, fits: bool) -> None:
    status, lines = check("", "--stage", str(first), "--stop-stage", str(last), "--job", "4/4")
    assert status == (0 if fits else 2)
    assert fits or f"--job: stages 0, 1, 5, 7, 10 take jobs, and this call runs stages {first} to {last}" in lines


def done(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / ".done").write_text(json.dumps({"hash": "x"}))


def test_a_call_that_fits_is_silent_and_writes_nothing(check: Check, tmp_path: Path) -> None:
    assert check("teacher,sn,ss,again") == (0, "")
    assert check("ss", "--stage", "10") == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]


@pytest.mark.parametrize(
    ("experiments", "options", "message"),
    [
        ("teacher,sn,nothing", (), "no experiment 'nothing' in .*; there are: "),
        ("graphs", (), "no experiment 'graphs'"), ("lm", (), "no experiment 'lm'"),
        ("teacher,../conf/sn", (), r"--experiment .*'\.\./conf/sn' must be a name"),
        ("teacher,teacher", (), "teacher is given more than once"),
        ("teacher,", (), "'' must be a name"), ("teacher, sn", (), "' sn' must be a name"),
        ("teacher,same", (), r"same\.yaml: name: teacher is also that of teacher\.yaml"),
        ("teacher,wrong", (), r"wrong\.yaml: seed: must be greater"),
        ("from_wrong", (), r"wrong\.yaml: seed: must be greater"),
        ("self", (), r"self\.yaml: init: must be another experiment"),
        ("astray", (), r"init: techer must be an experiment of .* or end in _init"),
        ("teacher,sn,ss,odd_teacher", (), r"odd_teacher\.yaml: teacher\.experiment: ss is trained in stage 9"),
        ("teacher,no_teacher", (), r"teacher\.experiment: no experiment 'techer'; did you mean 'teacher'"),
        ("teacher,codes", (), r"codes\.yaml: units\.layer: teacher has blocks 1 to 12, 0 is their input \(got 13\)"),
        ("teacher,slow_units", (), r"units\.of: teacher has a frame each 320 samples, and slow_units each 640"),
        ("codes", (), r"units\.of: teacher is not trained .*name it in --experiment, and run its stage 6"),
        ("teacher,no_units", (), r"units\.of: no experiment 'techer'; did you mean 'teacher'"),
        ("teacher,deep", (), r"the term hidden names teacher blocks \[13\], but the teacher has 1 to 12"),
        ("states,coarse", (), r"coarse\.yaml: temporal: relations .* student's are 40 ms apart"),
        ("sn", (), r"init: teacher is not trained .*name it in --experiment, and run its stage 6"),
        ("again,teacher", (), r"again\.yaml: init: teacher is not trained .* before again"),
        ("teacher,sn", ("--stage", "8"), r"sn\.yaml: init: teacher is not trained"),
        ("teacher", ("--stage", "6"), "stage 5 makes .*teacher_init, which is not there"),
        ("phones", ("--units", "bpe"), r"phones\.yaml: init: teacher is not trained"),
        ("part", (), "data.train: no cut set 'dve'; did you mean 'dev'"),
        ("file", (), r"file\.yaml: pretrained: no file at none\.pt"),
        ("teacher", ("--set", "pretrained=null"), r"teacher\.yaml: pretrained: is not given; expected .*or random"),
        ("teacher", ("--set", "pretrained=./w2v"), r"teacher\.yaml: pretrained: no folder \./w2v"),
        ("tuned", (), r"tuned\.yaml: stage: 5: hf:a/b is taken over with its own units; give --units letters"),
        ("teacher", ("--units", "letters"), "--units letters are those of one fine-tuned teacher .*leads to none"),
        ("tuned", ("--units", "letters", "--topology", "two_pdf"), "--units letters: a fine-tuned model has a blank"),
        ("noisy", (), r"noisy\.yaml: decoding\.conditions\.fsd\.noises\.fsd: there is no folder .*/noise/fsd; put"),
        ("teacher", ("--set", "augment.noise_part=noise/musan", "--set", "augment.noise_probability=0.5"),
         r"teacher\.yaml: augment\.noise_part: there is no folder .*/noise/musan; put"),
        ("both,of_both", (), "objective: outputs: both has no outputs to learn from before it is fine-tuned"),
        ("states,masked", (), r"teacher\.masked: true needs frames of one rate, but states has one each 320"),
        ("gated", (), r"gated\.yaml: objective\.sparsity\.target: 0\.9 is not in reach: .* \(heads\) closed"),
        ("teacher,slim", (), r"slim\.yaml: init_sparsity: teacher has no gates \(model\.pruning\) to close"),
        ("gated,reopened", (), r"reopened\.yaml: init: gated has gates .* on heads, which are missing here"),
        ("teacher,slim_plain", (), r"slim_plain\.yaml: init_slim: teacher has no gates .*, and nothing was cut off"),
        ("teacher,gated,slim_gated", (), r"slim_gated\.yaml: init_sparsity: 0\.7 is not in reach"),
        ("ranked", (), r"ranked\.yaml: model\.encoder\.rank: 700 makes no linear map smaller; give at most 614"),
        ("skips", ("--topology", "two_pdf"), "decoding.blank_skip needs a blank"),
        ("rnnt", ("--topology", "two_pdf"), "model.transducer needs a blank; use --topology ctc"),
        ("teacher,rnnt,of_rnnt", (), r"of_rnnt\.yaml: teacher\.experiment: rnnt has a transducer alone, and stage 7"),
        ("rnnt", ("--units", "biphones"), "needs units without context; use other units than biphones"),
        ("teacher", ("--set", "optim.lrr=1"), "optim: unknown key 'lrr'; did you mean 'lr'"),
        ("teacher", ("--set", "graphs.order=5"), r"--set 'graphs\.order=5': order: must be less than .* 4 \(got 5\)"),
        ("teacher", ("--set", "graphs.=5"), "--set 'graphs.=5' is not of the form"),
        ("teacher", ("--set", "lm.optim.clip=0"), r"--set 'lm\.optim\.clip=0': optim\.clip: must be greater than 0"),
        ("teacher", ("--set", "lm.name=teacher"), r"lm\.yaml: name: must be lm"),
        ("teacher", ("--set", "lm.text.valid=dve"), r"text\.valid: no cut set 'dve'"),
        ("teacher", ("--device", "gpu"), "--device 'gpu' must be cpu, cuda or cuda:N"),
        ("teacher", ("--nj", "0"), "--nj 0 must be 1 to"), ("teacher", ("--units", "phone"), "did you mean 'phones'"),
        ("teacher", ("--launcher", "torchrum -n 2"), "--launcher torchrum -n 2: no program 'torchrum'; expected"),
        ("teacher", ("--launcher", "torchrun 'a b"), "--launcher torchrun 'a b: no closing quotation; expected"),
        ("teacher", ("--launcher", "''"), "--launcher '': no program ''"),
        ("teacher", ("--topology", "hmm"), "--topology hmm is not known"),
        ("teacher", ("--engine", "k3"), "did you mean .k2"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_end_well_names_what_is_wrong(
    check: Check, tmp_path: Path, experiments: str, options: tuple[str, ...], message: str
) -> None:
    status, printed = check(experiments, *options)
    assert status == 2 and re.search(f"^run.sh: .*({message})", printed, flags=re.MULTILINE), printed
    assert not (tmp_path / "data").exists() and not (tmp_path / "exp").exists()


def test_codewords_alone_need_no_equal_frame_rate(check: Check) -> None:
    assert check("teacher,slow_codes") == (0, "")


def test_rooms_need_their_package_before_the_first_stage(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.recipe.checks.find_spec", lambda name: None)
    printed = check("hall")[1]
    assert re.search(r"hall\.yaml: decoding\.conditions\.hall: room needs pyroomacoustics.*extra 'rooms'", printed)


def test_a_noise_folder_without_recordings_is_refused(check: Check, tmp_path: Path) -> None:
    (tmp_path / "data/noise/fsd").mkdir(parents=True)
    assert "noise/fsd has no .flac or .wav file" in check("noisy")[1]


@pytest.mark.parametrize(("rate", "said"), [(8000, "8000 Hz, expected 16000 Hz"), (None, "cannot be read .*remove it")])
def test_a_noise_clip_that_is_none_is_found_before_the_first_stage(
    check: Check, tmp_path: Path, rate: int | None, said: str
) -> None:
    clip = tmp_path / "data/noise/fsd/a.wav"
    clip.parent.mkdir(parents=True)
    if rate:
        soundfile.write(clip, np.zeros(100, np.float32), rate)
    else:
        clip.write_bytes(b"no sound")
    printed = check("noisy")[1]
    assert re.search(rf"noisy\.yaml: decoding\.conditions\.fsd\.noises\.fsd: noise clip .*a\.wav.*{said}", printed)
    assert "more of" not in printed
    soundfile.write(clip.with_name("0.wav"), np.zeros(100, np.float32), 16000)
    shutil.copy(clip, clip.with_name("b.wav"))
    assert re.search(
        r"noises\.fsd: noise clip .*a\.wav.*\n.*noises\.fsd: 1 more of 3 clips in .*fsd", check("noisy")[1]
    )


def test_a_codec_that_libsndfile_lacks_is_found_before_the_first_stage(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soundfile.check_format", lambda *_: False)
    assert "coded.yaml: decoding.conditions.mp3: distortion mp3: libsndfile" in check("coded")[1]


def test_all_that_is_wrong_is_reported_at_once_and_once(check: Check) -> None:
    options = ("--engine", "k3", "--set", "optim.lrr=1", "--set", "graphs.order=5", "--set", "lm.seed=x")
    printed = check("teacher,sn,nothing", *options)[1]
    for part in ("--engine k3", "'nothing'", "order: must be", "seed: must be"):
        assert printed.count(part) == 1, printed
    assert (
        re.search(r"^run.sh: --set 'optim.lrr=1': optim: unknown key 'lrr'", printed, re.M)
        and printed.count("'lrr'") == 1
    )


def test_all_wrong_options_are_reported_at_once(check: Check, tmp_path: Path) -> None:
    options = ("--engine", "k3", "--units", "phone", "--device", "gpu", "--nj", "0", "--hlg", "none.fst")
    status, printed = check("teacher, sn", *options, "--data-dir", str(tmp_path / "exp"))
    assert status == 2
    for option in (*options[::2], "--experiment", "--data-dir and --exp-dir are the same folder"):
        assert printed.count(f"run.sh: {option}") == 1, printed


def test_a_teacher_of_hidden_states_is_taken_over_without_its_units(check: Check) -> None:
    assert check("states,agnostic") == (0, ""), "no letters, and no lattices for a student without numerators"
    assert "leads to none" in check("states,agnostic", "--units", "letters")[1]


def test_a_recipe_without_a_mini_version_refuses_it(check: Check) -> None:
    status, printed = check("teacher", "--mini", "true")
    assert (status, printed) == (
        2,
        "run.sh: --mini true: mine has no mini version; leave it out and give --corpus-dir\n",
    )
    assert check("teacher", "--mini", "true", "--corpus", "librispeech") == (0, "")
    for corpus, way_out in (("spoken_commands", "leave it out and give --corpus-dir"), ("tables", "leave it out\n")):
        assert f"{corpus} has no mini version; {way_out}" in check("teacher", "--mini", "true", "--corpus", corpus)[1]


def test_a_foreign_graph_needs_stage_4_and_no_ngram_rescoring(check: Check, tmp_path: Path) -> None:
    (tmp_path / "theirs.fst").touch()
    options = ("--hlg", str(tmp_path / "theirs.fst"))
    status, message = check("teacher", *options)
    assert status == 2 and "teacher.yaml: decoding.methods: nbest-rescoring: rescoring subtracts" in message
    assert "--set decoding.methods=[1best,greedy], or leave --hlg out" in message
    both = check("teacher", *options, "--set", "decoding.methods=[whole-lattice-rescoring,nbest-rescoring]")[1]
    assert "whole-lattice-rescoring, nbest-rescoring: rescoring" in both and "methods=[1best]" in both
    options += ("--set", "decoding.methods=[1best,greedy]")
    assert check("teacher", *options) == (0, "")
    message = check("teacher", "--stage", "10", *options)[1]
    assert "theirs.fst: stage 4 reads it, and this call runs stages 10 to 13; start with --stage 4" in message


def test_what_is_trained_already_need_not_be_named(check: Check, tmp_path: Path) -> None:
    done(tmp_path / "exp/teacher")
    assert "stage 7 makes" in check("sn")[1]
    done(tmp_path / "data/num/teacher")
    assert check("sn") == (0, "")
    assert "teacher_bpe is not trained" in check("sn", "--units", "bpe")[1]
    assert check("phones", "--units", "bpe") == (0, "")


def test_lattices_are_asked_for_where_they_are_read(check: Check, tmp_path: Path) -> None:
    done(tmp_path / "exp/teacher")
    assert check("labelled_sn") == (0, "")
    assert "stage 7 makes" in check("sn")[1]
    assert check("sn", "--set", "data.numerator=transcript") == (0, "")


def test_conditions_are_of_test_sets_there_are(check: Check) -> None:
    assert "some_conditions.yaml: decoding.condition_sets: no cut set 'tset-clean'" in check("some_conditions")[1]


def test_cut_sets_that_are_there_are_known(check: Check, tmp_path: Path) -> None:
    done(tmp_path / "data/cuts")
    (tmp_path / "data/cuts/mine.jsonl.gz").touch()
    (tmp_path / "data/cuts/dev.jsonl.gz").touch()
    assert check("teacher", "--stage", "5", "--set", "data.train=[mine]") == (0, "")
    assert "no cut set 'labelled'; there are:" in check("teacher", "--stage", "5")[1]


@pytest.mark.parametrize(
    ("corpus", "conf", "experiments"),
    [
        ("librispeech", "conf", "teacher,s5,s5_stream,s5_single,s1,s1_stream,s5_dynamic,s5_fbank40,s5_fbank40_stream"),
        ("librispeech", "conf", "teacher_hubert,s5_hubert,teacher_wavlm,teacher_whisper"),
        ("librispeech", "conf/mini", "teacher,sn,ss,single,m1,m2,m3,sn_nbest,ss_dynamic,sn_fbank40,ss_fbank40"),
        ("spoken_commands", "conf", "teacher,sn,ss,single,teacher_ctc,sn_fbank40,ss_fbank40"),
    ],
)  # fmt: skip
def test_calls_of_the_recipes_fit(check: Check, tmp_path: Path, corpus: str, conf: str, experiments: str) -> None:
    shutil.rmtree(tmp_path / "conf")
    shutil.copytree(ROOT / f"egs/{corpus}/{conf}", tmp_path / "conf")
    assert check(experiments) == (0, "")
    done(tmp_path / "exp/teacher")
    assert check(experiments, "--units", "bpe", "--set", "lm.text.units=chars") == (0, "")


def test_folders_of_weights_may_be_named_in_the_call(check: Check, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "conf")
    shutil.copytree(ROOT / "egs/spoken_commands/conf", tmp_path / "conf")
    names = "teacher_whisper,sn_whisper,ss_whisper"
    assert "pretrained: no folder" in check(names, "--set", f"pretrained=whisper:{tmp_path / 'none'}")[1]
    assert check(names, "--set", f"pretrained=whisper:{tmp_path}") == (0, "")


def test_the_check_needs_no_torch() -> None:
    code = "import sys; from local import check_call; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode == 0


# run.sh's own options


def options(*given: str) -> subprocess.CompletedProcess[str]:
    script = 'corpus=mine experiments=teacher; source local/stage.sh; parse_options "$@"; echo "$stage $stop_stage $nj"'
    return subprocess.run(["bash", "-euc", script, "run.sh", *given], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_THREAD_LIMIT"])
def test_all_cores_are_used_whatever_libraries_may(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    cores = len(os.sched_getaffinity(0))
    assert options().stdout.split() == ["0", "13", str(cores)]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--stage 9 --stop-stage 3", "--stage 9"), ("--stage 99", "--stage"), ("--stage 14", "--stage"),
        ("--stage 08 --stop-stage 08", "--stage"), ("--stage 010 --stop-stage 010", "--stage"), ("--nj 0", "--nj"),
        ("--nj 999999999999999999999", "--nj"), ("--nj 5000", "--nj"), ("--nj -1", "--nj"), ("--nj 2.5", "--nj"),
        ("--nj 0x4", "--nj"), ("--stage +3", "--stage"), ("--stop-stage 3a", "--stop-stage"),
        ("--stop-stage", "--stop-stage"),
        ("--stage --nj 3", "--stage"), ("--nj 3 --nj 4", "--nj"), ("--mini yes", "--mini"),
        ("--rehearse 1", "--rehearse"),
        ("--stge 3", "--stage"), ("--stage=3", "--stage"), ("3", "'3'"), ("-x", "'-x'"), ("--stage ", "--stage"),
        ("--set", "--set"), ("--data-dir\t ", "--data-dir"), ("--exp-dir\t\n", "--exp-dir"),
        ("--stage\t3\n4", "--stage"),
        ("--stage --stop-stage\t3", "'--stage --stop-stage'"), ("--nj\t8 ", "--nj"), ("--stage\tstop_stage", "--stage"),
        ("--nj\ta[$(touch x)]", "--nj"),
    ],
)  # fmt: skip
def test_a_wrong_option_ends_the_call_by_its_name(given: str, named: str) -> None:
    found = options(*given.split("\t" if "\t" in given else " "))
    assert found.returncode == 2 and found.stderr.startswith("run.sh: ") and named in found.stderr, found.stderr
    assert not found.stdout and not (ROOT / "x").exists()


def test_right_options_are_taken() -> None:
    assert (
        options("--stage", "0", "--stop-stage", "13", "--nj", "4096", "--set", "a=1", "--set", "a=2").stdout
        == "0 13 4096\n"
    )
    assert options("--stage", "3", "--stop-stage", "3", "--nj", "1").stdout == "3 3 1\n"


@pytest.mark.parametrize(
    "call", ["egs/librispeech/run.sh -h", "egs/spoken_commands/run.sh --help", "tools/check.sh --help",
             "tools/check.sh -h", "tools/test.sh --help", "tools/test.sh -h"],
)  # fmt: skip
def test_help_installs_and_runs_nothing(tmp_path: Path, call: str) -> None:
    for name in ("local", "tools", "egs/librispeech/run.sh", "egs/spoken_commands/run.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    before, begun = sorted(tmp_path.rglob("*")), time.monotonic()
    found = subprocess.run(call.split(), cwd=tmp_path, capture_output=True, text=True, timeout=10)
    assert found.returncode == 0 and found.stdout.startswith("usage: ") and not found.stderr
    assert sorted(tmp_path.rglob("*")) == before and time.monotonic() - begun < 5


def test_check_sh_takes_no_arguments() -> None:
    found = subprocess.run(["tools/check.sh", "tests"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and "tests" in found.stderr


def test_wrong_calls_of_run_sh_end_with_2_before_any_stage(tmp_path: Path) -> None:
    """The whole way, where an environment is installed."""
    if not (ROOT / ".venv/.installed").is_file():
        pytest.skip("no environment is installed")
    folders = ["--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp"), "--mini", "true"]
    wrong = ["--experiment", "teacher,sn,nonexisting", "--set", "optim.lrr=1e-3"]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [str(ROOT / "egs/librispeech/run.sh"), *folders, *wrong], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 2 and "'nonexisting'" in found.stderr and "'lrr'" in found.stderr
    assert "== stage" not in found.stdout and not any(tmp_path.iterdir())
