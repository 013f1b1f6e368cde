"""BEST-RQ: masked prediction of codewords that a random projection gives (Chiu et al. 2022, §3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import BestRq as Settings
from distill.losses.fbank_targets import stacked_fbank, stacked_frames
from distill.losses.term import Losses, LossTerm, Term, TermContext
from distill.models.codes import perplexity
from distill.precision import without_autocast


class BestRq(LossTerm):
    """Cross-entropy per masked frame and codebook, with a softmax layer for each codebook.

    Projections and codebooks are drawn from a seed and never trained.
    """

    needs = frozenset({"masks", "clean"})
    projections: Tensor
    codebooks: Tensor

    def __init__(self, settings: Settings, stacked: int, dim: int) -> None:
        """stacked: Fbank frames per frame of the encoder. dim: the encoder's."""
        super().__init__()
        self.settings, self.stacked, inputs = settings, stacked, stacked * settings.mels
        draws = torch.Generator().manual_seed(settings.seed)
        uniform = torch.rand(settings.codebooks, inputs, settings.dim, generator=draws)
        normal = torch.randn(settings.codebooks, settings.codewords, settings.dim, generator=draws)
        self.register_buffer("projections", (2 * uniform - 1) * math.sqrt(6 / (inputs + settings.dim)))  # Xavier
        self.register_buffer("codebooks", F.normalize(normal, dim=-1))
        self.output = nn.Linear(dim, settings.codebooks * settings.codewords)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> BestRq:
        return cls(settings, stacked_frames(context.student, "bestrq"), context.student.encoder.dim)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """Terms: bestrq, and as figures accuracy and the targets' codewords in use, per codebook."""
        assert student.masked is not None
        hit = student.masked & valid_mask(student.lengths, student.masked.shape[1])
        assert batch.clean is not None
        frames = stacked_fbank(batch.clean, batch.samples, self.settings.mels, self.stacked, hit.shape[1])
        targets = self.codes(frames[hit].to(self.projections.dtype))
        logits = self.output(student.hidden[-1][hit]).float().unflatten(1, self.codebooks.shape[:2])
        count = torch.tensor(targets.numel(), device=hit.device)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        books, codewords = logits.shape[1:]
        first = codewords * torch.arange(books, device=hit.device)
        shares = (targets + first).flatten().bincount(minlength=books * codewords).view(books, -1) / max(
            1, len(targets)
        )
        return Losses(
            {
                "bestrq": Term(loss, count),
                "bestrq_accuracy": Term((logits.argmax(2) == targets).sum(), count, 0.0),
                "bestrq_perplexity": Term(perplexity(shares).mean() * count, count, 0.0),
            }
        )

    @torch.no_grad()
    def codes(self, frames: Tensor) -> Tensor:
        """The nearest codeword to the normed projection: (M, S * mels) -> (M, codebooks)."""
        with without_autocast(frames):
            projected = F.normalize(torch.einsum("mi,kid->mkd", frames, self.projections), dim=-1)
            return torch.einsum("mkd,kvd->mkv", projected, self.codebooks).argmax(-1)  # all are of norm 1
