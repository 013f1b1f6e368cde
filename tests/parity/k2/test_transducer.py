"""The transducer's loss and its gradients against the real k2's: the full sum, and the pruned one with all units."""

from __future__ import annotations

from collections.abc import Callable

import k2
import pytest
import torch
from torch import Tensor

from distill.batch import Joint
from distill.losses import transducer
from distill.losses.transducer import sequence_costs

OUTPUTS, WIDTH = 7, 5
SIZES = {  # frames and units of each utterance; k2 wants a unit at least, and no more units than frames, in a batch
    "ragged": ((9, 4), (3, 6), (12, 0), (1, 1), (7, 7), (12, 8)),
    "alone": ((6, 3),),
    "one frame": ((1, 1), (1, 0)),
    "long": ((160, 40), (90, 60), (140, 1)),
}


def drawn(name: str, peak: float) -> tuple[Joint, Tensor, Tensor, Tensor]:
    """Joint, lengths (B,), tokens (B, U), and k2's boundary (B, 4)."""
    draw = torch.Generator().manual_seed(len(name))
    lengths, sizes = torch.tensor(SIZES[name]).unbind(1)
    frames, units = int(lengths.max()), int(sizes.max())
    shapes = (len(sizes), frames, WIDTH), (len(sizes), units + 1, WIDTH), (OUTPUTS, WIDTH), (OUTPUTS,)
    joint = Joint(*(torch.randn(shape, generator=draw) for shape in shapes))
    joint = joint._replace(weight=peak * joint.weight)
    tokens = torch.randint(1, OUTPUTS, (len(sizes), units), generator=draw)
    tokens = tokens.where(torch.arange(units) < sizes[:, None], torch.zeros_like(tokens))
    nothing = torch.zeros_like(sizes)
    return joint, lengths, tokens, torch.stack([nothing, nothing, sizes, lengths], 1)


def full(joint: Joint, tokens: Tensor, boundary: Tensor) -> Tensor:
    """k2's costs (B,) over the whole lattice."""
    logits = joint.logits(joint.frames[:, :, None], joint.predicted[:, None])
    return k2.rnnt_loss(logits, tokens, 0, boundary, reduction="none")


def pruned(joint: Joint, tokens: Tensor, boundary: Tensor) -> Tensor:
    """k2's costs (B,) over the units that its simple loss chooses, here all of them."""
    am, lm = (x.detach() @ joint.weight.detach().T for x in (joint.frames, joint.predicted))
    _, (px, py) = k2.rnnt_loss_simple(lm, am, tokens, 0, boundary, reduction="none", return_grad=True)
    ranges = k2.get_rnnt_prune_ranges(px, py, boundary, tokens.shape[1] + 1)
    logits = joint.logits(*k2.do_rnnt_pruning(joint.frames, joint.predicted, ranges))
    return k2.rnnt_loss_pruned(logits, tokens, ranges, 0, boundary, reduction="none")


@pytest.mark.parametrize("values", [transducer.VALUES, 1], ids=["together", "sliced"])
@pytest.mark.parametrize("theirs", [full, pruned])
@pytest.mark.parametrize("peak", [1.0, 5.0])
@pytest.mark.parametrize("name", SIZES)
def test_costs_and_gradients(
    name: str, peak: float, theirs: Callable[..., Tensor], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours in float32, theirs in float64 of the same numbers; slices of one utterance sum as one batch does."""
    monkeypatch.setattr(transducer, "VALUES", values)
    joint, lengths, tokens, boundary = drawn(name, peak)
    ours, exact = (Joint(*(x.to(dtype).requires_grad_() for x in joint)) for dtype in (torch.float32, torch.float64))
    found, expected = sequence_costs(ours, lengths, tokens), theirs(exact, tokens, boundary)
    assert expected.dtype == torch.float64 and (expected > 0).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    share = torch.linspace(0.5, 1.5, len(found))  # each utterance has a gradient of its own
    slopes = torch.autograd.grad((share * found).sum(), ours), torch.autograd.grad((share * expected).sum(), exact)
    close = 1e-6 * float(expected.max())  # float32 rounds totals, whose differences are exponents of the gradients
    for one, other in zip(*slopes):
        assert (one - other).abs().max() <= close * other.abs().max()
