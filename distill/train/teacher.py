"""The teacher's side of distillation: its hidden states and logits as targets."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill.batch import Batch, Targets
from distill.config.training import Teacher as TeacherSettings
from distill.models.recogniser import Recogniser


class TeacherTargets:
    """Runs a teacher in evaluation mode over the waveform that the settings choose.

    With `keep_targets` each cut's targets are computed once and kept in half precision: right only while the
    waveform is the same in every epoch, which the settings ensure. They are computed from the cut alone, so that they
    do not depend on the batch it is in, which differs after a resume or on other ranks.
    """

    def __init__(self, settings: TeacherSettings, model: Recogniser, blocks: Iterable[int]) -> None:
        self.settings, self.blocks = settings, sorted(set(blocks))
        self.model = model.eval().requires_grad_(False)
        self._kept: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, padded as the batch is."""
        if not self.settings.keep_targets:
            return self._run(batch)
        for row, cut_id in enumerate(batch.ids):
            if cut_id not in self._kept:
                targets = self._run(batch.row(row))
                self._kept[cut_id] = {
                    name: x[0, : int(targets.lengths[0])].half().cpu() for name, x in _named(targets).items()
                }
        kept, device = [self._kept[cut_id] for cut_id in batch.ids], batch.wave.device
        columns = {
            name: pad_sequence([tensors[name].to(device) for tensors in kept], batch_first=True).float()
            for name in kept[0]
        }
        lengths = torch.tensor([len(tensors["logits"]) for tensors in kept], device=device)
        hidden = {block: columns[f"hidden{block}"] for block in self.blocks}
        return Targets(columns["logits"], hidden, lengths, columns.get("ctc_logits"))

    def _run(self, batch: Batch) -> Targets:
        wave = batch.clean if self.settings.input == "clean" else batch.wave
        if wave is None:
            raise ValueError("teacher.input: clean needs the waveforms before augmentation, which the batch is without")
        output = self.model(wave, batch.samples)
        hidden = {block: output.hidden[block] for block in self.blocks}
        return Targets(output.logits, hidden, output.lengths, output.ctc_logits)


def _named(targets: Targets) -> dict[str, Tensor]:
    """The tensors (B, T, …) of targets by name."""
    second = {} if targets.ctc_logits is None else {"ctc_logits": targets.ctc_logits}
    return {"logits": targets.logits, **{f"hidden{i}": x for i, x in targets.hidden.items()}, **second}
