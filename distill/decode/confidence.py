"""Word confidences: posteriors of the words of a path in its lattice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from distill.fsa.lattice import Lattice
from distill.search.determinise import arc_posteriors


def confidences(lattice: Lattice, path: np.ndarray, scale: float = 1.0) -> list[float]:
    """Posterior of each word of a path: the sum over all paths with this word between the words beside it.

    Word posteriors from time-overlapping arcs, as C_sum of Wessel et al. (2001), "Confidence measures for large
    vocabulary continuous speech recognition", section III; an arc's time is the frame of its word id in the graph.
    A word's neighbourhood ends at the words beside it, or half-way to one that is the same word. scale: of all scores.
    """
    arcs = np.flatnonzero(lattice.word > 0)
    word, frame = lattice.word[arcs], lattice.frame[lattice.src[arcs]]
    posterior = arc_posteriors(lattice, scale)[arcs]
    on_path = path[lattice.word[path] > 0]
    ids, frames = lattice.word[on_path].tolist(), lattice.frame[lattice.src[on_path]].tolist()
    same = [0.5 if one == other else 1.0 for one, other in pairwise(ids)]
    lows = [-1, *(here - share * (here - before) for before, here, share in zip(frames, frames[1:], same))]
    highs = [*(here + share * (after - here) for here, after, share in zip(frames, frames[1:], same)), np.inf]
    result = []
    for each, here, low, high in zip(ids, frames, lows, highs):
        near = (word == each) & (((frame > low) & (frame < high)) | (frame == here))
        result.append(min(1.0, float(posterior[near].sum())))
    return result
