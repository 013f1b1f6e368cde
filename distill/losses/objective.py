"""The objective of distillation as a table of weighted terms; papers/001 Eq. 1-3 are five of them.

A new term is a module with `build` and `forward` in a file of its own, its settings in `distill.config.losses`, and a
line in TERMS.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets
from distill.config.losses import Objective as Settings
from distill.config.model import frame_ratio
from distill.losses.adversary import Adversary
from distill.losses.attention import AttentionKl
from distill.losses.bestrq import BestRq
from distill.losses.contrastive import Contrastive
from distill.losses.ctc import Ctc
from distill.losses.denoising import Denoising
from distill.losses.discriminative import CodewordKl
from distill.losses.front import FrontDistance
from distill.losses.hidden import HiddenMse
from distill.losses.hubert import Hubert
from distill.losses.mmi import LfMmi
from distill.losses.outputs import CtcOutputMse, OutputMse
from distill.losses.regression import Regression
from distill.losses.sparsity import Sparsity
from distill.losses.temporal import TemporalGram
from distill.losses.term import Losses, LossTerm, Term, TermContext
from distill.losses.transducer import Rnnt, TransducerKl

TERMS: dict[str, type[LossTerm]] = {
    "mmi": LfMmi,
    "ctc": Ctc,
    "transducer": Rnnt,
    "transducer_kl": TransducerKl,
    "outputs": OutputMse,
    "ctc_outputs": CtcOutputMse,
    "hidden": HiddenMse,
    "regression": Regression,
    "attention": AttentionKl,
    "temporal": TemporalGram,
    "front": FrontDistance,
    "discriminative": CodewordKl,
    "adversary": Adversary,
    "sparsity": Sparsity,
    "denoising": Denoising,
    "hubert": Hubert,
    "contrastive": Contrastive,
    "bestrq": BestRq,
}


def needs_of(settings: Settings) -> frozenset[str]:
    """Inputs that the terms of an objective need, of `distill.losses.term.NEEDS`."""
    return frozenset().union(*(TERMS[name].needs for name in settings.terms))


class Objective(nn.ModuleDict):
    """Weighted sum of terms by name, with the parameters that only training needs.

    update_number: of the training's current update, for terms that are on for the first ones only. teacher_blocks:
    whose hidden states are targets. attention_map: student block -> teacher block, of those whose attention is
    compared. masked: whether the student's input is masked in validation too.
    """

    def __init__(self, settings: Settings, context: TermContext) -> None:
        """Raises ValueError where a term does not fit student, teacher or engine."""
        terms, layers = settings.terms, context.teacher.encoder.layers if context.teacher else 0
        blocks = settings.teacher_blocks(context.student.encoder.layers, layers) if context.teacher else []
        if context.teacher is not None:
            settings.check_models(context.student, context.teacher)
        super().__init__({name: TERMS[name].build(terms[name], context) for name in TERMS if name in terms})
        self.settings, self.teacher_blocks, self.update_number = terms, blocks, 0
        self.ratio = frame_ratio(context.student, context.teacher) if context.teacher and settings.taught else 1
        self.attention_map = settings.attention_map(context.student.encoder.layers)
        self.masked = "masks" in needs_of(settings)

    @property
    def may_skip_parts(self) -> bool:
        """Whether an update may leave out parameters: of a term that is off, or of a head that no term reads."""
        names = self.settings.keys()
        head_unread = not names & {"mmi", "outputs"} or ("ctc_outputs" in names and "ctc" not in names)
        return head_unread or any(term.updates or term.start for term in self.settings.values())

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """The terms of a batch that are on in this update, weighted, and the sums of their counts."""
        if teacher is not None:
            teacher = fit_frames(teacher, self.ratio, student.lengths, student.logits.shape[1])
        terms: dict[str, Term] = {}
        dropped, recomputed = torch.zeros_like(student.lengths, dtype=torch.bool, device=student.logits.device), 0
        for name, module in self.items():
            settings = self.settings[name]
            if not settings.on(self.update_number):
                continue
            module.update_number = self.update_number  # type: ignore[assignment]  # torch types modules as tensors
            losses = module(student, teacher, batch)
            terms |= {key: term._replace(weight=term.weight * settings.weight) for key, term in losses.terms.items()}
            dropped, recomputed = dropped | losses.dropped, recomputed + losses.recomputed
        return Losses(terms, dropped, recomputed)


def fit_frames(targets: Targets, factor: int, lengths: Tensor, size: int) -> Targets:
    """Targets at the student's frames, each the mean of `factor` of the teacher's.

    lengths (B,): the student's. The result has `size` frames (zero-padded or cut) and as lengths the frames valid in
    both. A causal student has up to one frame more than a teacher without padding; more is an error.
    """
    theirs = targets.lengths.to(lengths.device) // factor
    if len(lengths) and int((theirs - lengths).abs().max()) > 2:
        raise ValueError(
            f"teacher and student frames do not fit: {targets.lengths.tolist()} against {lengths.tolist()}, expected"
            f" {factor} of the teacher's for each"
        )

    def fit(x: Tensor) -> Tensor:
        if factor > 1:
            x = x[:, : x.shape[1] // factor * factor].unflatten(1, (-1, factor)).mean(2)
        return nn.functional.pad(x, (0, 0, 0, max(0, size - x.shape[1])))[:, :size]

    hidden = {block: fit(x) for block, x in targets.hidden.items()}
    attention = {block: fit(x) for block, x in (targets.attention or {}).items()} or None
    ctc_logits, normed, codes = (
        None if x is None else fit(x) for x in (targets.ctc_logits, targets.normed, targets.codes)
    )
    lengths = torch.minimum(theirs, lengths)
    joint = targets.joint and targets.joint._replace(frames=fit(targets.joint.frames))
    return Targets(fit(targets.logits), hidden, lengths, ctc_logits, normed, codes, attention, joint=joint)
