"""When known words are said: the best path of a model's log-probabilities through the graph of the transcript."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.decode.word_times import Span, WordTimes
from distill.fsa.graph import Hmm
from distill.graphs.lexicon import Lang
from distill.graphs.numerator import transcript_graph


def align(times: WordTimes, words: Sequence[str], log_probs: np.ndarray) -> list[tuple[float, float]] | None:
    """Begin and end of each word in seconds: any of its pronunciations, silence between words or not.

    log_probs (T, V) of the whole utterance. None where so few frames cannot say so many units. Raises ValueError for
    a word outside the lexicon.
    """
    lang = times.lang
    path = viterbi(_graph(lang, words), log_probs)
    if path is None or not words:
        return None
    spans: list[Span] = times.spans(times.heard(path), words, [0] * len(words))
    return [(times.seconds(start), times.seconds(end)) for start, end in spans]


def _graph(lang: Lang, words: Sequence[str]) -> Hmm:
    spoken = [lang.pronunciation_ids(word, "the transcript") for word in words]
    return lang.topology.compose(transcript_graph(spoken, lang.silence))


def viterbi(graph: Hmm, log_probs: np.ndarray) -> np.ndarray | None:
    """The outputs (T,) of the best path over frames (T, V); None where no path has so many frames."""
    order = np.argsort(graph.dst.numpy(), kind="stable")
    src, dst, weight = (x.numpy()[order] for x in (graph.src, graph.dst, graph.weight))
    reached, first = np.unique(dst, return_index=True)
    label, frames = graph.label.numpy(), log_probs.astype(np.float64)
    if not len(frames):
        return None
    score, came = graph.initial.numpy() + frames[0, label], []
    for frame in frames[1:]:
        arcs = score[src] + weight
        best = np.full(graph.num_states, -np.inf)
        best[reached] = np.maximum.reduceat(arcs, first) if len(arcs) else []
        chosen = np.flatnonzero(arcs == best[dst])
        before = np.zeros(graph.num_states, dtype=np.int64)
        before[dst[chosen]] = src[chosen]
        came.append(before)
        score = best + frame[label]
    ending = score + graph.final.numpy()
    state = int(ending.argmax())
    if not np.isfinite(ending[state]):
        return None
    states = [state]
    for before in reversed(came):
        states.append(int(before[states[-1]]))
    return label[states[::-1]]
