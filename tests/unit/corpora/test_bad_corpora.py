"""Generated corpora with faults: the faults of the generator are left out, and nothing hangs, ends in a traceback
of a library or runs. DISTILL_BAD_CORPORA sets how many (CI: 150)."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lhotse import CutSet

from tests.support.bad_corpora import LAYOUTS, PARTS, Made, listing, make, stage_0

COUNT = int(os.environ.get("DISTILL_BAD_CORPORA", "150"))
SECONDS = 30  # far above what one takes; a corpus that takes longer hangs


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
