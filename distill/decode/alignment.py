"""Forced alignment: the best path of a model's log-probabilities through the graph of the transcript."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.decode.viterbi import Viterbi
from distill.decode.word_times import WordTimes
from distill.graphs.numerator import transcript_graph


def align(times: WordTimes, words: Sequence[str], log_probs: np.ndarray) -> list[tuple[float, float]] | None:
    """Begin and end of each word in seconds, with any of its pronunciations and optional silence between words.

    log_probs (T, V) of the whole utterance. None without words, or with fewer frames than any path needs. Raises
    ValueError for a word outside the lexicon.
    """
    lang = times.lang
    pronunciations = [lang.pronunciation_ids(word, "the transcript") for word in words]
    graph = lang.topology.compose(transcript_graph(pronunciations, lang.silence))
    path = Viterbi(graph).labels(log_probs.astype(np.float64))
    if path is None or not words:
        return None
    spans = times.spans(times.units(path), words, [0] * len(words))
    return [(times.seconds(start), times.seconds(end)) for start, end in spans]
