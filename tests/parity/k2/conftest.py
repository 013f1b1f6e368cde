"""Tests against the real k2; they run where it is installed: ./tools/test.sh --k2."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config.graphs import Graphs
from distill.fsa.graph import Fsa
from distill.fsa.lattice import DecodingGraph
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.denominator import build_denominator
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.word_ngram import train_word_ngram
from distill.synthetic.sentences import Grammar

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("k2") is None else []
# what Kaldi's chain recipes prune: histories of two units are kept where they help most
PRUNED = Graphs(order=3, style="chain", no_prune_order=2, num_extra_states=300)
MINI = Path(__file__).resolve().parents[3] / "egs" / "librispeech" / "mini"


@dataclass(frozen=True)
class Mini:
    """Lexicon and text of the embedded corpus, and the unit n-grams of its text."""

    lang: Lang
    folder: Path
    sentences: list[str]
    bigram: Fsa
    trigram: Fsa

    @property
    def arpa(self) -> Path:
        """Word bigram with back-off."""
        return self.folder / "words.arpa"


def spoken(mini: Mini, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy log-probabilities (B, T, V) of sentences, two to four frames a unit, and lengths (B,) in no order."""
    rng = np.random.default_rng(0)
    rows = []
    for sentence in sentences:
        units = [u for word in sentence.split() for u in mini.lang.pronunciation_ids(word, "test")[0]]
        frames = np.repeat(units, rng.integers(2, 5, len(units)))
        logits = 1.5 * rng.normal(size=(len(frames), mini.lang.topology.num_outputs))
        logits[np.arange(len(frames)), frames] += 5.0
        rows.append(torch.from_numpy(logits).log_softmax(-1).float())
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


@pytest.fixture(scope="session")
def hlg(mini: Mini) -> DecodingGraph:
    """Word bigram, lexicon and topology of the embedded corpus, composed by OpenFst; it has arcs without frames."""
    path = mini.folder / "HLG.fst"
    build_hlg(mini.lang, mini.arpa).write(str(path))
    return DecodingGraph.read(path)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    folder = tmp_path_factory.mktemp("lang_phones")
    write_lang(Lexicon.read(MINI / "lexicon.txt"), folder)
    lang = Lang.load(folder)
    grammar, rng = Grammar.read(MINI / "grammar.txt"), random.Random(0)
    sentences = [grammar.sentence(rng) for _ in range(2000)]
    bigram, trigram = (build_denominator(sentences, lang, settings)[0] for settings in (Graphs(), PRUNED))
    mini = Mini(lang, folder, sentences, bigram, trigram)
    train_word_ngram(sentences[:100], 2, lang.lexicon.words).write(mini.arpa)
    return mini
