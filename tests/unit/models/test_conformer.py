"""The conformer block: torchaudio's at equal weights, padding, attention maps, cost; streams: `test_streaming.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.batch import Batch, Targets
from distill.config.losses import Objective as Terms
from distill.config.model import Encoder, FrontEnd, Model, Streaming
from distill.losses.attention import average_map
from distill.losses.objective import Objective
from distill.losses.term import TermContext
from distill.models.attention import Context
from distill.models.conformer import ConformerBlock
from distill.models.cost import predict_rtf
from distill.models.latency import latency
from distill.models.macs import macs
from distill.models.recogniser import Recogniser
from distill.train.loop import TrainingStep

DIM, HEADS, FFN, KERNEL = 12, 3, 20, 5
FRONT = FrontEnd(layers=((6, 10, 5), (8, 4, 4)), norm="frame", norm_layers="all", causal=True, waveform="none")


def settings(**values: Any) -> Encoder:
    shape = {"dim": DIM, "ffn_dim": FFN, "heads": HEADS, "layers": 2, "position_groups": 3, "position_kernel": 4}
    return Encoder(**{"block": "conformer", "conv_kernel": KERNEL, "dropout": 0.0, **shape, **values})


class OverChannels(nn.Module):
    """A norm of each frame's channels in torchaudio's layout (B, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def torchaudios(block: ConformerBlock) -> nn.Module:
    """One layer of `torchaudio.models.Conformer` with the block's weights.

    Its own norm behind the depthwise convolution is of the batch, or of all frames and channels (use_group_norm): one
    of each frame's channels takes its place. All else is torchaudio's.
    """
    model = torchaudio.models.Conformer(DIM, HEADS, FFN, 1, KERNEL)
    (layer,) = model.conformer_layers
    layer.conv_module.sequential[3] = OverChannels()
    attention, conv = block.attention, block.convolution
    qkv = (attention.query, attention.key, attention.value)
    pairs = [
        (layer.self_attn.out_proj, attention.out), (layer.self_attn_layer_norm, block.attention_norm),
        (layer.conv_module.layer_norm, conv.norm),
        (layer.conv_module.sequential[2], conv.depthwise), (layer.conv_module.sequential[3].norm, conv.depthwise_norm),
        (layer.conv_module.sequential[5], conv.down), (layer.final_layer_norm, block.norm),
    ]  # fmt: skip
    gated = layer.conv_module.sequential[0]
    for theirs, ours in ((layer.ffn1, block.ffn_before), (layer.ffn2, block.ffn_after)):
        pairs += [(theirs.sequential[0], ours.norm), (theirs.sequential[1], ours.up), (theirs.sequential[4], ours.down)]
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([each.weight for each in qkv]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([each.bias for each in qkv]))
        gated.weight.copy_(torch.cat([conv.up.weight, conv.gate.weight])[..., None])
        gated.bias.copy_(torch.cat([conv.up.bias, conv.gate.bias]))
        for theirs, ours in pairs:
            theirs.weight.copy_(ours.weight.reshape(theirs.weight.shape))
            theirs.bias.copy_(ours.bias)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in block.parameters())
    return model


def lively(block: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def test_offline_it_is_torchaudios_at_equal_weights() -> None:
    """Values of the valid frames, and gradients of input and weights, in a batch with padding."""
    torch.manual_seed(0)
    block = lively(ConformerBlock(settings()))
    reference = torchaudios(block)
    x, lengths = torch.randn(3, 11, DIM), torch.tensor([11, 7, 2])
    inside = torch.arange(11) < lengths[:, None]
    x = x * inside[..., None]
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, _ = block(mine, Context(inside[:, None, None], inside=inside))
    expected, _ = reference(theirs, lengths)
    # torchaudio's convolution sees what padded frames have become: frames within half a kernel of padding differ
    far = torch.arange(11) < torch.where(lengths < 11, lengths - KERNEL // 2, lengths)[:, None]
    torch.testing.assert_close(ours[far], expected[far], rtol=1e-5, atol=1e-5)
    weights = torch.randn(1, 11, DIM)
    for output in (ours, expected):
        (output[:1] * weights).sum().backward()
    torch.testing.assert_close(mine.grad[:1], theirs.grad[:1], rtol=1e-4, atol=1e-5)
    depthwise = reference.conformer_layers[0].conv_module.sequential[2]
    torch.testing.assert_close(block.convolution.depthwise.weight.grad, depthwise.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [2, 4, 5])
def test_the_convolution_is_the_sum_written_out(causal: bool, kernel: int) -> None:
    """A module's output by loops over frames and taps, where frames outside an utterance are zero."""
    torch.manual_seed(0)
    conv = lively(ConformerBlock(settings(conv_kernel=kernel, conv_causal=causal, conv_dim=8))).convolution
    x, lengths = torch.randn(2, 9, DIM), [9, 6]
    inside = torch.arange(9) < torch.tensor(lengths)[:, None]
    found, _ = conv(x, inside)
    left = kernel - 1 if causal else kernel // 2
    for row, length in enumerate(lengths):
        normed = conv.norm(x[row])
        gated = conv.up(normed) * conv.gate(normed).sigmoid()
        for frame in range(length):
            mixed = conv.depthwise.bias.clone()
            for tap in range(kernel):
                place = frame + tap - left
                if 0 <= place < length:
                    mixed = mixed + conv.depthwise.weight[:, 0, tap] * gated[place]
            out = conv.down(nn.functional.silu(conv.depthwise_norm(mixed)))
            torch.testing.assert_close(found[row, frame], out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_no_frame(causal: bool) -> None:
    torch.manual_seed(0)
    encoder = settings(conv_causal=causal, position_causal=causal)
    model = lively(Recogniser(Model(front_end=FRONT, encoder=encoder), 5)).eval()
    wave, samples = torch.randn(2, 900), torch.tensor([900, 430])
    both, alone = model(wave, samples), model(wave[1:, :430], samples[1:])
    assert alone.lengths[0] == both.lengths[1] > KERNEL
    torch.testing.assert_close(both.logits[1, : alone.lengths[0]], alone.logits[0], rtol=1e-4, atol=1e-5)


def test_queries_and_keys_are_those_of_the_attention() -> None:
    """The map made of them is the one by which the attention mixes its values."""
    torch.manual_seed(0)
    block, x = lively(ConformerBlock(settings(heads=1))), torch.randn(1, 7, DIM)
    inside = torch.ones(1, 7, dtype=torch.bool)
    seen = []
    block.attention.register_forward_hook(lambda _, inputs, outputs: seen.extend((inputs[0], outputs[0])))
    block(x, Context(inside[:, None, None]))
    attention = average_map(block.queries_and_keys(x), 1, inside, slice(None)).exp()
    mixed = block.attention.out(attention @ block.attention.value(seen[0]))
    torch.testing.assert_close(mixed, seen[1], rtol=1e-4, atol=1e-5)


def test_multiply_adds_are_what_torch_counts() -> None:
    encoder = settings(layers=1, conv_dim=16, ffn_after_dim=8)
    block = ConformerBlock(encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(torch.randn(1, 50, DIM), Context(torch.ones(1, 1, 50, 50, dtype=torch.bool)))
    per_frame = ConformerBlock.macs(encoder, 0, 50)
    attention = 0 if counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm) else per_frame["attention"]
    assert counter.get_total_flops() / 2 == 50 * (sum(per_frame.values()) - attention)


def test_cost_and_look_ahead_of_a_model() -> None:
    centred = Model(front_end=FRONT, encoder=settings())
    assert macs(centred, 7)["convolution modules"] == 16000 / 20 * 2 * DIM * (3 * DIM + KERNEL)
    parts = {part.name: part.max for part in latency(centred).parts}
    assert parts["convolution modules"] == 2 * (KERNEL // 2) * 20 / 16
    streaming = Streaming(chunk_frames=4, history_frames=6)
    causal = Model(front_end=FRONT, encoder=settings(conv_causal=True, position_causal=True), streaming=streaming)
    assert {part.name: part.max for part in latency(causal).parts}["convolution modules"] == 0
    for history in (0, 6):
        model = causal.model_copy(update={"streaming": Streaming(chunk_frames=4, history_frames=history)})
        assert predict_rtf(model, 7, repeats=1)["blocks"] > 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a model that streams, but it has encoder\.conv_causal: false"):
        Model(front_end=FRONT, encoder=settings(position_causal=True), streaming=Streaming(chunk_frames=4))
    with pytest.raises(ValueError, match="conv_dim has 3 widths for 2 blocks"):
        settings(conv_dim=(4, 4, 4))


@pytest.mark.parametrize(
    ("objective", "streams"),
    [
        ({"bestrq": {"codewords": 8}, "contrastive": {"codewords": 4, "final_dim": 4, "groups": 1}}, True),
        ({"hidden": {"layers": [1, 2]}, "outputs": {}, "temporal": {"layers": [1, 2]}, "attention": {}}, False),
    ],
)
def test_pre_training_and_distillation_train_every_part(objective: dict, streams: bool) -> None:
    torch.manual_seed(0)
    chunks = {"chunk_frames": 4, "history_frames": 6} if streams else {}
    encoder = settings(conv_causal=streams, position_causal=streams, layer_drop=0.3)
    front = FRONT.model_copy(update={"layers": ((6, 160, 160),)})
    model = Model(front_end=front, encoder=encoder, streaming=chunks, mask={"time_probability": 0.5, "time_length": 3})
    step = TrainingStep(Recogniser(model, 5), Objective(Terms.model_validate(objective), TermContext(model, model)))
    wave, samples = torch.randn(2, 8000), torch.tensor([8000, 5000])
    batch = Batch(("a", "b"), wave, samples, clean=wave)
    with torch.no_grad():
        output = step.model.eval()(wave, samples, attention=() if streams else (1, 2))
    hidden = {block: torch.randn_like(x) for block, x in enumerate(output.hidden)}
    targets = None if streams else Targets(output.logits + 1, hidden, output.lengths, attention=output.attention)
    for _ in range(6):
        losses = step.train()(batch, targets)
        sum(term.total for term in losses.terms.values() if term.total.requires_grad).backward()
    missing = {name for name, x in step.model.named_parameters() if x.grad is None or not x.grad.isfinite().all()}
    assert missing <= {"head.output.weight", "head.output.bias", "encoder.mask_embedding"}
