"""OpenFst's files: what is written is read back, and broken files are named."""

from __future__ import annotations

from pathlib import Path

import kaldifst
import numpy as np
import pytest

from distill.fsa.openfst import read_openfst, save_fst, to_openfst_text
from tests.support.k2_readers import from_openfst_text
from tests.support.random_graphs import assert_same, transducer, unsorted_fsa


def test_text_of_an_acceptor() -> None:
    text = to_openfst_text(unsorted_fsa())
    assert_same(from_openfst_text(text), unsorted_fsa())
    compiled = kaldifst.compile(text, acceptor=False)
    weights = sorted(float(line.split()[4]) for line in compiled.to_str().splitlines() if len(line.split()) == 5)
    assert weights == pytest.approx(sorted(-unsorted_fsa().weight), abs=1e-5)


def test_openfst_binary_is_read_as_openfst_reads_it(tmp_path: Path) -> None:
    transducer().write(str(tmp_path / "t.fst"))
    start, final, source, arcs = read_openfst(tmp_path / "t.fst")
    assert (start, final.tolist(), source.tolist()) == (2, [0.25, np.inf, np.inf], [1, 1, 2])
    assert arcs.tolist() == [(0, 8, 1.5, 0), (4, 0, 2.5, 1), (5, 9, 0.5, 1)]


@pytest.mark.parametrize("content", [b"", b"hello there, this is no graph", "cut"])
def test_broken_openfst_binary(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "t.fst"
    transducer().write(str(path))
    path.write_bytes(path.read_bytes()[:-8] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"t\.fst: cut short, or not an OpenFst"):
        read_openfst(path)


def test_a_graph_that_openfst_could_not_write_is_an_error(tmp_path: Path) -> None:
    class Refused:
        def write(self, path: str) -> bool:
            Path(path).write_bytes(b"half")
            return False

    with pytest.raises(OSError, match=r"cannot write .*HLG\.fst"):
        save_fst(tmp_path / "HLG.fst", Refused())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
