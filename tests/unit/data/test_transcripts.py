"""Units of transcripts: the first pronunciation of each word, or the teacher's best sequence, without silence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lhotse import CutSet

from distill.config.experiment import Experiment
from distill.data.lattices import LATTICES, CutLattice, Lattices, write_shard
from distill.data.shards import shard_path
from distill.data.transcripts import Transcripts, padded_tokens
from distill.graphs.bpe import Bpe, bpe_lexicon, char_lexicon, train_bpe
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.search.determinise import SequenceGraph
from tests.support.lang import lang as lang
from tests.support.training import SETTINGS, loader_of, write_letters, write_speech


def cut(text: str | None, name: str = "cut") -> SimpleNamespace:
    return SimpleNamespace(id=name, supervisions=[SimpleNamespace(text=text)], custom=None)


def chain(units: list[int]) -> SequenceGraph:
    """A lattice of one sequence, or of none of them: an empty one."""
    arcs, states = len(units), len(units) + 1
    number, zero = np.arange(states, dtype=np.int32), np.zeros(states, np.float32)
    ends = np.where(number == arcs, 0.0, -np.inf).astype(np.float32)
    symbols = np.array(units, dtype=np.int32)
    return SequenceGraph(
        number[:-1], number[1:], symbols, zero[:-1], zero[:-1], ends, zero, 0 * number, 0 * number, (0.0, 0.0), 3.0
    )


def stored(folder: Path, **sequences: list[int]) -> Lattices:
    folder.mkdir()
    cuts = [CutLattice(name, chain(units), np.ones(4)) for name, units in sequences.items()]
    write_shard(shard_path(folder, 0), cuts, frame_shift=0.04, beam=3.0)
    LATTICES.finish(folder, 1)
    return Lattices([folder])


def test_a_text_is_its_words_first_pronunciations(lang: Lang) -> None:
    assert [lang.units[unit] for unit in Transcripts(lang).of(cut("ANNA A TWO"))] == ["AE", "N", "AH", "AH", "T", "UW"]


def test_every_kind_of_units_has_one_sequence(tmp_path: Path) -> None:
    lexicon = Lexicon({word: (tuple(word),) for word in ("ANNA", "AN", "NINE")})
    bpe = Bpe(train_bpe(["ANNA AN NINE"] * 20, 10))
    for number, units in enumerate((char_lexicon(lexicon), bpe_lexicon(lexicon, bpe))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_lang(units, folder, ["<blk>", *units.phones], None)
        lang = Lang.load(folder)
        found = "".join(lang.units[unit] for unit in Transcripts(lang).of(cut("AN NINE ANNA")))
        assert found == "▁AN▁NINE▁ANNA"


def test_a_cut_without_text_has_the_teachers_best_sequence_without_silence(lang: Lang, tmp_path: Path) -> None:
    silence = lang.silence
    assert silence is not None
    transcripts = Transcripts(lang, stored(tmp_path / "num", cut=[silence, 3, 3, silence, 5], quiet=[silence]))
    assert transcripts.of(cut(None)) == [3, 3, 5] and transcripts.of(cut(None, "quiet")) == []
    assert transcripts.of(cut("A")) == [lang.tokens["AH"]]


def test_why_there_are_no_units_is_said(lang: Lang) -> None:
    assert "cut cut has no text, and no lattice" in Transcripts(lang).of(cut(None))
    assert "word 'MISSING' of cut is not in the lexicon" in Transcripts(lang).of(cut("GO MISSING"))


def test_units_of_a_batch_are_padded() -> None:
    assert padded_tokens([[3, 1], [], [2]]).tolist() == [[3, 1], [0, 0], [2, 0]]
    assert padded_tokens([[]]).shape == padded_tokens([]).shape == (1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_units_come_with_their_utterances(tmp_path: Path, workers: int) -> None:
    cuts, lang = write_speech(tmp_path / "speech", 8), write_letters(tmp_path / "lang")
    cuts = CutSet.from_cuts(cuts)
    next(iter(cuts)).supervisions[0].text = "A C"
    settings = Experiment.parse({**SETTINGS, "data": {"max_duration": 1.0, "workers": workers}}, "toy")
    said = {each.id: each.supervisions[0].text.split() for each in cuts}
    seen, left_out = [], {}
    for batch in loader_of(cuts, None, settings, transcripts=Transcripts(lang)).epoch(0):
        left_out |= dict(batch.left_out)
        seen += batch.ids
        for number, name in enumerate(batch.ids):
            assert batch.row(number).tokens.tolist() == [[lang.tokens[word] for word in said[name]]]
    assert sorted([*seen, *left_out]) == sorted(said) and [*left_out] == [next(iter(cuts)).id]
    assert "word 'C'" in next(iter(left_out.values()))
