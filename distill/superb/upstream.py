"""A trained model as an upstream of s3prl: the hidden states of all its blocks, or the last ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distill.models import checkpoint
from distill.models.recogniser import Recogniser

KEPT = 1 << 30  # bytes of hidden states


class Upstream(nn.Module):
    """What s3prl asks of an upstream, always in evaluation mode: tasks are trained on frozen hidden states.

    Without gradients on a CPU, states of an utterance are computed once, and up to KEPT bytes of them are kept.
    """

    def __init__(self, model: Recogniser, last_state: bool = False) -> None:
        super().__init__()
        self.model, self.last_state = model.eval(), last_state
        self._kept: dict[bytes, Tensor] = {}
        self._room = KEPT

    def train(self, mode: bool = True) -> Upstream:
        return super().train(False)

    def get_downsample_rates(self, key: str) -> int:
        """Samples between frames, of every hidden state."""
        return self.model.front_end.hop

    def forward(self, waves: Sequence[Tensor]) -> dict[str, Any]:
        """Waveforms (N_i,) of 16 kHz -> hidden_states, the input of the first block and the output of each, (B, T, C).

        T is ceil(max N_i / hop), which s3prl counts for every upstream; frames past the end of an utterance repeat its
        last one, so that nothing depends on the others of its batch. Silence follows one too short for a frame.
        """
        if torch.is_grad_enabled():
            self._kept, self._room = {}, KEPT  # the weights may change after it
        alone = torch.is_grad_enabled() or waves[0].is_cuda  # there a copy to look it up takes longer than the states
        found = self._states(waves) if alone else self._kept_states(waves)
        frames = torch.arange(-(-max(map(len, waves)) // self.model.front_end.hop), device=waves[0].device)
        hidden = list(torch.stack([states[:, frames.clamp(max=states.shape[1] - 1)] for states in found], dim=1))
        return {"hidden_states": hidden, "last_hidden_state": hidden[-1]}

    def _states(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Of each utterance its hidden states (L, T_i, C)."""
        front, padded = self.model.front_end, pad_sequence(list(waves), batch_first=True)
        samples = torch.tensor([max(len(wave), front.receptive) for wave in waves], device=padded.device)
        output = self.model(F.pad(padded, (0, max(0, front.receptive - padded.shape[1]))), samples)
        hidden = torch.stack(list(output.hidden[-1:] if self.last_state else output.hidden), dim=1)
        return [states[:, :length] for states, length in zip(hidden, output.lengths.tolist())]

    def _kept_states(self, waves: Sequence[Tensor]) -> list[Tensor]:
        keys = [hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).digest() for wave in waves]
        new = {key: wave for key, wave in zip(keys, waves) if key not in self._kept}
        computed = dict(zip(new, self._states(list(new.values())))) if new else {}
        found = [computed[key] if key in computed else self._kept[key] for key in keys]
        for key, states in computed.items():
            if states.nbytes <= self._room:
                self._room -= states.nbytes
                self._kept[key] = states.clone()  # not the batch that it is a part of
        return found


def load_upstream(
    ckpt: str, last_state: bool = False, epoch: Literal["last", "best"] = "last", **options: Any
) -> Upstream:
    """An entry of s3prl's hub, which calls it with options of its own; ckpt: the folder of an experiment."""
    return Upstream(checkpoint.load_recogniser(Path(ckpt), epoch)[0], last_state)
