"""The objective of distillation, papers/001 Eq. 1-3, as weighted terms.

L = (1 - alpha) L_hidden + alpha L_pred,  L_pred = beta mmi_scale L_mmi + (1 - beta) MSE(O_S, O_T).
A teacher is fine-tuned with alpha = beta = 1: LF-MMI alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.training import Objective as ObjectiveSettings
from distill.losses.hidden import HiddenMse
from distill.losses.mmi import Ctc, LfMmi
from distill.losses.term import Term, masked_mse


class Losses(NamedTuple):
    """Named terms and counts to log: utterances without a path, utterances recomputed in the log semiring."""

    terms: dict[str, Term]
    dropped: Tensor
    recomputed: int


class Objective(nn.Module):
    """Combines LF-MMI, hidden MSE and logit MSE; holds the W_i, which only training needs."""

    def __init__(
        self, settings: ObjectiveSettings, mmi: LfMmi | None, hidden: HiddenMse | None, ctc: Ctc | None = None
    ) -> None:
        super().__init__()
        self.settings, self.mmi, self.hidden, self.ctc = settings, mmi, hidden, ctc

    def forward(self, student: Output, targets: Targets | None, batch: Batch) -> Losses:
        """The terms of a batch; a second output learns with CTC and, where the teacher has one, from its logits."""
        logits, lengths, second, numerators = student.logits, student.lengths, student.ctc_logits, batch.graphs
        alpha, beta = self.settings.alpha, self.settings.beta
        terms: dict[str, Term] = {}
        dropped, recomputed = torch.zeros((), dtype=torch.int64, device=logits.device), 0
        if self.mmi is not None:
            result = self.mmi(logits, lengths, numerators)
            scale = alpha * beta * self.settings.mmi_scale
            terms["mmi"] = result.term.weighted(scale)
            if result.penalty is not None:
                terms["out_of_range"] = result.penalty.weighted(scale)
            dropped, recomputed = result.dropped, result.recomputed
        if self.ctc is not None and second is not None:
            scale = alpha * beta * self.settings.mmi_scale * self.settings.ctc_scale
            terms["ctc"] = self.ctc(second, lengths, numerators).weighted(scale)
        if targets is not None:
            targets, frames = fit_frames(targets, lengths, logits.shape[1])
            if self.settings.uses_outputs:
                inside = valid_mask(frames, logits.shape[1])
                terms["outputs"] = masked_mse(logits, targets.logits, inside).weighted(alpha * (1 - beta))
                if second is not None and targets.ctc_logits is not None:
                    terms["ctc_outputs"] = masked_mse(second, targets.ctc_logits, inside).weighted(alpha * (1 - beta))
            if self.hidden is not None:
                for name, term in self.hidden(student, targets, frames).items():
                    terms[name] = term.weighted(1 - alpha)
        return Losses(terms, dropped, recomputed)


def fit_frames(targets: Targets, lengths: Tensor, size: int) -> tuple[Targets, Tensor]:
    """Bring the teacher's frames to the student's: pairs averaged where the student has half as many.

    Returns targets of `size` frames (zero-padded or cut) and the frames valid in both (B,). A causal
    student has up to one frame more than a teacher without padding; more is an error.
    """
    factor = max(1, round(float(targets.lengths.sum()) / max(1.0, float(lengths.sum()))))
    theirs = targets.lengths.to(lengths.device) // factor
    if len(lengths) and int((theirs - lengths).abs().max()) > 2:
        raise ValueError(
            f"teacher and student frames do not fit: {targets.lengths.tolist()} against {lengths.tolist()};"
            " the student's hop must be the teacher's or a multiple of it"
        )

    def fit(x: Tensor) -> Tensor:
        if factor > 1:
            x = x[:, : x.shape[1] // factor * factor].unflatten(1, (-1, factor)).mean(2)
        return nn.functional.pad(x, (0, 0, 0, max(0, size - x.shape[1])))[:, :size]

    hidden = {block: fit(x) for block, x in targets.hidden.items()}
    second = None if targets.ctc_logits is None else fit(targets.ctc_logits)
    return Targets(fit(targets.logits), hidden, theirs, second), torch.minimum(theirs, lengths)


def build_objective(
    settings: ObjectiveSettings,
    layer_map: Mapping[int, int],
    mmi: LfMmi | None,
    student: tuple[int, int],
    teacher: tuple[int, int] | None,
    shared_head_dim: int | None,
) -> Objective:
    """student, teacher: (width, blocks) of each; raises ValueError where the layer map does not fit."""
    hidden = None
    if settings.uses_hidden and teacher is not None:
        (dim, blocks), (teacher_dim, teacher_blocks) = student, teacher
        outside = {i: g for i, g in layer_map.items() if not 1 <= g <= teacher_blocks}
        if outside:
            raise ValueError(
                f"objective.teacher_layers maps to blocks {sorted(outside.values())}, but the teacher has"
                f" blocks 1..{teacher_blocks}; give one teacher block for each student block (0 for none)"
            )
        # A shared head reads what its W makes of the last block, so that W must learn the teacher's last.
        shared = shared_head_dim == teacher_dim and layer_map.get(blocks) == teacher_blocks
        hidden = HiddenMse(layer_map, dim, teacher_dim, blocks, shared, settings.hidden_norm)
    ctc = Ctc(mmi.engine) if settings.uses_ctc and mmi is not None else None
    return Objective(settings, mmi if settings.uses_mmi else None, hidden, ctc)
