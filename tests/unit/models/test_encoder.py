"""Encoders whose blocks take attention maps from others, and those that join frames before the first block."""

from __future__ import annotations

import math

import pytest
import torch

from distill.config.model import Encoder as Settings
from distill.config.model import Mask, Streaming
from distill.config.training import Compute
from distill.models.attention import Context
from distill.models.cost import parameters
from distill.models.encoder import Encoder
from distill.models.macs import macs
from distill.models.pretrained.writing import obstacles
from distill.train.compute import wrap_blocks
from tests.unit.models.test_cost import WAVE, Model

SHAPE = {"dim": 8, "ffn_dim": 12, "layers": 3, "heads": 2, "position_kernel": 5, "position_groups": 2, "dropout": 0.0}
LENGTHS = torch.tensor([9, 6])


def made(**changes) -> Encoder:
    torch.manual_seed(0)
    return Encoder(Settings.model_validate(SHAPE | changes), 8, Streaming(), Mask())


def attended(block, x: torch.Tensor, source, source_x: torch.Tensor, length: int) -> torch.Tensor:
    """Of one utterance (T, C): maps of one attention, made of its input, over the values of another, head by head."""
    rows = []
    query, key, value = source.query(source_x), source.key(source_x)[:length], block.value(x)[:length]
    for head in range(block.heads):
        part = slice(4 * head, 4 * head + 4)
        rows.append((query[:, part] @ key[:, part].T / math.sqrt(4)).softmax(1) @ value[:, part])
    return block.out(torch.cat(rows, 1))


def test_a_block_takes_the_maps_of_another() -> None:
    encoder, features = made(attention_of=[0, 1, 1]), torch.randn(2, 9, 8)
    hidden = encoder(features, LENGTHS).hidden
    first, _, third = encoder.blocks
    assert not hasattr(third.attention, "query") and not hasattr(third.attention, "key")
    for row, length in enumerate(LENGTHS.tolist()):
        x = hidden[2][row]
        mixed = attended(third.attention, x, first.attention, hidden[0][row], length)
        x = third.attention_norm(x + mixed)
        expected = third.ffn_norm(x + third.ffn_down(torch.nn.functional.gelu(third.ffn_up(x))))
        torch.testing.assert_close(hidden[3][row, :length], expected[:length])


def test_maps_of_others_have_the_same_gradients_when_they_are_computed_again() -> None:
    gradients = []
    for checkpointed in (False, True):
        encoder, features = (
            made(attention_of=[0, 1, 0]),
            torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(1)),
        )
        wrap_blocks(Compute(checkpoint_activations=checkpointed), [encoder])
        encoder(features, LENGTHS).hidden[-1].square().sum().backward()
        gradients.append({name: x.grad for name, x in encoder.named_parameters() if x.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "blocks.0.attention.key.weight" in gradients[0]
    assert [name for name, x in gradients[0].items() if not torch.equal(x, gradients[1][name])] == []


def test_taken_maps_have_no_projections_to_count() -> None:
    own, taken = (
        Model(front_end=WAVE, encoder=Settings(dim=24, layers=2, heads=2, position_groups=2, attention_of=source))
        for source in ((), (0, 1))
    )
    assert parameters(own, 5)["trunk"] - parameters(taken, 5)["trunk"] == 2 * (24 * 24 + 24)
    ours, theirs = (macs(model, 5)["attention projections"] for model in (own, taken))
    assert theirs == 0.75 * ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_of": [0, 1]}, "attention_of has 2 entries for 3 blocks"),
        ({"attention_of": [1, 0, 0]}, "block 1 can take the maps of an earlier block that has its own, not of 1"),
        ({"attention_of": [0, 1, 2]}, "block 3 can take the maps of an earlier block that has its own, not of 2"),
        ({"attention_of": [0, 3, 0]}, "block 2 .* not of 3"),
        ({"attention_of": [0, 1, 0], "heads": [2, 1, 2], "head_dim": 4}, "blocks 1 and 2 must have the same heads"),
        ({"attention_of": [0, 1, 0], "layer_drop": 0.1}, "a dropped block has no maps"),
        ({"attention_of": [0, 1, 0], "relative_buckets": 8}, "exclude relative_buckets"),
    ],
)
def test_maps_that_cannot_be_taken_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.model_validate(SHAPE | changes)


def test_frames_are_joined_by_a_convolution_and_states_repeated() -> None:
    encoder, plain, features = made(time_reduction=2), made(), torch.randn(2, 9, 8)
    plain.load_state_dict(encoder.state_dict(), strict=False)  # all but the convolution
    hidden, embedded = encoder(features, LENGTHS).hidden, plain(features, LENGTHS).hidden[0]
    weight, bias = encoder.reduction.weight, encoder.reduction.bias
    for row, length in enumerate(LENGTHS.tolist()):
        x = torch.cat([embedded[row, :length], torch.zeros(1, 8)])
        joined = [weight[..., 0] @ x[t] + weight[..., 1] @ x[t + 1] + bias for t in range(0, length, 2)]
        for t in range(length):
            torch.testing.assert_close(hidden[0][row, t], joined[t // 2])
        alone = torch.stack(joined)[None]
        for block, states in zip(encoder.blocks, hidden[1:]):
            alone, _ = block(alone, Context(torch.ones(1, 1, 1, alone.shape[1], dtype=torch.bool)))
            torch.testing.assert_close(states[row, :length], alone[0].repeat_interleave(2, 0)[:length])


def test_joined_frames_cost_half_in_the_blocks() -> None:
    plain, joined = (
        macs(
            Model(front_end=WAVE, encoder=Settings(dim=24, layers=2, heads=2, position_groups=2, time_reduction=size)),
            5,
        )
        for size in (1, 2)
    )
    assert joined["feed-forward"] == plain["feed-forward"] / 2 and joined["positions"] == plain["positions"]
    assert joined["attention"] == pytest.approx(plain["attention"] / 4, rel=1e-3)
    rate = plain["positions"] / (24 * 24 / 2 * 128)
    assert joined["time reduction"] == rate * 24 * 24


@pytest.mark.parametrize("changes", [{"attention_of": [0, 1, 0]}, {"time_reduction": 2}])
def test_runtimes_and_transformers_have_no_counterpart(changes: dict) -> None:
    model = Model(front_end=WAVE, encoder=Settings.model_validate(SHAPE | changes))
    assert next(iter(changes)) in model.runtime_obstacle
    assert f"encoder.{next(iter(changes))}" in obstacles(model)


def test_joined_frames_do_not_stream() -> None:
    encoder = {**SHAPE, "position_causal": True, "time_reduction": 2}
    with pytest.raises(ValueError, match=r"needs a model that streams, but it has encoder\.time_reduction"):
        Model.model_validate({"front_end": WAVE.model_dump(), "encoder": encoder, "streaming": {"chunk_frames": 4}})
