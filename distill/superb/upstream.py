"""A trained model as an upstream of s3prl: the hidden states of all its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distill.models import checkpoint
from distill.models.recogniser import Recogniser


class Upstream(nn.Module):
    """What s3prl asks of an upstream, always in evaluation mode: tasks are trained on frozen hidden states."""

    def __init__(self, model: Recogniser) -> None:
        super().__init__()
        self.model = model.eval()

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
        front, padded = self.model.front_end, pad_sequence(list(waves), batch_first=True)
        samples = torch.tensor([max(len(wave), front.receptive) for wave in waves], device=padded.device)
        output = self.model(F.pad(padded, (0, max(0, front.receptive - padded.shape[1]))), samples)
        frames = torch.arange(-(-padded.shape[1] // front.hop), device=padded.device)
        places = frames.minimum(output.lengths[:, None] - 1)[:, :, None]
        hidden = [states.gather(1, places.expand(-1, -1, states.shape[2])) for states in output.hidden]
        return {"hidden_states": hidden, "last_hidden_state": hidden[-1]}


def load_upstream(ckpt: str, **options: Any) -> Upstream:
    """An entry of s3prl's hub, which calls it with options of its own; ckpt: the folder of an experiment."""
    return Upstream(checkpoint.load_recogniser(Path(ckpt))[0])
