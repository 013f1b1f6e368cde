"""The contrastive task of wav2vec 2.0 over quantised front-end frames (Baevski et al. 2020, §2 and Eq. 3 and 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Contrastive as Settings
from distill.losses.term import Losses, LossTerm, Term, TermContext, feature_penalty
from distill.models.codes import perplexity


class Quantised(NamedTuple):
    """vectors (M, D), codes (M, G): number of each group's codeword; probabilities (M, G, V), without noise."""

    vectors: Tensor
    codes: Tensor
    probabilities: Tensor


class Quantiser(nn.Module):
    """Product quantisation: one codeword of each group, drawn by Gumbel-softmax in training, else the likeliest."""

    def __init__(self, features: int, groups: int, codewords: int, dim: int) -> None:
        super().__init__()
        self.groups = groups
        self.scores = nn.Linear(features, groups * codewords)
        nn.init.normal_(self.scores.weight)
        nn.init.zeros_(self.scores.bias)
        # group after group in one dimension, as in published checkpoints
        self.codewords = nn.Parameter(torch.empty(1, groups * codewords, dim // groups).uniform_())

    def forward(self, x: Tensor, temperature: float) -> Quantised:
        """Frames x (M, F)."""
        logits = self.scores(x).float().unflatten(1, (self.groups, -1))
        if self.training:
            chosen = F.gumbel_softmax(logits, temperature, hard=True)
        else:
            chosen = F.one_hot(logits.argmax(-1), logits.shape[2]).to(logits.dtype)
        codewords = self.codewords[0].unflatten(0, (self.groups, -1))
        vectors = torch.einsum("mgv,gvd->mgd", chosen, codewords).flatten(1)
        return Quantised(vectors, chosen.argmax(-1), logits.softmax(-1))


class Contrastive(LossTerm):
    """Which of a masked frame's own codeword and those of other masked frames of its utterance is its own.

    As in fairseq, the loss is summed over masked frames and divided by their number; diversity is of a rank's frames,
    and weighted by them.
    """

    needs = frozenset({"masks"})

    def __init__(self, settings: Settings, features: int, dim: int) -> None:
        super().__init__()
        self.settings = settings
        self.quantiser = Quantiser(features, settings.groups, settings.codewords, settings.final_dim)
        self.project_codes = nn.Linear(settings.final_dim, settings.final_dim)
        self.project_hidden = nn.Linear(dim, settings.final_dim)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Contrastive:
        return cls(settings, context.student.front_end.layers[-1][0], context.student.encoder.dim)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """Terms: contrastive, diversity, the penalty of features, and as figures accuracy and codewords in use."""
        assert student.normed is not None and student.masked is not None
        settings, hit = self.settings, student.masked & valid_mask(student.lengths, student.masked.shape[1])
        first, least, factor = settings.gumbel
        quantised = self.quantiser(student.normed[hit], max(first * factor**self.update_number, least))
        logits = self.logits(student.hidden[-1][hit], quantised, draw_negatives(hit, settings.negatives))
        own, count = logits.new_zeros(len(logits), dtype=torch.int64), hit.sum()
        chances = quantised.probabilities.shape[1:]
        likely = F.one_hot(quantised.probabilities.argmax(-1), chances[1]).float()
        expected, used = (perplexity(x.sum(0) / count.clamp_min(1)).sum() for x in (quantised.probabilities, likely))
        terms = {
            "contrastive": Term(F.cross_entropy(logits, own, reduction="sum"), count),
            "contrastive_diversity": Term((1 - expected / chances.numel()) * count, count, settings.diversity),
            "contrastive_accuracy": Term((logits.argmax(1) == 0).sum(), count, 0.0),
            "contrastive_perplexity": Term((used * count).detach(), count, 0.0),
        }
        if settings.feature_penalty:
            terms["contrastive_features"] = feature_penalty(student, settings.feature_penalty)
        return Losses(terms)

    def logits(self, hidden: Tensor, quantised: Quantised, negatives: Tensor) -> Tensor:
        """Cosines over the temperature, the own codeword first: hidden (M, C), negatives (M, N) -> (M, 1 + N).

        A negative of the same codewords as its frame's is left out.
        """
        codes = F.normalize(self.project_codes(quantised.vectors).float(), dim=-1)
        frames = F.normalize(self.project_hidden(hidden).float(), dim=-1)
        cosines = frames @ codes.T  # M is thousands: smaller than M x N vectors would be
        same = (quantised.codes[negatives] == quantised.codes[:, None]).all(-1)
        others = cosines.gather(1, negatives).float().masked_fill(same, float("-inf"))
        return torch.cat([cosines.diagonal()[:, None].float(), others], 1) / self.settings.temperature


def draw_negatives(hit: Tensor, number: int) -> Tensor:
    """For each True of hit (B, T), `number` others of its row, uniformly: (M, number), counted over all M of them.

    One that is alone in its row gets itself.
    """
    counts = hit.sum(1)
    row = hit.nonzero()[:, 0]
    size, start = counts[row, None], (counts.cumsum(0) - counts)[row, None]
    place = torch.arange(len(row), device=hit.device)[:, None] - start
    drawn = (torch.rand(len(row), number, device=hit.device) * (size - 1)).long()
    return start + drawn + ((drawn >= place) & (size > 1))
