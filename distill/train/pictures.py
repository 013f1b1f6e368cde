"""Pictures of what a recogniser outputs for an utterance, for tensorboard."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from distill.batch import Batch
from distill.decode.viterbi import Viterbi
from distill.extras import needed
from distill.models.recogniser import Recogniser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
MOST_NAMES = 60  # units that are named on the axis


@cache
def possible() -> bool:
    """Whether pictures can be drawn; a warning, once, where matplotlib is missing."""
    try:
        with needed("the picture of posteriors in tensorboard"):
            import matplotlib.figure  # noqa: F401
    except ValueError as error:
        log.warning("%s", error)
        return False
    return True


@torch.no_grad()
def posteriors(model: Recogniser, utterance: Batch, units: Sequence[str]) -> Figure:
    """Posteriors (V, T) of one utterance with the best path of its numerator, or the best unit of each frame."""
    from matplotlib.figure import Figure

    log_probs = model(utterance.wave, utterance.samples).logits[0].double().log_softmax(-1).cpu().numpy()
    path = Viterbi(utterance.graphs[0]).labels(log_probs) if utterance.graphs else None
    what = "best unit of each frame" if path is None else "best path of the numerator"
    drawing = Figure((10, 4), dpi=80, layout="constrained")
    axes = drawing.add_subplot()
    image = axes.imshow(np.exp(log_probs.T), aspect="auto", origin="lower", interpolation="nearest", vmin=0, vmax=1)
    axes.plot(log_probs.argmax(1) if path is None else path, color="tab:red", linewidth=0.8, label=what)
    axes.set(xlabel="frame", ylabel="unit", title=utterance.ids[0])
    if len(units) <= MOST_NAMES:
        axes.set_yticks(range(len(units)), units, fontsize=6)
    axes.legend(loc="upper right", fontsize=7)
    drawing.colorbar(image, ax=axes, label="posterior")
    return drawing
