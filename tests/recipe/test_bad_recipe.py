"""Bad utterances through stages 0 to 9: each is listed once with its reason, everything else is trained on.

DISTILL_BAD_RECIPE=1000 runs it with so many faults or more (two minutes); in CI: tests/unit/data/test_bad_audio.py.
"""

from __future__ import annotations

import csv
import logging
import os
import random
import re
import resource
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from distill.batch import SAMPLE_RATE
from distill.corpora.cut_sets import load_cuts
from distill.models import checkpoint
from tests.support.bad_corpora import audio_of, listing, make, mend, spoil_later

COUNT = int(os.environ.get("DISTILL_BAD_RECIPE", "0"))
RUN = Path(__file__).resolve().parents[2] / "egs/custom/run.sh"
SETTINGS = (
    "optim.updates=0", "optim.epochs=1", "data.valid_utterances=4", "data.max_duration=12", "data.workers=0",
    "data.keep_audio=false", "data.train=[labelled,unlabelled]", "decoding.acoustic_scale=0.1",
)  # fmt: skip
REMOVED = "SHUT"
NO_WORD, NO_LATTICE, NO_PATH = "word outside the lexicon", "no lattice", "no path"
PHRASES = {"is not in the lexicon": NO_WORD, "the teacher wrote no lattice": NO_LATTICE}
pytestmark = [pytest.mark.skipif(not COUNT, reason="DISTILL_BAD_RECIPE=N"), pytest.mark.timeout(3600)]


def stages(root: Path, first: int, last: int, status: int = 0) -> str:
    options = ["--nj", "1", "--corpus-dir", root / "corpus", "--data-dir", root / "data", "--exp-dir", root / "exp"]
    options += ["--stage", first, "--stop-stage", last, *(part for each in SETTINGS for part in ("--set", each))]
    done = subprocess.run(
        [str(RUN), *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800
    )
    assert done.returncode == status, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    return done.stdout


def listed(path: Path) -> dict[str, str]:
    """Kind by cut id of a skipped.tsv, in which each is there once."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    found = {}
    for name, reason in rows:
        phrase = next((kind for phrase, kind in PHRASES.items() if phrase in reason), None)
        found[name] = phrase or reason.removeprefix(f"cut {name}: ").split(":")[0]
    assert len(found) == len(rows), f"{path} lists a cut twice"
    return found


def check_training(folder: Path, cuts: list, expected: dict[str, str]) -> None:
    """The list of a training is the expected one, and in its one epoch all else was trained on, once."""
    found = listed(folder / "skipped.tsv")
    without_path = [name for name, kind in found.items() if kind == NO_PATH]
    assert {name: kind for name, kind in found.items() if kind != NO_PATH} == expected
    progress = checkpoint.load(folder / "last.pt")["progress"]
    samples = sum(round(cut.duration * SAMPLE_RATE) for cut in cuts if cut.id not in expected)
    assert progress["audio_seconds"] == pytest.approx(samples / SAMPLE_RATE, abs=1e-3)
    assert progress["dropped"] == len(without_path)
    logging.warning("%s: %d trained on, left out: %s", folder.name, len(cuts) - len(expected), Counter(found.values()))


def test_a_thousand_bad_utterances(tmp_path: Path) -> None:
    rng = random.Random(COUNT)
    made = make(tmp_path / "corpus", "kaldi", "a", faults=COUNT * 3 // 5, sound=COUNT // 5, broken=0)
    stages(tmp_path, 0, 4)
    assert listing(made, tmp_path / "data") == made.skipped
    cuts = {part: list(load_cuts(tmp_path / "data/cuts", [part])) for part in ("labelled", "unlabelled")}
    later = {part: spoil_later(some, rng, len(some) * 2 // 3) for part, some in cuts.items()}
    lexicon = tmp_path / "data/lang_phones/lexicon.txt"
    lexicon.write_text(re.sub(rf"(?m)^{REMOVED} .*\n", "", lexicon.read_text()))
    stages(tmp_path, 5, 7)

    labelled = later["labelled"] | {cut.id: NO_WORD for cut in cuts["labelled"] if REMOVED in cut.supervisions[0].text}
    every = cuts["labelled"] + cuts["unlabelled"]
    check_training(tmp_path / "exp/teacher", every, labelled | {cut.id: NO_LATTICE for cut in cuts["unlabelled"]})
    lattices = listed(tmp_path / "data/num/teacher/skipped.tsv")
    assert {name: kind for name, kind in lattices.items() if "no complete path" not in kind} == later["unlabelled"]

    for cut in cuts["unlabelled"]:
        if cut.id in lattices:  # mended, but the lattice is missing
            mend(audio_of(cut))
    known = [cut for cut in cuts["unlabelled"] if cut.id not in lattices]
    second = spoil_later(known, rng, len(known) // 3)
    stages(tmp_path, 8, 9)
    for name in ("sn", "ss"):
        check_training(tmp_path / "exp" / name, every, labelled | dict.fromkeys(lattices, NO_LATTICE) | second)
    (test, *_) = load_cuts(tmp_path / "data/cuts", ["test-a"])
    audio_of(test).unlink()
    output = stages(tmp_path, 10, 10, status=1)
    assert re.search(rf" E cut {test.id}: no such file: {audio_of(test)} \(DISTILL_TRACEBACK", output)
    bad = Counter(made.skipped.values()) + Counter((labelled | later["unlabelled"] | second).values())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    logging.warning("%d bad utterances, peak memory %d MiB; %s", bad.total(), peak, bad)
