"""Padding, exact streaming and causality by gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._device import _device_constructors

from distill.config.model import Encoder, FrontEnd, Mask, Model, Streaming
from distill.models.encoder import mask_spans, spans
from distill.models.recogniser import Recogniser, without_values
from tests.support.streams import assert_step_equals_forward

HOP, CHUNK, HISTORY = 32, 4, 6
SMALL = FrontEnd(
    layers=((8, 10, 4), (8, 4, 4), (12, 3, 2)), norm="frame", norm_layers="all", causal=True, waveform="gain"
)


def small_model(streaming: bool, norm_first: bool = True, first: str = "gabor", seed: int = 0) -> Recogniser:
    torch.manual_seed(seed)
    encoder = Encoder(
        dim=16, ffn_dim=24, layers=3, heads=2, norm_first=norm_first, position_kernel=5, position_groups=2,
        position_causal=True, dropout=0.0,
    )  # fmt: skip
    chunks = Streaming(chunk_frames=CHUNK, history_frames=HISTORY) if streaming else Streaming()
    front = SMALL.model_copy(update={"first": first})
    model = Recogniser(Model(front_end=front, encoder=encoder, streaming=chunks, shared_head_dim=20), 7).eval()
    model.front_end.gain.fill_(1.7)
    return model


@pytest.mark.parametrize("norm", ["group", "frame"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_padding_changes_nothing(norm: str, norm_first: bool, streaming: bool) -> None:
    model = small_model(streaming and norm == "frame", norm_first)
    if norm == "group":
        front = SMALL.model_copy(update={"norm": "group", "norm_layers": "first", "waveform": "utterance"})
        torch.manual_seed(1)
        model = Recogniser(model.settings.model_copy(update={"front_end": front}), 7).eval()
    waves = [torch.randn(n) for n in (40 * HOP + 5, 23 * HOP + 31)]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    together = model(padded, torch.tensor([len(wave) for wave in waves]))
    for b, wave in enumerate(waves):
        alone = model(wave[None], torch.tensor([len(wave)]))
        frames = int(alone.lengths)
        assert int(together.lengths[b]) == frames
        torch.testing.assert_close(together.logits[b, :frames], alone.logits[0], rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 37 * HOP), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 37 * HOP), max_size=9),
    norm_first=st.booleans(),
    first=st.sampled_from(["gabor", "random"]),
)
def test_step_equals_masked_forward_for_any_chunking(lengths, cuts, norm_first, first) -> None:
    assert_step_equals_forward(small_model(True, norm_first, first), lengths, cuts)


def test_no_output_depends_on_samples_beyond_its_chunk() -> None:
    model = small_model(True)
    wave = torch.randn(1, 13 * HOP, requires_grad=True)
    for frame in range(13):
        model(wave, torch.tensor([13 * HOP])).logits[0, frame].square().sum().backward()
        horizon = (frame // CHUNK + 1) * CHUNK * HOP
        assert wave.grad[0, horizon:].abs().sum() == 0
        reached = min(horizon, 13 * HOP)
        assert wave.grad[0, reached - HOP : reached].abs().sum() > 0, "the look-ahead inside a chunk is used"
        wave.grad = None


def test_history_is_bounded_by_its_frames() -> None:
    """One block sees `history` frames before its chunk, the positions' and the front-end's reach added."""
    model = small_model(True)
    model.encoder.blocks = model.encoder.blocks[:1]
    frames = 30
    wave = torch.randn(1, frames * HOP, requires_grad=True)
    model(wave, torch.tensor([frames * HOP])).logits[0, -1].square().sum().backward()
    chunk_start = (frames - 1) // CHUNK * CHUNK
    first_frame = chunk_start - HISTORY - (model.settings.encoder.position_kernel - 1)
    first_sample = (first_frame + 1) * HOP - model.front_end.receptive
    assert wave.grad[0, :first_sample].abs().sum() == 0
    assert wave.grad[0, first_sample : first_sample + 2 * HOP].abs().sum() > 0


def test_offline_models_cannot_stream_and_say_so() -> None:
    with pytest.raises(ValueError, match="full context"):
        small_model(False).initial_state(1)
    with pytest.raises(ValueError, match=r"wave must be \(B, N\)"):
        small_model(False)(torch.zeros(1, 1, 320), torch.tensor([320]))


def test_masked_spans_hit_the_share_of_the_settings_and_only_valid_frames() -> None:
    torch.manual_seed(0)
    features, lengths = torch.ones(64, 200, 32), torch.full((64,), 150)
    masked, hit = mask_spans(features, lengths, Mask(time_probability=0.2, time_length=10), torch.zeros(32))
    share = 1 - masked[:, :150, 0].mean()
    assert 0.13 < float(share) < 0.2, "overlaps keep the share a little below the probability"
    assert masked[:, 150:].min() == 1
    assert hit is not None and torch.equal(hit, masked[..., 0] == 0)
    channels, none = mask_spans(features, lengths, Mask(channel_probability=0.25, channel_length=8), torch.zeros(32))
    assert none is None
    assert torch.equal(channels[:, 0], channels[:, -1]) and 0.1 < 1 - float(channels.mean()) < 0.3


@pytest.mark.parametrize("size", [1, 2, 9, 10])
def test_a_span_leaves_a_frame_of_utterances_that_are_no_longer(size: int) -> None:
    torch.manual_seed(0)
    hit = spans(torch.full((500,), size), 12, 1.0, 10).sum(1)
    assert hit.max() == size - 1, "as fairseq"


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_queries_and_keys_are_returned_beside_the_same_outputs(norm_first: bool, training: bool) -> None:
    model = small_model(False, norm_first).train(training)
    seen = {}
    for number, block in enumerate(model.encoder.blocks, 1):
        block.attention.query.register_forward_hook(lambda _, __, x, number=number: seen.update({number: x}))
    wave, samples = torch.randn(2, 20 * HOP), torch.tensor([20 * HOP, 11 * HOP])
    plain = model(wave, samples)
    output = model(wave, samples, attention=(1, 3))
    assert plain.attention is None and set(output.attention) == {1, 3}
    for one, other in zip((plain.logits, *plain.hidden), (output.logits, *output.hidden)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for number, pairs in output.attention.items():
        assert torch.equal(pairs[..., :16], seen[number]), "queries of the attention itself"


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_first_hidden_state_is_the_blocks_input_before_dropout(norm_first: bool) -> None:
    """The zeroth output of papers/004: behind positions and (post-LN) the norm."""
    model = small_model(False, norm_first)
    model.encoder.dropout.p = 0.5
    inputs = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    wave, samples = torch.randn(1, 20 * HOP), torch.tensor([20 * HOP])
    hidden = [model.train(training)(wave, samples).hidden[0] for training in (False, True)]
    torch.testing.assert_close(hidden[1], hidden[0])
    assert torch.equal(inputs[0], hidden[0])
    kept = inputs[1] != 0
    torch.testing.assert_close(inputs[1][kept], 2 * hidden[1][kept])


def test_layer_gradients_are_scaled_so_that_losses_of_all_blocks_pull_alike() -> None:
    """Each of L losses by 1 / (L + 1), whatever the block."""
    models = [small_model(False), small_model(False)]
    encoder = models[1].settings.encoder.model_copy(update={"layer_grad_scale": True})
    models[1].encoder.settings = encoder
    wave, samples, blocks = torch.randn(1, 20 * HOP), torch.tensor([20 * HOP]), 3
    for tap in range(1, blocks + 1):
        gradients = []
        for model in models:
            hidden = model.train()(wave, samples).hidden
            weight = model.encoder.blocks[0].ffn_up.weight
            gradients.append(torch.autograd.grad(hidden[tap].square().sum(), weight)[0])
        torch.testing.assert_close(gradients[1], gradients[0] / (blocks + 1))
    outputs = [model.eval()(wave, samples).logits for model in models]
    assert torch.equal(*outputs)


def test_the_front_ends_gradient_is_scaled() -> None:
    model = small_model(False).train()
    wave, samples = torch.randn(1, 20 * HOP), torch.tensor([20 * HOP])
    found = []
    for scale in (1.0, 0.25):
        model.encoder.settings = model.encoder.settings.model_copy(update={"feature_grad_mult": scale})
        model.zero_grad()
        model(wave, samples).logits.square().sum().backward()
        found.append((model.front_end.layers[0].conv.weight.grad, model.encoder.projection.weight.grad))
    torch.testing.assert_close(found[1][0], 0.25 * found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])


def test_models_without_values_need_no_library_to_respect_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lists the functions that a device applies to once; transformers replaces one of them for a while."""
    original = torch.linspace
    with monkeypatch.context() as patch:
        patch.setattr(torch, "linspace", lambda *values, **options: original(*values, **options))
        _device_constructors.cache_clear()
        _device_constructors()
    try:
        assert without_values(small_model(False).settings).front_end.layers[0].conv.weight.is_meta
    finally:
        _device_constructors.cache_clear()
