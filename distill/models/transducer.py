"""A transducer's predictor and joiner (Graves 2012) on an encoder's hidden states.

A stateless predictor sees the last units alone (Ghodsi et al. 2020), as icefall's decoder does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Joint
from distill.config.model import BLANK
from distill.config.model import Transducer as Settings
from distill.precision import without_autocast


class StatelessPredictor(nn.Module):
    """Embeddings of the last `context` units, weighted by place and channel. The state is these units (B, context)."""

    def __init__(self, settings: Settings, outputs: int) -> None:
        super().__init__()
        self.context = settings.context
        self.embedding = nn.Embedding(outputs, settings.dim, padding_idx=BLANK)  # zeros before the first unit
        self.conv: nn.Module = nn.Identity()
        if settings.context > 1:
            self.conv = nn.Conv1d(settings.dim, settings.dim, settings.context, groups=settings.dim, bias=False)

    def start(self, batch: int) -> Tensor:
        """The state before the first unit."""
        return torch.zeros(batch, self.context, dtype=torch.int64, device=self.embedding.weight.device)

    def advance(self, state: Tensor, units: Tensor) -> Tensor:
        """The state behind further units (B,)."""
        return torch.cat([state[:, 1:], units[:, None]], 1)

    def read(self, state: Tensor) -> Tensor:
        """Output (B, dim) in a state."""
        return self.forward(state)[:, 0]

    def forward(self, units: Tensor) -> Tensor:
        """units (B, context + U) -> outputs behind the first `context` and each further one: (B, U + 1, dim)."""
        return F.relu(self.conv(self.embedding(units).transpose(1, 2)).transpose(1, 2))


class LstmPredictor(nn.Module):
    """One LSTM layer over all units so far. The state is its output and cell (B, 2, dim)."""

    context = 1

    def __init__(self, settings: Settings, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(outputs, settings.dim, padding_idx=BLANK)
        self.lstm = nn.LSTM(settings.dim, settings.dim, batch_first=True)

    def start(self, batch: int) -> Tensor:
        """The state before the first unit."""
        weight = self.embedding.weight
        blanks = torch.full((batch,), BLANK, device=weight.device)
        return self.advance(weight.new_zeros(batch, 2, weight.shape[1]), blanks)

    def advance(self, state: Tensor, units: Tensor) -> Tensor:
        """The state behind further units (B,)."""
        before = (state[None, :, 0].contiguous(), state[None, :, 1].contiguous())
        with without_autocast(units):  # not all processors have an LSTM of half precision
            _, (output, cell) = self.lstm(self.embedding(units)[:, None], before)
        return torch.stack([output[0], cell[0]], 1)

    def read(self, state: Tensor) -> Tensor:
        """Output (B, dim) in a state."""
        return state[:, 0]

    def forward(self, units: Tensor) -> Tensor:
        """units (B, 1 + U), the first blank -> outputs behind each: (B, U + 1, dim)."""
        with without_autocast(units):
            return self.lstm(self.embedding(units))[0]


PREDICTORS: dict[str, type[StatelessPredictor | LstmPredictor]] = {
    "stateless": StatelessPredictor, "lstm": LstmPredictor,
}  # fmt: skip


class Transducer(nn.Module):
    """Logits of a frame behind some units: a linear layer of tanh(projected frame + projected predictor output)."""

    def __init__(self, settings: Settings, dim: int, outputs: int) -> None:
        """dim: the encoder's width."""
        super().__init__()
        self.predictor = PREDICTORS[settings.predictor](settings, outputs)
        self.encoder_projection = nn.Linear(dim, settings.joiner_dim)
        self.predictor_projection = nn.Linear(settings.dim, settings.joiner_dim)
        self.output = nn.Linear(settings.joiner_dim, outputs)

    @staticmethod
    def macs(settings: Settings, dim: int, outputs: int) -> int:
        """Multiply-adds of a frame, with one unit in it, as many as frames take at most in decoding without a beam."""
        convolved = settings.context * settings.dim if settings.context > 1 else 0
        predictor = convolved if settings.predictor == "stateless" else 8 * settings.dim**2
        return predictor + (dim + settings.dim + outputs) * settings.joiner_dim

    def forward(self, hidden: Tensor, tokens: Tensor | None = None) -> Joint:
        """hidden (B, T, C), tokens (B, U): units, none if not given."""
        return self.joint(self.encoder_projection(hidden), tokens)

    def logits(self, frames: Tensor, predicted: Tensor) -> Tensor:
        """Of projected frames and projected predictor outputs, (…, J) each, which broadcast: (…, V)."""
        return Joint(frames, predicted, self.output.weight, self.output.bias).logits(frames, predicted)

    def joint(self, frames: Tensor, tokens: Tensor | None = None) -> Joint:
        """The same of projected frames (B, T, J)."""
        if tokens is None:
            tokens = torch.zeros(len(frames), 0, dtype=torch.int64, device=frames.device)
        predicted = self.predictor_projection(self.predictor(F.pad(tokens, (self.predictor.context, 0))))
        return Joint(frames, predicted, self.output.weight, self.output.bias)
