"""Cut sets in blocks: a jsonl.gz for lhotse, read one block at a time by us."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import CutSet
from lhotse.testing.dummies import DummyManifest

from distill.corpora import cut_sets
from distill.corpora.cut_sets import CutBlocks, each_cut, load_cuts, spread, write_cuts


@pytest.fixture
def cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutSet:
    monkeypatch.setattr(cut_sets, "BLOCK", 4)
    made = DummyManifest(CutSet, begin_id=0, end_id=10)
    assert write_cuts(made, tmp_path / "a.jsonl.gz") == pytest.approx(10 / 3600)
    return made


def test_lhotse_reads_the_file(cuts: CutSet, tmp_path: Path) -> None:
    assert list(CutSet.from_file(tmp_path / "a.jsonl.gz")) == list(cuts) == list(load_cuts(tmp_path, ["a"]))


def test_each_block_is_read_alone(cuts: CutSet, tmp_path: Path) -> None:
    blocks = CutBlocks(tmp_path, "a")
    assert blocks.counts.tolist() == [4, 4, 2] and blocks.seconds.tolist() == [4, 4, 2]
    ids = [cut.id for cut in cuts]
    for number in (2, 0, 1):
        read = blocks.read(number)
        assert [cut.id for cut in read] == ids[4 * number : 4 * number + 4]
        assert {cut.custom["block"] for cut in read} == {f"a/{number}"}
    assert [cut.id for cut in each_cut(tmp_path, ["a", "a"])] == 2 * ids


def test_a_sample_is_spread_over_all_blocks(cuts: CutSet, tmp_path: Path) -> None:
    ids, files = [cut.id for cut in cuts], [CutBlocks(tmp_path, "a"), CutBlocks(tmp_path, "a")]
    assert [cut.id for cut in spread(files, 5)] == [ids[n % 10] for n in (0, 4, 8, 12, 16)]
    assert [cut.id for cut in spread(files, 99)] == 2 * ids
    drawn = [[cut.id for cut in spread(files, 99, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0]) == sorted(drawn[2]) == sorted(2 * ids)
    assert sorted(cut.id for cut in spread(files, 5, 1)) == sorted(ids[n % 10] for n in (0, 4, 8, 12, 16))


def test_same_cuts_same_bytes(cuts: CutSet, tmp_path: Path) -> None:
    write_cuts(iter(cuts), tmp_path / "b.jsonl.gz")
    for ending in (".jsonl.gz", ".blocks.tsv"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_the_name_of_a_block_is_not_written(cuts: CutSet, tmp_path: Path) -> None:
    write_cuts(each_cut(tmp_path, ["a"]), tmp_path / "b.jsonl.gz")
    assert list(load_cuts(tmp_path, ["b"])) == list(cuts)


def test_an_empty_set_has_no_blocks(tmp_path: Path) -> None:
    write_cuts([], tmp_path / "a.jsonl.gz")
    assert len(CutBlocks(tmp_path, "a")) == 0 and list(each_cut(tmp_path, ["a"])) == []
    assert list(spread([CutBlocks(tmp_path, "a")], 3, 1)) == []
    with pytest.raises(ValueError, match=r"cut sets a in .* are empty; run stage 0 again"):
        load_cuts(tmp_path, ["a"])


def test_missing_and_foreign_files_are_named(cuts: CutSet, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no cut set at .*b\.jsonl\.gz; stage 0 writes it \(there: a\)"):
        CutBlocks(tmp_path, "b")
    cuts.subset(first=3).to_file(tmp_path / "a.jsonl.gz")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is not the file of its index a\.blocks\.tsv; run stage 0"):
        CutBlocks(tmp_path, "a")
    (tmp_path / "a.blocks.tsv").unlink()
    with pytest.raises(ValueError, match=r"no readable index a\.blocks\.tsv beside .*; run stage 0 again"):
        CutBlocks(tmp_path, "a")


def test_a_damaged_block_is_named(cuts: CutSet, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    blocks = CutBlocks(tmp_path, "a")
    assert len(blocks.read(0)) == 4
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: block 1 is damaged or not that of its index"):
        blocks.read(1)
