"""Generated corpora with faults: the faults of the generator are left out, and nothing hangs, ends in a traceback
of a library or runs. DISTILL_BAD_CORPORA sets how many (CI: 150)."""

from __future__ import annotations

import csv
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lhotse import CutSet

from distill.corpora import Corpus, Custom, LibriSpeech
from distill.corpora.corpus import Roles
from distill.corpora.manifests import Checks, write_cut_sets, write_manifests
from tests.support.bad_corpora import LAYOUTS, LIBRISPEECH, PARTS, Made, make

COUNT = int(os.environ.get("DISTILL_BAD_CORPORA", "150"))
SECONDS = 30  # far above what one takes; a corpus that takes longer hangs
LIBRI_ROLES = Roles(("train-clean-100",), ("train-clean-360",), ("dev-clean",), {"test-a": (LIBRISPEECH["test-a"],)})


@contextmanager
def time_limit() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError(f"stage 0 takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def stage_0(made: Made, out: Path) -> None:
    """Manifests and cut sets as local/prepare_corpus.py makes them."""
    corpus: Corpus
    if made.layout == "librispeech":
        corpus = LibriSpeech(made.root)
        corpus.roles = LIBRI_ROLES
    else:
        corpus = Custom(made.root)
    write_manifests(corpus, out / "manifests", "mine", Checks(threads=1, shards=out / "checked"))
    write_cut_sets(out / "manifests", "mine", corpus.roles, out / "cuts")


def listing(made: Made, out: Path) -> dict[tuple[str, str], str]:
    """Kinds of skipped.tsv, by part and name; each name is there once."""
    names = {name: part for part, name in LIBRISPEECH.items()} if made.layout == "librispeech" else {}
    with (out / "manifests/skipped.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = {(names.get(row["part"], row["part"]), row["name"]): row["reason"].split(":")[0] for row in rows}
    assert len(found) == len(rows), "a name is listed twice"
    return found


def check_cuts(made: Made, out: Path) -> None:
    """Every cut has a name of its own and its utterance's text; its audio can be read."""
    cuts = {part: list(CutSet.from_file(out / f"cuts/{part}.jsonl.gz")) for part in PARTS}
    found = {}
    for part, some in cuts.items():
        for cut in some:
            segment = cut.supervisions[0]
            found[part, segment.id] = segment.custom["reference"] if part == "unlabelled" else segment.text
            assert cut.load_audio().shape == (1, cut.num_samples)
    assert found == made.kept
    ids = [cut.id for some in cuts.values() for cut in some]
    assert len(set(ids)) == len(ids)


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("block", range(0, COUNT, 50))
def test_what_is_left_out_is_what_was_spoiled(tmp_path: Path, block: int) -> None:
    outcomes = set()
    for index in range(block, min(block + 50, COUNT)):
        made = make(tmp_path / str(index) / "corpus", LAYOUTS[index % len(LAYOUTS)], seed=str(index))
        out = tmp_path / str(index)
        with time_limit():
            if made.error is None:
                stage_0(made, out)
                assert listing(made, out) == made.skipped, f"corpus {index}"
                check_cuts(made, out)
            else:
                with pytest.raises((ValueError, FileNotFoundError)) as failure:
                    stage_0(made, out)
                assert re.search(made.error, str(failure.value)), f"corpus {index}: {made.error}: {failure.value}"
        assert not (made.root / "executed").exists(), f"corpus {index} ran a command"
        outcomes.add((made.layout, made.error is None))
    assert len(outcomes) == 2 * len(LAYOUTS), "each layout is there, refused and used"
