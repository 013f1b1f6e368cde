"""The whole recipe on a handful of sentences: runs, is killed, continues, has nothing left to do, and refuses.

DISTILL_KILLS=20 kills so often in each stage (in CI once in each of three); DISTILL_SEED chooses other moments.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from distill.corpora.cut_sets import load_cuts, write_cuts
from tests.support.kills import finish, kill_until_done, stage_command
from tests.support.stage_files import copy_before, differences, in_its_place

pytestmark = pytest.mark.timeout(1800)  # a loaded machine takes several times as long as a quiet one
ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "egs/librispeech/run.sh"
EXPERIMENTS = ("teacher", "sn", "ss")


@dataclass(frozen=True)
class Call:
    """Exit status and everything a call of run.sh printed."""

    status: int
    output: str

    @property
    def error(self) -> str:
        """The last line that is an error."""
        lines = [line for line in self.output.splitlines() if " E " in line or line.startswith("run.sh:")]
        return lines[-1] if lines else ""


def command(data: Path, exp: Path, *options: str) -> list[str]:
    return [str(RUN), "--nj", "1", "--data-dir", str(data), "--exp-dir", str(exp), *options]


def call(data: Path, exp: Path, *options: str) -> Call:
    done = subprocess.run(
        command(data, exp, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200
    )
    return Call(done.returncode, done.stdout)


def kill_when(process: subprocess.Popen, path: Path, seconds: float = 240) -> None:
    """kill -9 the process and its children as soon as the path exists."""
    end = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    found = path.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert found, f"{path} was never written"


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal that was killed in the middle of the teacher's training and called again."""

    data: Path
    exp: Path
    half: bool
    call: Call


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    folder = tmp_path_factory.mktemp("rehearsal")
    data, exp = folder / "data", folder / "exp"
    begun = subprocess.Popen(
        command(data, exp, "--rehearse", "true"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    kill_when(begun, exp / "teacher/last.pt")
    half = not (exp / "teacher/.done").exists()
    return Rehearsal(data, exp, half, call(data, exp, "--rehearse", "true"))


def test_every_stage_runs(rehearsal: Rehearsal) -> None:
    assert rehearsal.call.status == 0, rehearsal.call.output[-3000:]
    stages = [int(n) for n in re.findall(r"^== stage (\d+):", rehearsal.call.output, flags=re.MULTILINE)]
    assert stages == list(range(14))
    assert "not built yet" not in rehearsal.call.output


def test_a_killed_training_continues(rehearsal: Rehearsal) -> None:
    assert rehearsal.half, "killed too late to show anything"
    assert re.search(r"continuing from update [1-9]\d* of 12", rehearsal.call.output)
    assert "up to date" in rehearsal.call.output  # stages 0 to 4
    assert json.loads((rehearsal.exp / "teacher/result.json").read_text())["updates"] == 12


def test_the_table_is_printed_and_written(rehearsal: Rehearsal) -> None:
    table = rehearsal.call.output[rehearsal.call.output.index("== stage 13") :]
    for name in EXPERIMENTS:
        assert re.search(rf"^{name} +offline +[\d.]+ +[\d.]+x +[\d.]+ \[", table, flags=re.MULTILINE)
    assert re.search(r"^ss +streaming ", table, flags=re.MULTILINE)
    assert max(len(line) for line in table.splitlines() if not line.startswith("all tables")) <= 100
    assert "Recogniser.step" in (rehearsal.exp / "RESULTS.md").read_text()


def test_files_are_where_icefall_has_them(rehearsal: Rehearsal) -> None:
    decoding = rehearsal.exp / "ss/decode_test-clean_streaming_1best"
    names = {path.name for path in decoding.iterdir()}
    prefixed = {f"{kind}-test-clean-streaming-1best.txt" for kind in ("recogs", "errs", "wer-summary")}
    timed = {"words.ctm", "words.json"}
    recognised = json.loads((decoding / "words.json").read_text()).values()
    judged = {"confidence.json"} if any(recognised) else set()
    assert prefixed | timed | judged | {"wer.json", "utt2spk", "errors.html", ".done"} == names
    for path in ("lang_phones/tokens.txt", "lang_phones/words.txt", "lang_phones/lexicon.txt", "graphs/HLG.pt"):
        assert (rehearsal.data / path).is_file()


def test_streaming_gives_the_words_of_the_masked_forward(rehearsal: Rehearsal) -> None:
    for test_set in ("test-clean", "test-other"):
        streaming, offline = (
            (rehearsal.exp / f"ss/decode_{test_set}_{mode}_1best/recogs-{test_set}-{mode}-1best.txt").read_text()
            for mode in ("streaming", "offline")
        )
        assert streaming == offline


def test_rescoring_records_the_weights_chosen_on_dev(rehearsal: Rehearsal) -> None:
    assert json.loads((rehearsal.exp / "lm/result.json").read_text())["updates"] == 4
    perplexity = json.loads((rehearsal.exp / "lm/perplexity/summary.json").read_text())
    assert perplexity["set"] == "dev" and set(perplexity["models"]) == {"3gram", "4gram", "transformer"}
    for name, mode in (("teacher", "offline"), ("sn", "offline"), ("ss", "streaming")):
        wer = json.loads((rehearsal.exp / f"{name}/decode_test-clean_{mode}_transformer-lm/wer.json").read_text())
        chosen = json.loads((rehearsal.exp / f"{name}/rescoring/weights.json").read_text())
        assert wer["weights"] == chosen["weights"] and wer["tuning"]["set"] == chosen["set"] == "dev"
        assert chosen["errors"] <= chosen["before"] and len(chosen["tried"]) == 105


def test_the_4_gram_takes_the_place_of_the_graphs(rehearsal: Rehearsal) -> None:
    for name, modes in (("teacher", ("offline",)), ("sn", ("offline",)), ("ss", ("offline", "streaming"))):
        chosen = json.loads((rehearsal.exp / f"{name}/rescoring_4gram/weights.json").read_text())
        assert chosen["set"] == "dev" and chosen["mode"] == modes[-1]
        for mode in modes:
            folder = rehearsal.exp / f"{name}/decode_test-clean_{mode}_nbest-rescoring"
            wer = json.loads((folder / "wer.json").read_text())
            assert (wer["lm"], wer["weights"]) == ("4gram", chosen["weights"])
            lists = json.loads((folder / "nbest.json").read_text())
            assert wer["oracle_errors"] <= wer["sub"] + wer["ins"] + wer["del"] and all(lists.values())


def test_a_second_call_does_nothing(rehearsal: Rehearsal) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in rehearsal.exp.rglob("*.pt")}
    begun = time.monotonic()
    again = call(rehearsal.data, rehearsal.exp, "--rehearse", "true")
    assert again.status == 0
    assert time.monotonic() - begun < 45  # seconds on an idle machine, most of it imports
    assert stamps == {path: path.stat().st_mtime_ns for path in rehearsal.exp.rglob("*.pt")}
    assert "making" not in again.output


# Killed in a stage

KILLS = int(os.environ.get("DISTILL_KILLS", "0"))
SEED = int(os.environ.get("DISTILL_SEED", "11"))


@pytest.mark.timeout(1200 * (KILLS + 1))
@pytest.mark.parametrize("stage", range(14) if KILLS else (0, 7, 13))
def test_a_stage_killed_at_random_moments_leaves_the_same_files(rehearsal: Rehearsal, stage: int) -> None:
    root, draw, longest, left = rehearsal.data.parent, random.Random(f"{SEED}/{stage}"), 0.0, max(1, KILLS)
    task, begun = stage_command(stage, root), f"== stage {stage}:"
    while left:
        with in_its_place(root) as whole:
            copy_before(stage, whole, root)
            if longest:  # the first time it is not killed, to see how long it takes
                struck = kill_until_done(task, draw, longest, min(left, 3), begun, 0.0)
                left, longest = left - struck, longest if struck else 0.8 * longest
            seconds = finish(task, begun)
            longest = longest or seconds
            assert differences(stage, whole, root) == []


# Several processes


LAUNCHER = ("--launcher", "torchrun --standalone --nproc-per-node 2")
NOT_RANDOM = [  # ranks draw numbers of their own
    f"{key}_probability=0" for key in ("model.mask.time", "model.mask.channel", "augment.volume", "augment.noise")
]  # fmt: skip


def copied(rehearsal: Rehearsal, folder: Path) -> Path:
    """The rehearsal's cuts and graphs in a data-dir of their own."""
    return shutil.copytree(rehearsal.data, folder / "data", ignore=shutil.ignore_patterns("corpus", "num"))


def left_over(*folders: Path) -> list[Path]:
    paths = [path for folder in folders for path in folder.rglob("*")]
    return [path for path in paths if re.search(r"\.(tmp|old|lock|aside)\b", path.name)]


@pytest.fixture(scope="module")
def two_ranks(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """Teacher, its numerators, a student by two ranks of one machine."""
    folder = tmp_path_factory.mktemp("two_ranks")
    data, exp = copied(rehearsal, folder), folder / "exp"
    options = ("--stage", "5", "--stop-stage", "8", "--experiment", "teacher,sn", *LAUNCHER)
    return Rehearsal(data, exp, True, call(data, exp, "--rehearse", "true", *options))


def test_two_ranks_write_everything_once(two_ranks: Rehearsal) -> None:
    data, exp, done = two_ranks.data, two_ranks.exp, two_ranks.call
    assert done.status == 0, done.output[-3000:]
    assert done.output.count("from teacher_init:") == 1 and (data / "num/teacher/.done").is_file()
    for name in ("teacher", "sn"):
        assert json.loads((exp / name / "result.json").read_text())["ranks"] == 2
        assert (exp / name / "last.pt").is_file() and any((exp / name).glob("epoch-*.pt"))
    assert left_over(data, exp) == []


def test_two_machines_train_as_two_ranks_of_one(two_ranks: Rehearsal, tmp_path: Path) -> None:
    """Stages 6 to 10: the same call on each, one folder."""
    data, exp = copied(two_ranks, tmp_path), tmp_path / "exp"
    shutil.copytree(two_ranks.exp / "teacher_init", exp / "teacher_init")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    options = ("--rehearse", "true", "--stage", "6", "--stop-stage", "10", "--set", "decoding.methods=[1best]")
    options += ("--experiment", "teacher,sn")
    torchrun = f"torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {endpoint} --node-rank"
    nodes = [
        subprocess.Popen(
            command(data, exp, *options, "--launcher", f"{torchrun} {node}"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    for output, node in [(node.communicate(timeout=600)[0], node) for node in nodes]:
        assert node.returncode == 0, output[-3000:]
    for name in ("teacher", "sn"):
        one, two = (json.loads((folder / name / "result.json").read_text()) for folder in (two_ranks.exp, exp))
        assert one["ranks"] == two["ranks"] == 2 and one["updates"] == two["updates"] == 12
        assert abs(one["train_loss"] - two["train_loss"]) < 1e-3 and abs(one["valid_loss"] - two["valid_loss"]) < 1e-3
    assert (exp / "sn/decode_test-other_offline_1best/wer.json").is_file() and left_over(data, exp) == []


def test_two_ranks_train_as_one_process_does(rehearsal: Rehearsal, tmp_path: Path) -> None:
    data, settings = copied(rehearsal, tmp_path), [part for each in NOT_RANDOM for part in ("--set", each)]
    found = []
    for number, launcher in enumerate(((), LAUNCHER)):
        options = ("--stage", "5", "--stop-stage", "6", "--experiment", "teacher", *settings, *launcher)
        done = call(data, tmp_path / f"exp-{number}", "--rehearse", "true", *options)
        assert done.status == 0, done.output[-3000:]
        found.append(json.loads((tmp_path / f"exp-{number}/teacher/result.json").read_text()))
    one, two = found
    assert (one["ranks"], two["ranks"]) == (1, 2) and one["updates"] == two["updates"] == 12
    assert abs(one["valid_loss"] - two["valid_loss"]) < 1e-3
    names = [{path.name for path in (tmp_path / f"exp-{n}/teacher").glob("*.pt")} for n in range(2)]
    assert names[0] == names[1]


# Wrong input


def test_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    done = call(tmp_path / "data", tmp_path / "exp", "--stop-stge", "3")
    assert done.status == 2
    assert "unknown option '--stop-stge'; did you mean '--stop-stage'?" in done.error
    assert not (tmp_path / "data").exists()


def test_a_value_that_looks_like_an_option_is_refused(tmp_path: Path) -> None:
    done = call(tmp_path / "data", tmp_path / "exp", "--job", "-1/2")
    assert done.status == 2 and "option --job needs a value (got '-1/2')" in done.error


def test_missing_corpus_names_the_folder_and_the_ways_out(tmp_path: Path) -> None:
    done = call(tmp_path / "data", tmp_path / "exp", "--stop-stage", "0", "--corpus-dir", str(tmp_path / "nowhere"))
    assert done.status == 1
    for part in (str(tmp_path / "nowhere"), "--corpus-dir", "--mini true"):
        assert part in done.error


def test_a_stage_before_its_inputs_names_the_stage_that_makes_them(tmp_path: Path) -> None:
    done = call(tmp_path / "data", tmp_path / "exp", "--mini", "true", "--stage", "4", "--stop-stage", "4")
    assert done.status == 1
    assert re.search(r"stage 4 needs .*lang_phones, which stage 2 makes; run it first: .*--stage 2", done.error)
    assert "Traceback" not in done.output


def test_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    options = ("--mini", "true", "--stage", "5", "--stop-stage", "5", "--set", "optim.update=3")
    done = call(tmp_path / "data", tmp_path / "exp", *options)
    assert done.status == 2
    assert "--set 'optim.update=3'" in done.error
    assert "unknown key 'update'; did you mean 'updates'?" in done.error


def test_an_unknown_experiment_names_the_nearest(tmp_path: Path) -> None:
    options = ("--mini", "true", "--stage", "6", "--stop-stage", "6", "--experiment", "techer")
    done = call(tmp_path / "data", tmp_path / "exp", *options)
    assert done.status == 2
    assert re.search(r"no experiment 'techer' .*did you mean 'teacher'", done.error)


def test_an_unreadable_checkpoint_is_named(rehearsal: Rehearsal, tmp_path: Path) -> None:
    shutil.copytree(rehearsal.exp / "teacher", tmp_path / "teacher", ignore=shutil.ignore_patterns("decode_*"))
    for path in (tmp_path / "teacher").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    options = ("--rehearse", "true", "--stage", "10", "--stop-stage", "10", "--experiment", "teacher")
    done = call(rehearsal.data, tmp_path, *options)
    assert done.status == 1
    assert re.search(r"teacher/epoch-\d+\.pt", done.error)
    assert "Traceback" not in done.output


def test_a_word_outside_the_lexicon_is_a_listed_skip(rehearsal: Rehearsal, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(rehearsal.data, data, ignore=shutil.ignore_patterns("corpus"))
    cuts = list(load_cuts(data / "cuts", ["labelled"]))
    cuts[0].supervisions[0].text += " XYZZY"
    write_cuts(cuts, data / "cuts/labelled.jsonl.gz")
    options = ("--stage", "5", "--stop-stage", "6", "--experiment", "teacher", "--set", "optim.updates=60")
    done = call(data, tmp_path / "exp", "--rehearse", "true", *options)
    assert done.status == 0, done.output[-2000:]
    listed = (tmp_path / "exp/teacher/skipped.tsv").read_text()
    assert re.search(rf"^{cuts[0].id}\t.*XYZZY", listed, flags=re.MULTILINE)
    assert re.search(r"41 cuts left out of training", done.output)


# Other units


def stages_of(rehearsal: Rehearsal, tmp_path: Path, first: int, last: int, *options: str) -> Call:
    """Stages on the rehearsal's cuts and text, in a data-dir of their own."""
    for name in ("cuts", "text"):
        if not (tmp_path / name).exists():
            shutil.copytree(rehearsal.data / name, tmp_path / name)
    numbers = ("--stage", str(first), "--stop-stage", str(last))
    return call(tmp_path, tmp_path / "exp", "--rehearse", "true", *numbers, *options)


@pytest.mark.parametrize(
    ("options", "folder", "outputs"),
    [
        (("--units", "chars"), "chars", None),
        (("--units", "bpe", "--set", "graphs.bpe_pieces=60"), "bpe", 60),
        (("--topology", "two_pdf", "--set", "graphs.style=chain", "--set", "graphs.order=4"), "phones_two_pdf", None),
    ],
)
def test_graphs_of_other_units(
    rehearsal: Rehearsal, tmp_path: Path, options: tuple[str, ...], folder: str, outputs: int | None
) -> None:
    done = stages_of(rehearsal, tmp_path, 2, 4, *options)
    assert done.status == 0, done.output[-3000:]
    assert not re.search(r"arpa|Reading|kaldilm", re.sub(r".*\d\d:\d\d:\d\d I .*", "", done.output))  # no noise
    summary = json.loads((tmp_path / f"graphs_{folder}/summary.json").read_text())
    for graph in ("unit_lm", "denominator", "hlg"):
        assert summary[graph]["states"] > 1 and summary[graph]["arcs"] > 1
    assert summary["unit_lm"]["perplexity"] > 1 and summary["hlg"]["perplexity"] > 1
    assert outputs is None or summary["topology"]["outputs"] <= outputs


def test_tied_biphones_are_trained_and_decoded(rehearsal: Rehearsal, tmp_path: Path) -> None:
    tying = ("--set", "graphs.min_biphone_count=5", "--set", "graphs.min_monophone_count=4")
    options = ("--units", "biphones", "--experiment", "teacher", "--set", "optim.updates=3", *tying)
    done = stages_of(rehearsal, tmp_path, 2, 10, *options)
    assert done.status == 0, done.output[-3000:]
    topology = json.loads((tmp_path / "lang_biphones/topology.json").read_text())
    assert (topology["kind"], topology["context"]) == ("ctc", "left")
    monophones = topology["units"]
    assert monophones < topology["outputs"] < monophones * topology["units"] / 2
    for method in ("1best", "greedy"):
        assert (tmp_path / f"exp/teacher_biphones/decode_test-clean_offline_{method}/wer.json").is_file()
    assert any((tmp_path / "num/teacher_biphones").glob("*.json"))


PRETRAINED = (
    "hubert1", "hubert", "bestrq", "wav2vec2", "teacher_hubert", "dt", "dt_disc_fbank_two", "dice", "dt_ft", "dice_ft",
)  # fmt: skip


def test_teachers_are_pre_trained_and_students_learn_from_them(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """HuBERT, BEST-RQ, wav2vec 2.0; fine-tuned; students of pre-trained states, papers/000; theirs fine-tuned."""
    options = ("--experiment", ",".join(PRETRAINED), "--set", "optim.updates=4", "--set", "data.share=0.5")
    aligner, undecoded = tmp_path / "exp/teacher", shutil.ignore_patterns("decode_*")
    shutil.copytree(rehearsal.exp / "teacher", aligner, ignore=undecoded)  # for the probe
    done = stages_of(rehearsal, tmp_path, 2, 10, *options)
    assert done.status == 0, done.output[-3000:]
    results = {name: json.loads((tmp_path / f"exp/{name}/result.json").read_text()) for name in PRETRAINED}
    assert all(result["updates"] == 4 and result["train_loss"] > 0 for result in results.values())
    decoded = {path.parent.parent.name for path in tmp_path.glob("exp/*/decode_test-clean_offline_1best/wer.json")}
    assert decoded == {"teacher_hubert", "dt_ft", "dice_ft"}, "only these have outputs of units"
    assert {path.name for path in tmp_path.glob("num/*")} == {"teacher_hubert"}, "no lattices without transcripts"
    units = {path.name.rpartition("-")[0] for path in tmp_path.glob("units/*") if path.is_dir()}
    assert units == {"mfcc-100", "hubert1-3-200", "hubert-3-200"}
    curves = (tmp_path / "exp/hubert/curves.tsv").read_text()
    assert "hubert_masked_accuracy" in curves and "probe_block5" in curves
    again = stages_of(rehearsal, tmp_path, 2, 10, *options)
    assert again.status == 0 and "update 1 of" not in again.output
    assert again.output.count("stage 5: up to date") >= 5
