"""The leaky HMM of lattice-free MMI: from every state a small probability of going on anywhere.

Povey et al., Purely sequence-trained neural networks for ASR based on lattice-free MMI, 2016, §2.4 and Kaldi's
chain code: alpha'(t, s) = alpha(t, s) + coefficient * sum_r alpha(t, r) * q(s), where q is how often states are visited.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.fsa.graph import Hmm

STEPS = 100  # of the walk that q averages, as in Kaldi


def leak_weights(graph: Hmm) -> Tensor:
    """q (S,) float64, summing to one: visits of a walk of 100 steps from the start, as Kaldi's initial probabilities.

    Weights out of a state (with its final weight) are normalised first, as those of a topology do not sum to one.
    """
    src, dst = graph.src.cpu().numpy(), graph.dst.cpu().numpy()
    weight, final = graph.weight.cpu().exp().numpy(), graph.final.cpu().exp().numpy()
    states = graph.num_states
    out = np.bincount(src, weight, minlength=states) + final
    share = weight / out[src]
    here = graph.initial.cpu().exp().numpy()
    visits = np.zeros(states)
    for _ in range(STEPS):
        here = here / max(here.sum(), np.finfo(float).tiny)
        visits += here / STEPS
        here = np.bincount(dst, here[src] * share, minlength=states)
    return torch.from_numpy(visits / max(visits.sum(), np.finfo(float).tiny))
