"""The transducer's loss (RNN-T, Graves 2012), and distillation of its posteriors along one alignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchaudio.functional import rnnt_loss

from distill.batch import Batch, Joint, Output, Targets
from distill.config.losses import LossTerm as Settings
from distill.losses.term import Losses, LossTerm, Term, TermContext

VALUES = 2**25
"""Numbers of a tensor over frames and units (B, T, U + 1, C)."""


class Rnnt(LossTerm):
    """-log p(units | frames), the sum over all alignments; a frame may have any number of units, a blank ends it.

    Counted in frames. Utterances go through in slices with at most VALUES logits, or joined channels, of one utterance
    at least; the backward pass computes each slice again. So memory is that of one slice (`slice_bytes`).
    Utterances without a frame are left out and counted.
    """

    needs = frozenset({"tokens"})

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Rnnt:
        return cls()

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        assert student.joint is not None and batch.tokens is not None
        costs = sequence_costs(student.joint, student.lengths, batch.tokens)
        lengths = student.lengths.to(costs.device)
        return Losses({"transducer": Term(costs.sum(), lengths.sum())}, lengths == 0)


class TransducerKl(LossTerm):
    """KL(teacher || student) over units and blank, a mean over the nodes of the teacher's best alignment.

    That is the one-best form: T + U nodes (frame, units so far) of an utterance in place of its T (U + 1).
    """

    needs = frozenset({"tokens", "joint"})

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> TransducerKl:
        return cls()

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        assert teacher is not None and teacher.joint is not None and student.joint is not None
        assert batch.tokens is not None
        row, frame, unit = best_alignment(teacher.joint, teacher.lengths, batch.tokens).nonzero(as_tuple=True)
        ours, theirs = (
            joint.logits(joint.frames[row, frame], joint.predicted[row, unit]).float().log_softmax(1)
            for joint in (student.joint, teacher.joint)
        )
        total = F.kl_div(ours, theirs, reduction="sum", log_target=True)
        return Losses({"transducer_kl": Term(total, torch.tensor(len(row), device=total.device))})


def sequence_costs(joint: Joint, lengths: Tensor, tokens: Tensor) -> Tensor:
    """-log p of the units of each utterance: lengths (B,), tokens (B, U) -> (B,); 0 for one without a frame."""
    nothing = torch.stack([part[:0].float().sum() for part in joint]).sum()  # 0, with gradients of all parts
    costs = nothing.repeat(len(tokens))
    for rows, frames, units in slices(joint, lengths, tokens):
        own = Joint(joint.frames[rows, :frames], joint.predicted[rows, : units + 1], joint.weight, joint.bias)
        some, sizes = tokens[rows, :units].int(), (lengths[rows].to(tokens.device).int(), count_units(tokens[rows]))
        costs[rows] = checkpoint(_costs, own, some, *sizes, use_reentrant=False, preserve_rng_state=False)
    return costs


def slice_bytes(frames: int, units: int, width: int) -> int:
    """Of the four such tensors, in single precision, that are in memory at a time: 512 MiB, or more.

    frames, units: of the longest utterance; width: the larger of V and J.
    """
    return 4 * 4 * max(VALUES, frames * (units + 1) * width)


def _costs(joint: Joint, tokens: Tensor, lengths: Tensor, sizes: Tensor) -> Tensor:
    logits = joint.logits(joint.frames[:, :, None], joint.predicted[:, None]).float()
    return rnnt_loss(logits, tokens, lengths, sizes, blank=0, reduction="none")


def count_units(tokens: Tensor) -> Tensor:
    """Units of each utterance: tokens (B, U), 0 behind them -> (B,) int32."""
    return (tokens > 0).sum(1, dtype=torch.int32)


def slices(joint: Joint, lengths: Tensor, tokens: Tensor) -> Iterator[tuple[list[int], int, int]]:
    """Utterances with a frame whose lattices fit VALUES together, and the most frames and units of them."""
    width = max(joint.weight.shape)
    sizes: Sequence[tuple[int, int]] = list(zip(lengths.tolist(), count_units(tokens).tolist()))
    rows: list[int] = []
    frames = units = 0
    for row in (row for row, (length, _) in enumerate(sizes) if length):
        most = max(frames, sizes[row][0]), max(units, sizes[row][1])
        if rows and (len(rows) + 1) * most[0] * (most[1] + 1) * width > VALUES:
            yield rows, frames, units
            rows, most = [], sizes[row]
        rows, (frames, units) = [*rows, row], most
    if rows:
        yield rows, frames, units


@torch.no_grad()
def best_alignment(joint: Joint, lengths: Tensor, tokens: Tensor) -> Tensor:
    """Nodes of the most probable alignment of each utterance: (B, T, U + 1) bool, frames after its end without any.

    At frame t it stands behind the units from those at which the blank of frame t - 1 left it, to those at which its
    own blank leaves it.
    """
    on = torch.zeros(*joint.frames.shape[:2], tokens.shape[1] + 1, dtype=torch.bool, device=tokens.device)
    for rows, frames, units in slices(joint, lengths, tokens):
        logits = joint.logits(joint.frames[rows, :frames, None], joint.predicted[rows, None, : units + 1])
        log_probs = logits.float().log_softmax(3)
        blank, named = log_probs[..., 0], tokens[rows, None, :units, None].expand(-1, frames, -1, -1)
        emitted = F.pad(log_probs[:, :, :units].gather(3, named)[..., 0].double().cumsum(2), (1, 0))
        last = lengths[rows].to(tokens.device) - 1
        on[rows, :frames, : units + 1] = _traced(blank.double(), emitted, last, count_units(tokens[rows]).long())
    return on


def _traced(blank: Tensor, emitted: Tensor, last: Tensor, sizes: Tensor) -> Tensor:
    """blank (B, T, U + 1): log p of blanks; emitted: of the units before, in that frame; last (B,): an utterance's
    last frame."""
    entered = torch.full_like(blank[:, 0], -torch.inf)
    entered[:, 0] = 0.0
    origins = []
    for frame in range(blank.shape[1]):  # units from `origin` on are emitted in this frame
        best, origin = (entered - emitted[:, frame]).cummax(1)
        entered = best + emitted[:, frame] + blank[:, frame]
        origins.append(origin)
    unit, end, on = torch.arange(blank.shape[2], device=blank.device), sizes, []
    for frame in reversed(range(blank.shape[1])):
        begin = origins[frame].gather(1, end[:, None])[:, 0]
        inside = (frame <= last)[:, None]
        on.append((unit >= begin[:, None]) & (unit <= end[:, None]) & inside)
        end = torch.where(inside[:, 0], begin, end)
    return torch.stack(on[::-1], 1)
