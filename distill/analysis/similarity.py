"""Similarity of representations: SVCCA (Raghu et al. 2017) and linear CKA (Kornblith et al. 2019).

Both are between 0 and 1, and stay as they are when a representation is rotated or scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VARIANCE = 0.99  # share that the kept directions of SVCCA explain
LEAST = 10  # frames per channel: with few more frames than channels anything is similar to anything


def directions(x: np.ndarray) -> np.ndarray:
    """x (N, C), a row per frame -> (N, k): orthonormal principal directions over frames, of 99 % of the variance."""
    vectors, scales, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    if not scales.any():
        return vectors[:, :0]  # the same in every frame
    explained = np.cumsum(scales**2) / np.sum(scales**2)
    return vectors[:, : int(np.searchsorted(explained, VARIANCE)) + 1]


def mean_correlation(u: np.ndarray, v: np.ndarray) -> float:
    """Mean canonical correlation of orthonormal directions (N, j) and (N, k), over the smaller number of them."""
    if not min(u.shape[1], v.shape[1]):
        return 0.0
    return float(np.linalg.svd(u.T @ v, compute_uv=False).mean())


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """|Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|) of centred x (N, C) and y (N, D), in Frobenius norms."""
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / scale) if scale else 0.0


def by_block(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Both measures of every block of one model with every block of another at the same frames: (L, L') each.

    0 for a block that is the same in every frame. Raises ValueError for fewer frames than `LEAST` a channel.
    """
    frames, channels = len(first[0]), max(x.shape[1] for x in (*first, *second))
    if frames < LEAST * channels:
        raise ValueError(
            f"{frames} frames of up to {channels} channels are too few to compare: take more of the cut set"
            f" (--utterances), or a larger one (--part), for at least {LEAST * channels} frames"
        )
    ours, theirs = ([directions(x) for x in states] for states in (first, second))
    return {
        "SVCCA": np.array([[mean_correlation(u, v) for v in theirs] for u in ours]),
        "CKA": np.array([[linear_cka(x, y) for y in second] for x in first]),
    }
