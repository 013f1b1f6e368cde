"""The teacher's side of distillation: its layers and outputs as targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.batch import Batch, Targets
from distill.config.training import Teacher as TeacherSettings
from distill.models.recogniser import Recogniser


class TeacherTargets:
    """Runs a teacher in evaluation mode over what the settings say it hears.

    With `keep_targets` each cut's targets are computed once and kept in half precision: right only
    while the teacher hears the same waveform every epoch (the settings see to it). They are computed of the cut
    alone, so that they do not depend on the batch in which it is met first, as after a resume or on other ranks.
    """

    def __init__(self, settings: TeacherSettings, model: Recogniser, blocks: Sequence[int]) -> None:
        self.settings, self.blocks = settings, sorted(set(blocks))
        self.model = model.eval().requires_grad_(False)
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Width and number of blocks."""
        return self.model.settings.encoder.dim, self.model.settings.encoder.layers

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, padded as the batch is."""
        if not self.settings.keep_targets:
            return self._run(batch)
        for row, cut_id in enumerate(batch.ids):
            if cut_id not in self._kept:
                self._keep(cut_id, batch.row(row))
        kept = [self._kept[cut_id] for cut_id in batch.ids]
        device = batch.wave.device
        lengths = torch.tensor([len(tensors[0]) for tensors in kept], device=device)
        logits, *rest = (
            torch.nn.utils.rnn.pad_sequence([t.to(device) for t in column], batch_first=True).float()
            for column in zip(*kept)
        )
        second = rest.pop() if self.model.ctc is not None else None
        return Targets(logits, dict(zip(self.blocks, rest)), lengths, second)

    def _run(self, batch: Batch) -> Targets:
        wave = batch.clean if self.settings.hears == "clean" else batch.wave
        if wave is None:
            raise ValueError("the teacher hears clean audio, but the batch carries none")
        output = self.model(wave, batch.samples)
        hidden = {block: output.hidden[block] for block in self.blocks}
        return Targets(output.logits, hidden, output.lengths, output.ctc_logits)

    def _keep(self, cut_id: str, alone: Batch) -> None:
        targets = self._run(alone)
        columns = [targets.logits, *(targets.hidden[block] for block in self.blocks)]
        columns += [] if targets.ctc_logits is None else [targets.ctc_logits]
        length = int(targets.lengths[0])
        self._kept[cut_id] = tuple(x[0, :length].half().cpu() for x in columns)
