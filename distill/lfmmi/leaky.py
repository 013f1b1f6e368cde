"""The leaky HMM of lattice-free MMI: after every frame a little probability mass leaks into all states.

Povey et al., Purely sequence-trained neural networks for ASR based on lattice-free MMI, 2016, section 2.4, and
Kaldi's chain-denominator.cc: alpha'(t, s) = alpha(t, s) + coefficient * sum_r alpha(t, r) * q(s), where q is the
relative frequency of visits to each state. Paths of a transition W and final weights f become those of
(I + c 1 q^T) W and f + c q.f.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.fsa.graph import Hmm

STEPS = 100  # of the walk that q averages, as in Kaldi


class Leak(NamedTuple):
    """Rank-one terms that a leak adds to a step of alpha (row 0) and of beta (row 1): y += (x . inner) * outer.

    inner, outer (2, S) float64, the coefficient in `outer`; final (S,): final weights with the leak in them.
    """

    inner: Tensor
    outer: Tensor
    final: Tensor


def leak_weights(graph: Hmm) -> Tensor:
    """q (S,) float64, summing to one: visits of a walk of 100 steps from the start, as Kaldi's initial probabilities.

    Weights out of a state (with its final weight) are normalised first, as those of a topology do not sum to one.
    """
    src, dst = graph.src.cpu().numpy(), graph.dst.cpu().numpy()
    weight, final = graph.weight.cpu().exp().numpy(), graph.final.cpu().exp().numpy()
    states, tiny = graph.num_states, np.finfo(float).tiny
    out = np.bincount(src, weight, minlength=states) + final
    share = weight / np.maximum(out, tiny)[src]
    here = graph.initial.cpu().exp().numpy()
    visits = np.zeros(states)
    for _ in range(STEPS):
        here = here / max(here.sum(), tiny)
        visits += here / STEPS
        here = np.bincount(dst, here[src] * share, minlength=states)
    return torch.from_numpy(visits / max(visits.sum(), tiny))


def leak_of(graph: Hmm, coefficient: float) -> Leak:
    """The rank-one terms of a leak in `graph`, as probabilities."""
    q = leak_weights(graph)
    through = torch.zeros_like(q).index_add_(0, graph.dst.cpu(), q[graph.src.cpu()] * graph.weight.cpu().exp())
    one = torch.ones_like(q)
    final = graph.final.cpu().exp()
    return Leak(
        torch.stack([one, through]), coefficient * torch.stack([through, one]), final + coefficient * (q @ final)
    )
