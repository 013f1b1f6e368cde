"""Masked prediction of k-means units, HuBERT (Hsu et al. 2021, Eq. 1-3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Hubert as Settings
from distill.losses.term import Losses, LossTerm, Term, TermContext, feature_penalty
from distill.models.codes import CodeHead, perplexity


class Hubert(LossTerm):
    """Cross-entropy of units, of masked frames and where it has a weight of the others.

    fairseq sums both and divides by the frames of those with a weight: so do `total` and `count` of the term here.
    """

    needs = frozenset({"units", "masks"})

    def __init__(self, settings: Settings, dim: int, clusters: int) -> None:
        super().__init__()
        self.settings = settings
        self.head = CodeHead(dim, settings.final_dim, clusters, settings.temperature, settings.block or -1)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Hubert:
        return cls(settings, context.student.encoder.dim, context.clusters)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """Terms: hubert, the penalty of features, and as figures the accuracies and the predicted codewords in use."""
        assert student.masked is not None and batch.units is not None
        hidden = student.hidden[self.head.block]
        units = F.pad(batch.units, (0, hidden.shape[1] - batch.units.shape[1]), value=-1)  # cut where it is longer
        inside = valid_mask(student.lengths, hidden.shape[1]) & (units >= 0)
        parts = {
            "masked": (inside & student.masked, self.settings.masked_weight),
            "unmasked": (inside & ~student.masked, self.settings.unmasked_weight),
        }
        total, count, terms = hidden.new_zeros((), dtype=torch.float32), inside.new_zeros((), dtype=torch.int64), {}
        for part, (frames, weight) in parts.items():
            if weight:
                logits = self.head(hidden[frames]).float()
                total = total + weight * F.cross_entropy(logits, units[frames], reduction="sum")
                count = count + frames.sum()
                predicted, number = logits.argmax(-1), frames.sum()
                terms[f"hubert_{part}_accuracy"] = Term((predicted == units[frames]).sum(), number, 0.0)
                shares = predicted.bincount(minlength=self.head.clusters) / number.clamp_min(1)
                terms[f"hubert_{part}_perplexity"] = Term(perplexity(shares) * number, number, 0.0)
        if self.settings.feature_penalty:
            terms["hubert_features"] = feature_penalty(student, self.settings.feature_penalty)
        return Losses({"hubert": Term(total, count), **terms})
