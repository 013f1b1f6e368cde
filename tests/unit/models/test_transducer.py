"""Predictors unit by unit and over whole sequences, and the joiner, from their formulas."""

from __future__ import annotations

import pytest
import torch

from distill.config.model import Encoder, FrontEnd, Model, Streaming, Transducer
from distill.models.cost import parameters
from distill.models.macs import macs
from distill.models.recogniser import Recogniser
from distill.models.transducer import PREDICTORS
from distill.models.transducer import Transducer as Network
from tests.support.models import FBANK, build

OUTPUTS, DIM, HIDDEN = 7, 6, 5
TOKENS = torch.tensor([[3, 3, 5, 1], [2, 0, 0, 0]])
KINDS = {
    "one unit": Transducer(context=1, dim=DIM, joiner_dim=4),
    "two units": Transducer(dim=DIM, joiner_dim=4),
    "lstm": Transducer(predictor="lstm", dim=DIM, joiner_dim=4),
}


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest) -> Transducer:
    return KINDS[request.param]


@pytest.fixture
def network(settings: Transducer) -> Network:
    torch.manual_seed(0)
    return Network(settings, HIDDEN, OUTPUTS).eval()


@torch.no_grad()
def test_a_predictor_runs_beside_half_precision(network: Network) -> None:
    """Not every processor has an LSTM in it."""
    units = torch.nn.functional.pad(TOKENS, (network.predictor.context, 0))
    with torch.autocast("cpu", torch.bfloat16):
        whole = network.predictor(units)
        state = network.predictor.advance(network.predictor.start(len(TOKENS)), TOKENS[:, 0])
        torch.testing.assert_close(network.predictor.read(state).float(), whole[:, 1].float(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(whole.float(), network.predictor(units), rtol=0.02, atol=0.02)


@torch.no_grad()
def test_unit_by_unit_is_the_whole_sequence(network: Network) -> None:
    predictor = network.predictor
    states = [predictor.start(2)]
    for units in TOKENS.T:
        states.append(predictor.advance(states[-1], units))
    whole = predictor(torch.nn.functional.pad(TOKENS, (predictor.context, 0)))
    torch.testing.assert_close(torch.stack([predictor.read(state) for state in states], 1), whole)
    swapped = predictor.advance(states[2].flip(0), TOKENS[:, 2].flip(0))
    torch.testing.assert_close(swapped, states[3].flip(0))  # rows are independent: a beam may reorder them


@torch.no_grad()
def test_a_stateless_predictor_weights_the_last_units() -> None:
    predictor = PREDICTORS["stateless"](KINDS["two units"], OUTPUTS)
    table, kernel = predictor.embedding.weight, predictor.conv.weight[:, 0]
    assert not table[0].any()
    for before, unit in ((0, 0), (0, 3), (3, 5), (5, 5)):
        expected = (table[before] * kernel[:, 0] + table[unit] * kernel[:, 1]).relu()
        torch.testing.assert_close(predictor.read(torch.tensor([[before, unit]]))[0], expected)


@torch.no_grad()
def test_logits_are_those_of_the_joiner(network: Network) -> None:
    hidden = torch.randn(2, 3, HIDDEN)
    joint = network(hidden, TOKENS)
    lattice = joint.logits(joint.frames[:, :, None], joint.predicted[:, None])
    assert lattice.shape == (2, 3, 5, OUTPUTS)
    predicted = network.predictor(torch.nn.functional.pad(TOKENS, (network.predictor.context, 0)))
    for frame in range(3):
        for unit in range(5):
            joined = network.encoder_projection(hidden[:, frame]) + network.predictor_projection(predicted[:, unit])
            torch.testing.assert_close(lattice[:, frame, unit], network.output(joined.tanh()))
    assert network(hidden).predicted.shape == (2, 1, 4)


@pytest.mark.parametrize("kind", ["one unit", "two units"])
def test_a_stateless_predictor_forgets(kind: str) -> None:
    predictor = PREDICTORS["stateless"](KINDS[kind], OUTPUTS)
    units = torch.tensor([[1, 2, 3, 4, 5]])
    other = units.clone()
    other[0, 1] = 6
    padded = (torch.nn.functional.pad(x, (predictor.context, 0)) for x in (units, other))
    changed = (predictor(next(padded)) != predictor(next(padded))).any(2)[0].nonzero().flatten().tolist()
    assert changed == [2, 3][: predictor.context]


def model(settings: Transducer | None, **changes) -> Model:
    encoder = Encoder(dim=HIDDEN * 4, heads=2, layers=1, position_groups=2, position_causal=True)
    return Model(front_end=FBANK, encoder=encoder, transducer=settings, **changes)


def test_main_outputs_and_the_stream_are_as_without(settings: Transducer) -> None:
    streams = model(settings, streaming=Streaming(chunk_frames=4, history_frames=8))
    torch.manual_seed(1)
    both = Recogniser(streams, OUTPUTS).eval()
    alone = Recogniser(streams.model_copy(update={"transducer": None}), OUTPUTS).eval()
    alone.load_state_dict({name: x for name, x in both.state_dict().items() if not name.startswith("transducer.")})
    wave, samples = torch.randn(2, 9000), torch.tensor([9000, 5000])
    with torch.no_grad():
        first, second = both(wave, samples), alone(wave, samples)
        torch.testing.assert_close(first.logits, second.logits)
        assert second.joint is None and first.joint is not None
        frames, _, _ = both.select_output("transducer").step(wave, both.initial_state(2), samples, final=True)
    for row, length in enumerate(first.lengths.tolist()):
        torch.testing.assert_close(frames[row, :length], first.joint.frames[row, :length], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"has no transducer; train one with model.transducer: \{\}"):
        alone.select_output("transducer")


def test_cost_is_counted(settings: Transducer) -> None:
    network = Network(settings, HIDDEN * 4, OUTPUTS)
    with_it, without = (parameters(model(each), OUTPUTS) for each in (settings, None))
    assert with_it["trunk"] == without["trunk"]
    assert with_it["head"] - without["head"] == sum(p.numel() for p in network.parameters())
    weights = [p.numel() for name, p in network.named_parameters() if p.ndim > 1 and "embedding" not in name]
    rate = 16000 / model(None).front_end.hop
    assert macs(model(settings), OUTPUTS)["transducer"] == rate * sum(weights)
    assert "transducer" not in macs(model(None), OUTPUTS)


def test_a_waveform_model_has_one_too() -> None:
    wave = FrontEnd(layers=((16, 10, 5), (16, 8, 8)), norm="frame", waveform="none")
    recogniser = build(wave, False)
    assert recogniser.transducer is None
    torch.manual_seed(0)
    settings = recogniser.settings.model_copy(update={"transducer": KINDS["lstm"]})
    output = Recogniser(settings, OUTPUTS).eval()(torch.randn(2, 800), torch.tensor([800, 500]), tokens=TOKENS)
    assert output.joint.frames.shape == (2, output.logits.shape[1], 4) and output.joint.predicted.shape == (2, 5, 4)
