"""Training on a CPU computes the front-end with products of matrices: the same values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.config.model import FrontEnd
from distill.models.front_end import build_front_end, frame_convolution


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (2, 2), (3, 2), (10, 5), (40, 5), (1, 1), (3, 1), (4, 4)])
@pytest.mark.parametrize("length", [40, 41, 47])
def test_it_is_the_convolution(kernel: int, stride: int, length: int, bias: bool) -> None:
    torch.manual_seed(kernel)
    conv = nn.Conv1d(3, 5, kernel, stride, bias=bias).double()
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = frame_convolution(x, conv), conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(theirs)
    for mine, other in zip(
        *(torch.autograd.grad((y * weights).sum(), [x, *conv.parameters()]) for y in (ours, theirs))
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": [[8, 160, 20], [6, 8, 4], [8, 8, 4]], "first": "gabor", "norm_layers": "all", "causal": True},
        {"layers": [[8, 10, 5], [6, 3, 2], [8, 2, 2]], "norm_layers": "all"},
        {"layers": [[8, 40, 20], [8, 8, 4]], "norm_layers": "first"},
        {"input": "fbank", "waveform": "none", "layers": [[8, 3, 2]], "mels": 16},
    ],
)
def test_training_and_evaluation_agree(settings: dict) -> None:
    torch.manual_seed(0)
    front = build_front_end(FrontEnd.model_validate({"norm": "frame", **settings})).double()
    wave, samples = torch.randn(2, 4000, dtype=torch.float64), torch.tensor([4000, 3000])
    (training, lengths), (evaluation, same) = front.train()(wave, samples), front.eval()(wave, samples)
    assert training.shape == evaluation.shape and torch.equal(lengths, same)
    torch.testing.assert_close(training, evaluation)
