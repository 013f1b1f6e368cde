"""Stages 7, 10 and 11 by one process, by --nj processes and by ranks: the same files, each written once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill.files import own_name
from tests.support.tiny_recipe import Tiny, succeeded

LAUNCHER = ("--launcher", "torchrun --standalone --nproc-per-node 2", "--nj", "2")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but `.done`, which has seconds."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".done")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def labels(tiny: Tiny) -> dict[str, bytes]:
    """What stage 7 left, and nothing in the next call's way."""
    found = contents(tiny.data / "num")
    shutil.rmtree(tiny.data / "num")
    return found


def decodings(tiny: Tiny) -> dict[str, bytes]:
    """What stage 10 left, and nothing in the next call's way."""
    folders = [path for name in ("decode", "rescoring", "log_probs") for path in tiny.exp.glob(f"*/{name}_*")]
    found = {
        f"{path.parent.name}/{path.name}/{name}": data for path in folders for name, data in contents(path).items()
    }
    for path in folders:
        shutil.rmtree(path)
    return found


def test_labels_are_the_same_by_any_number_of_processes(tiny: Tiny) -> None:
    tiny.run("label_unlabelled.py", "--nj", "1")
    one = labels(tiny)
    logged = tiny.run("label_unlabelled.py", "--nj", "2")
    two = labels(tiny)
    launched = tiny.run("label_unlabelled.py", *LAUNCHER)
    assert len([name for name in one if name.endswith(".npz")]) == 8
    assert one == two == labels(tiny)
    assert logged.count("lattices of") == 8
    assert launched.count("lattices of") == 4  # the first rank's half: the others log warnings
    assert not [name for name in one if ".tmp" in name or ".lock" in name]


def test_labelling_goes_on_with_what_is_missing(tiny: Tiny) -> None:
    tiny.run("label_unlabelled.py", "--nj", "1")
    part = tiny.data / "num/teacher/unlabelled"
    whole, kept = contents(part), (part / "00002.npz").stat().st_mtime_ns
    for name in ("00001.npz", "shards.json", "../.done"):
        (part / name).unlink()
    own_name(part / "00001.npz").write_bytes(b"half")
    logged = tiny.run_ranks("label_unlabelled.py", 2)
    assert sum(each.count("lattices of") for each in logged) == 1
    assert contents(part) == whole and (part / "00002.npz").stat().st_mtime_ns == kept


def test_decodings_are_the_same_by_any_number_of_processes(tiny: Tiny) -> None:
    tiny.run("decode.py", "--nj", "1")
    one = decodings(tiny)
    tiny.run("decode.py", "--nj", "2")
    two = decodings(tiny)
    logged = tiny.run_ranks("decode.py", 2)
    assert len([name for name in one if name.endswith("wer.json")]) == 18  # 3 modes, 2 test sets, 3 methods
    assert one == two == decodings(tiny)
    assert ["%WER" in each for each in logged] == [True, False]
    jobs = [tiny.start("decode.py", "--nj", "1", "--job", job) for job in ("1/2", "2/2")]  # wait for weights
    assert ["%WER" in succeeded(job) for job in jobs] == [True, True]
    assert one == decodings(tiny)


def test_the_language_model_is_trained_and_used_once_by_any_number_of_processes(tiny: Tiny) -> None:
    perplexities = []
    for options, ranks in ((("--nj", "1"), 1), (("--nj", "2"), 2), (LAUNCHER, 2)):
        output = tiny.run("rescore.py", *options)
        assert json.loads((tiny.exp / "lm/result.json").read_text())["ranks"] == ranks
        summary = json.loads((tiny.exp / "lm/perplexity/summary.json").read_text())
        perplexities.append(summary["models"]["transformer"]["perplexity"])
        assert len(list(tiny.exp.glob("*/decode_*_transformer-lm/wer.json"))) == 4  # 2 experiments, 2 test sets
        assert output.count("transformer on dev") == 1 and not list(tiny.exp.rglob("*.lock"))
        assert "stage 11: making" not in tiny.run("rescore.py", *options)
        for path in (tiny.exp / "lm", *tiny.exp.glob("*/decode_*"), *tiny.exp.glob("*/rescoring")):
            shutil.rmtree(path)
    assert perplexities == pytest.approx([perplexities[0]] * 3, rel=0.01)


def test_stage_11_reads_the_log_probabilities_of_stage_10(tiny: Tiny) -> None:
    tiny.run("decode.py", "--nj", "2")
    kept = {path: path.stat().st_mtime_ns for path in tiny.exp.glob("*/log_probs_*/log_probs.npy")}
    assert len(kept) == 6  # 2 experiments on dev and 2 test sets
    assert "log_probs" in tiny.run("rescore.py", "--nj", "1")
    assert kept == {path: path.stat().st_mtime_ns for path in tiny.exp.glob("*/log_probs_*/log_probs.npy")}
