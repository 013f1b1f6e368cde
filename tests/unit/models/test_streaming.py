"""Every kind of model that streams: step equals the masked forward, nothing looks further ahead than its latency."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.batch import SAMPLE_RATE
from distill.config.experiment import Experiment
from distill.config.model import Encoder, FrontEnd, Model, Streaming
from distill.models.attention import attention_mask
from distill.models.encoder import drawn
from distill.models.latency import latency
from distill.models.recogniser import Recogniser
from distill.models.streaming import StreamState, join, split
from tests.support.streams import assert_step_equals_forward

WAVE = {"norm": "frame", "norm_layers": "all", "waveform": "gain"}
FBANK = {"input": "fbank", "norm": "frame", "waveform": "none", "mels": 20}
FRONT_ENDS = {
    "causal": FrontEnd(layers=((6, 10, 5), (6, 4, 4), (8, 3, 2)), causal=True, **WAVE),
    "gabor": FrontEnd(layers=((6, 40, 20), (8, 4, 2)), causal=True, first="gabor", **WAVE),
    "padless": FrontEnd(layers=((6, 10, 5), (6, 4, 4), (8, 3, 2)), **WAVE),
    "fbank 20 ms": FrontEnd(layers=((8, 3, 2),), **FBANK),
    "fbank 40 ms": FrontEnd(layers=((8, 7, 4),), **FBANK),
    "fbank two": FrontEnd(layers=((8, 3, 2), (8, 3, 2)), **FBANK),
}
CONFORMER = {
    "block": "conformer",
    "norm_first": False,
    "conv_kernel": 4,
    "conv_dim": (6, 10),
    "ffn_after_dim": (4, 9),
    "conv_causal": True,
}
KINDS = {
    "plain": ({}, {}),
    "sinks": ({}, {"sink_frames": 5}),
    "no history": ({}, {"history_frames": 0}),
    "sinks only": ({}, {"history_frames": 0, "sink_frames": 2}),
    "relative": ({"relative_buckets": 8, "relative_distance": 12}, {"sink_frames": 1}),
    "post-LN": ({"norm_first": False}, {}),
    "maps of another block": ({"attention_of": (0, 1)}, {"sink_frames": 1}),
    "widths of each block": ({"ffn_dim": (12, 5), "heads": (3, 1), "head_dim": 4}, {}),
    "pruned layers": ({"ffn_dim": (0, 5), "heads": (3, 0), "head_dim": 4}, {"sink_frames": 1}),
    "low rank": ({"rank": 3}, {}),
    "conformer": (CONFORMER, {}),
    "conformer without history": (CONFORMER | {"relative_buckets": 8}, {"history_frames": 0, "sink_frames": 1}),
    "pruned conformer": (
        CONFORMER
        | {"ffn_dim": (0, 5), "heads": (3, 0), "head_dim": 4, "ffn_after_dim": (4, 0), "conv_dim": (3, 8), "rank": 2},
        {"sink_frames": 1},
    ),
}
CHUNK, HISTORY = 4, 6


@cache
def small(front: str, kind: str = "plain") -> Recogniser:
    encoder, chunks = KINDS[kind]
    shape = {"dim": 8, "ffn_dim": 12, "layers": 2, "heads": 2, "position_kernel": 5, "position_groups": 2}
    values = {"norm_first": True, "position_causal": True, "dropout": 0.0, **shape, **encoder}
    streaming = {"chunk_frames": CHUNK, "history_frames": HISTORY, **chunks}
    torch.manual_seed(1)
    model = Recogniser(
        Model(front_end=FRONT_ENDS[front], encoder=Encoder(**values), streaming=Streaming(**streaming)), 5
    )
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("front", FRONT_ENDS)
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 9000), max_size=8),
)
def test_step_equals_forward_for_every_front_end(front: str, lengths: list[int], cuts: list[int]) -> None:
    scale = 1 if "fbank" in front else 8  # frames of the others are shorter
    assert_step_equals_forward(small(front), [n // scale + 1 for n in lengths], [n // scale for n in cuts])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1100), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 1100), max_size=8),
    kind=st.sampled_from(list(KINDS)),
)
def test_step_equals_forward_for_every_encoder(kind: str, lengths: list[int], cuts: list[int]) -> None:
    assert_step_equals_forward(small("causal", kind), lengths, cuts)


@settings(max_examples=15, deadline=None)
@given(chunk=st.integers(1, 9), history=st.integers(0, 12), length=st.integers(1, 1000), cut=st.integers(0, 999))
def test_one_model_runs_at_any_latency(chunk: int, history: int, length: int, cut: int) -> None:
    model = small("padless", "sinks")
    try:
        assert_step_equals_forward(model.set_chunk(chunk, history), [length], [cut])
        assert latency(model.settings).chunk_ms == pytest.approx(chunk * 40 / 16)
    finally:
        model.set_chunk(CHUNK, HISTORY)


@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("kind", ["plain", "relative", "conformer"])
def test_no_output_depends_on_samples_beyond_its_look_ahead(front: str, kind: str) -> None:
    """The gradient of each frame ends exactly at the accounted latency, in milliseconds."""
    model = small(front, kind)
    hop, frames = model.front_end.hop, 3 * CHUNK
    size = frames * hop + model.front_end.ahead
    wave = torch.randn(1, size, generator=torch.Generator().manual_seed(3), requires_grad=True)
    waits = []
    for frame in range(frames):
        (gradient,) = torch.autograd.grad(model(wave, torch.tensor([size])).logits[0, frame].square().sum(), wave)
        last_sample = int(gradient[0].nonzero().max())
        waits.append(1000 * (last_sample + 1 - (frame + 1) * hop) / SAMPLE_RATE)
    delay = latency(model.settings)
    assert delay.max is not None and delay.mean is not None
    assert max(waits) == pytest.approx(delay.max, abs=0.1)
    assert sum(waits) / len(waits) == pytest.approx(delay.mean, abs=0.1)


def test_state_is_bounded_by_chunk_history_and_sinks() -> None:
    model = small("fbank 20 ms", "sinks")
    front, sizes = model.front_end, set()
    state = model.initial_state(2)
    for _ in range(40):
        _, _, state = model.step(torch.zeros(2, 777), state)
        assert state.audio.shape[1] < front.context + CHUNK * front.hop + front.ahead
        assert state.caches[0].keys.shape[1] == state.frames.shape[1] <= HISTORY + 5
        sizes.add(state.frames.shape[1])
    assert max(sizes) == HISTORY + 5 and state.frames[0, :5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["plain", "sinks", "sinks only", "relative", "conformer", "conformer without history"])
def test_states_of_streams_of_different_ages_are_bounded_too(kind: str) -> None:
    """A stream joins in each round; the outputs and cached frames are those of each stream alone."""
    model, rounds = small("fbank 20 ms", kind), 14
    front, rule, chunk = model.front_end, model.encoder.streaming, CHUNK * model.front_end.hop
    generator = torch.Generator().manual_seed(7)
    batched: list[StreamState] = []
    alone: list[StreamState] = []
    with torch.no_grad():
        for number in range(rounds):
            if number < 8:
                _, _, begun = model.step(torch.randn(1, front.ahead, generator=generator), model.initial_state(1))
                batched, alone = [*batched, begun], [*alone, begun]
            waves = torch.randn(len(batched), chunk, generator=generator)
            together, _, state = model.step(waves, join(batched))
            batched = split(state)
            for i, wave in enumerate(waves):
                logits, _, alone[i] = model.step(wave[None], alone[i])
                assert logits.shape[1] == CHUNK
                torch.testing.assert_close(together[i], logits[0], rtol=1e-4, atol=1e-4)
                assert torch.equal(batched[i].frames, alone[i].frames)
                assert batched[i].caches[0].keys.shape[1] == batched[i].frames.shape[1]
    assert {state.frames.shape[1] for state in batched} == {rule.history_frames + rule.sink_frames}


def test_a_chunk_of_no_samples_gives_no_frames() -> None:
    model = small("fbank 40 ms")
    logits, lengths, state = model.step(torch.zeros(1, 0), model.initial_state(1))
    assert logits.shape == (1, 0, 5) and lengths.tolist() == [0]
    logits, lengths, _ = model.step(torch.zeros(1, 0), state, final=True)
    assert logits.shape == (1, 0, 5) and lengths.tolist() == [0]


def test_attention_mask_is_the_rule_written_out() -> None:
    streaming = Streaming(chunk_frames=3, history_frames=4, sink_frames=2)
    mask = attention_mask(torch.ones(1, 14, dtype=torch.bool), streaming)[0, 0]
    for row, column in itertools.product(range(14), range(14)):
        start = row // 3 * 3
        seen = start - 4 <= column < start + 3 or (column < 2 and column < start + 3)
        assert bool(mask[row, column]) == seen, (row, column)


def test_chunks_are_drawn_in_training_and_fixed_elsewhere() -> None:
    streaming = Streaming(chunk_frames=8, history_frames=16, train_chunks=(0, 2, 8), train_histories=(4, 16))
    torch.manual_seed(0)
    seen = {(d.chunk_frames, d.history_frames) for d in (drawn(streaming) for _ in range(100))}
    assert seen == {(chunk, history) for chunk in (0, 2, 8) for history in (4, 16)}
    assert drawn(Streaming(chunk_frames=8)) == Streaming(chunk_frames=8)
    model = small("causal")
    wave, samples = torch.randn(1, 900, generator=torch.Generator().manual_seed(5)), torch.tensor([900])
    fixed = model(wave, samples).logits
    try:
        model.encoder.streaming = Streaming(chunk_frames=CHUNK, history_frames=HISTORY, train_chunks=(1, 2, 0))
        torch.testing.assert_close(model(wave, samples).logits, fixed)
        model.train()
        outputs = [model(wave, samples).logits.detach() for _ in range(12)]
        assert len({round(float(out.sum()), 3) for out in outputs}) == 3
    finally:
        model.eval().encoder.streaming = model.settings.streaming


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_chunks": (4,)}, "need streaming.chunk_frames"),
        ({"sink_frames": 4}, "need streaming.chunk_frames"),
        ({"chunk_frames": 4, "train_histories": (4,)}, "drawn with train_chunks"),
        ({"chunk_frames": 4, "train_chunks": (-1,)}, "greater than or equal to 0"),
        ({"chunk_frames": -4}, "greater than or equal to 0"),
    ],
)
def test_impossible_chunks_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Streaming(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": FrontEnd().layers}, "layers of a waveform stack"),
        ({"causal": True}, "causal: true"),
        ({"waveform": "gain"}, "waveform: gain"),
        ({"norm": "group"}, "norm: group"),
        ({"first": "gabor"}, "first: gabor"),
    ],
)
def test_impossible_fbank_front_ends_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrontEnd(**{**FBANK, "layers": ((8, 3, 2),), **values})


CONF = Path(__file__).parents[3] / "egs" / "librispeech" / "conf"


@pytest.mark.parametrize(
    ("name", "chunk", "mean", "most"),
    [
        ("s5_stream", 960, 470, 940),  # papers/001 counts half a chunk, 480 ms
        ("s5_fbank_stream", 960, 470 + 17.5, 940 + 17.5),
        ("s5_fbank40_stream", 960, 460 + 37.5, 920 + 37.5),
        ("s5", None, None, None),
        ("teacher", None, None, None),
    ],
)
def test_look_ahead_of_the_recipes_models(
    name: str, chunk: float | None, mean: float | None, most: float | None
) -> None:
    delay = latency(Experiment.load(CONF / f"{name}.yaml").model)
    assert (delay.chunk_ms, delay.mean, delay.max) == (chunk, mean, most)


def test_every_part_that_waits_for_the_end_is_named() -> None:
    waiting = {part.name for part in latency(Model()).parts if part.max is None}
    assert waiting == {"waveform normalisation", "norms of the convolutions", "attention"}
    parts = {part.name: part.max for part in latency(Experiment.load(CONF / "s5_fbank40_stream.yaml").model).parts}
    assert (parts["Fbank window"], parts["convolutions"]) == (7.5, 30)
