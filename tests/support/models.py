"""Small models of every kind that is deployed, their weights lively enough for outputs to differ."""

from __future__ import annotations

import pytest
import torch

from distill.config.model import Encoder, FrontEnd, Model, Streaming
from distill.decode.online import OnlineDecoder
from distill.models.recogniser import Recogniser
from tests.support.clients import build_decoder

OUTPUTS = ["<blk>", *"ABCDEFGHIJK"]
CHUNK, HISTORY = 8, 20
WAVE = FrontEnd(
    layers=((16, 10, 5), (16, 3, 2), (24, 8, 4)), norm="frame", norm_layers="all", causal=True, waveform="gain"
)
GABOR = WAVE.model_copy(update={"layers": ((16, 40, 20), (16, 8, 4), (24, 2, 2)), "first": "gabor"})
FBANK = FrontEnd(input="fbank", layers=((24, 3, 2), (24, 3, 2)), norm="frame", norm_layers="all", waveform="none")
TEACHER = FrontEnd(layers=((16, 10, 5), (16, 3, 2), (24, 8, 4)))


def build(
    front: FrontEnd,
    streams: bool,
    norm_first: bool = True,
    shared: int | None = 40,
    sinks: int = 0,
    buckets: int = 0,
    widths: tuple = (32, 2, None),
    kernel: int = 0,
    rank: int | None = None,
    seed: int = 0,
) -> Recogniser:
    """A model of a few thousand weights; kernel: of a conformer's convolutions, 0: a transformer."""
    torch.manual_seed(seed)
    causal, (ffn_dim, heads, head_dim) = front.norm == "frame", widths
    encoder = Encoder(
        dim=16, ffn_dim=ffn_dim, layers=2, heads=heads, head_dim=head_dim, norm_first=norm_first, position_kernel=6,
        position_groups=2, position_causal=causal, dropout=0.0, relative_buckets=buckets, relative_distance=30,
        rank=rank, **({"block": "conformer", "conv_kernel": kernel, "conv_causal": causal} if kernel else {}),
    )  # fmt: skip
    chunks = Streaming(chunk_frames=CHUNK, history_frames=HISTORY, sink_frames=sinks) if streams else Streaming()
    settings = Model(front_end=front, encoder=encoder, streaming=chunks, shared_head_dim=shared)
    model = Recogniser(settings, len(OUTPUTS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
        if model.encoder.relative is not None:
            model.encoder.relative.bias.weight.mul_(2)
        model.head.output.weight.mul_(20)
        if front.input == "fbank":
            model.front_end.mean.fill_(-9.0)
            model.front_end.scale.fill_(0.3)
        elif front.waveform == "gain":
            model.front_end.gain.fill_(3.0)
    return model


MODELS = {
    "waveform": (WAVE, True, True, 40),
    "gabor": (GABOR, True, True, 40),
    "post-LN": (WAVE, True, False, None),
    "fbank": (FBANK, True, True, None),
    "offline": (WAVE, False, True, 40),
    "teacher": (TEACHER, False, False, None),
    "sinks": (WAVE, True, True, None, 3),
    "many sinks": (FBANK, True, True, None, CHUNK + 3),
    "widths": (WAVE, True, True, None, 0, 0, ((32, 12), (3, 1), 8)),
    "pruned": (WAVE, True, True, None, 0, 0, ((0, 12), (3, 0), 8)),
    "pruned post-LN": (FBANK, True, False, None, 0, 0, ((32, 0), (0, 1), 8)),
    "low rank": (WAVE, True, False, None, 0, 0, (32, 2, None), 0, 5),
    "pruned conformer": (FBANK, True, False, None, 0, 0, ((0, 12), (3, 0), 8), 5, 3),
    "relative": (WAVE, True, False, None, 0, 8),
    "relative teacher": (TEACHER, False, False, None, 0, 8),
    "conformer": (FBANK, True, False, None, 0, 0, ((32, 12), (3, 1), 8), 17),
    "conformer waveform": (WAVE, True, False, None, 3, 8, (32, 2, None), 4),
    "conformer teacher": (TEACHER, False, False, None, 0, 0, (32, 2, None), 5),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Recogniser:
    return build(*MODELS[request.param])


@pytest.fixture(params=[name for name, (_, streams, *_) in MODELS.items() if streams])
def streaming_model(request: pytest.FixtureRequest) -> Recogniser:
    return build(*MODELS[request.param])


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> OnlineDecoder:
    return build_decoder(tmp_path_factory.mktemp("graph"))
