"""The tri-state learning rate: warm up, hold, decay (papers/001 §5.1.3; fairseq's tri_stage)."""

from __future__ import annotations

import math
from collections.abc import Callable

from distill.config.training import Optim

START_SCALE = 0.01


def learning_rate(settings: Optim, progress: float) -> float:
    """Rate at `progress` in 0..1 of the training; the decay is linear, exponential or half a period of a cosine."""
    warm, hold, decay = (phase / sum(settings.phases) for phase in settings.phases)
    if progress < warm:
        return settings.lr * (START_SCALE + (1 - START_SCALE) * progress / warm)
    if progress < warm + hold or not decay:
        return settings.lr
    share = min(1.0, (progress - warm - hold) / decay)
    if settings.decay == "exponential":
        return settings.lr * settings.final_scale**share
    if settings.decay == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return settings.lr * (1 - (1 - settings.final_scale) * share)


def count_updates(settings: Optim, batches: Callable[[int], int]) -> int:
    """Updates of the whole training; batches(epoch): how many an epoch has."""
    if settings.updates:
        return settings.updates
    return sum(-(-batches(epoch) // settings.accumulate) for epoch in range(settings.epochs))
