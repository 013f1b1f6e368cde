"""Best paths of a graph without words, by scores of its outputs in each frame."""

from __future__ import annotations

import numpy as np

from distill.fsa.graph import Hmm


class Viterbi:
    """Search of one graph; arcs sorted by their destination, so that one call gives the best of every state.

    scale: of the graph's weights beside the scores of the frames.
    """

    def __init__(self, graph: Hmm, scale: float = 1.0) -> None:
        order = np.argsort(graph.dst.numpy(), kind="stable")
        self.src, self.dst, weight = (x.numpy()[order] for x in (graph.src, graph.dst, graph.weight))
        self.label = graph.label.numpy()
        self.weight, self.initial, self.final = (
            scale * weight,
            scale * graph.initial.numpy(),
            scale * graph.final.numpy(),
        )
        self.reached, self.first = np.unique(self.dst, return_index=True)

    def labels(self, scores: np.ndarray) -> np.ndarray | None:
        """The outputs (T,) of the best path over frames (T, V); None where no path has so many frames."""
        best = np.full((len(scores), len(self.label)), -np.inf)
        for t, frame in enumerate(scores):
            if t == 0:
                best[t] = self.initial
            elif len(self.src):
                best[t, self.reached] = np.maximum.reduceat(best[t - 1][self.src] + self.weight, self.first)
            best[t] += frame[self.label]
        if not len(scores) or not np.isfinite(np.max(best[-1] + self.final)):
            return None
        labels, state = np.zeros(len(scores), dtype=np.int64), int(np.argmax(best[-1] + self.final))
        for t in range(len(scores) - 1, -1, -1):
            labels[t] = self.label[state]
            low, high = np.searchsorted(self.dst, [state, state + 1])
            if t:
                state = int(self.src[low + np.argmax(best[t - 1][self.src[low:high]] + self.weight[low:high])])
        return labels
