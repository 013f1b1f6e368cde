"""Output of a trained model: log-probabilities of some utterances, and a decoding graph of their words.

real_speech.npz holds the first five utterances of test-other as `ss` of `run.sh --mini true` heard them, in float16.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.word_ngram import train_word_ngram
from distill.synthetic.sentences import Grammar

MINI = Path(__file__).parents[1] / "egs/librispeech/mini"


@dataclass(frozen=True)
class Real:
    """log_probs (T, V) float32 of utterances, their transcripts, and a folder with lang, words.arpa, HLG.fst."""

    lang: Lang
    folder: Path
    log_probs: list[np.ndarray]
    words: list[str]

    @property
    def hlg(self) -> Path:
        return self.folder / "HLG.fst"


def load_real(folder: Path, sentences: int = 300) -> Real:
    """The graph is made of a word bigram from so many sentences of the embedded corpus' grammar."""
    write_lang(Lexicon.read(MINI / "lexicon.txt"), folder)
    lang, content = Lang.load(folder), np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False)
    assert content["outputs"].tolist() == lang.outputs
    grammar, rng = Grammar.read(MINI / "grammar.txt"), random.Random(0)
    text = [grammar.sentence(rng) for _ in range(sentences)]
    train_word_ngram(text, 2, lang.lexicon.words).write(folder / "words.arpa")
    build_hlg(lang, folder / "words.arpa").write(str(folder / "HLG.fst"))
    frames = np.split(content["log_probs"].astype(np.float32), np.cumsum(content["lengths"])[:-1])
    return Real(lang, folder, frames, content["words"].tolist())
