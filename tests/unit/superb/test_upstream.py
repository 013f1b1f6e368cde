"""The upstream's hidden states are those of the model, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.models.recogniser import Recogniser
from distill.superb.upstream import Upstream, load_upstream
from tests.support.models import model
from tests.support.superb import experiment

__all__ = ["model"]
LENGTHS = (8000, 5003, 900)


def waves() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=draw) for length in LENGTHS]


def test_hidden_states_are_those_of_forward(model: Recogniser) -> None:
    wave, upstream = waves()[0], Upstream(model)
    expected = model(wave[None], torch.tensor([len(wave)]))
    found = upstream([wave])
    hop, frames = upstream.get_downsample_rates("hidden_states"), int(expected.lengths)
    assert hop == model.front_end.hop and len(found["hidden_states"]) == len(model.encoder.blocks) + 1
    for ours, theirs in zip(found["hidden_states"], expected.hidden, strict=True):
        assert ours.shape[1] == -(-len(wave) // hop) >= frames
        assert torch.equal(ours[:, :frames], theirs[:, :frames])
        assert torch.equal(ours[:, frames:], theirs[:, frames - 1 : frames].expand_as(ours[:, frames:]))
    assert torch.equal(found["last_hidden_state"], found["hidden_states"][-1])


def test_an_utterance_has_the_same_states_alone_and_in_a_batch(model: Recogniser) -> None:
    upstream = Upstream(model)
    batch = upstream(waves())["hidden_states"]
    for row, wave in enumerate(waves()):
        for alone, together in zip(upstream([wave])["hidden_states"], batch, strict=True):
            mine = together[row, : alone.shape[1]]
            assert torch.allclose(mine, alone[0], atol=1e-4 * alone.abs().max().item())


def test_states_are_computed_once_while_weights_stay(model: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, first, second = Upstream(model), waves()[0], waves()[1]
    with torch.no_grad():
        alone = upstream([first])["hidden_states"]
        monkeypatch.setattr(upstream, "_states", lambda new: pytest.fail(f"{len(new)} computed again"))
        assert all(map(torch.equal, upstream([first, first])["hidden_states"], (x.expand(2, -1, -1) for x in alone)))
        monkeypatch.undo()
        both = upstream([second, first])["hidden_states"]
        assert all(torch.equal(found[1, : x.shape[1]], x[0]) for found, x in zip(both, alone))
        for parameter in model.parameters():
            parameter.mul_(1.5)
    with torch.enable_grad():
        changed = upstream([first])["hidden_states"]  # as in a training of the upstream
    with torch.no_grad():
        found = upstream([first])["last_hidden_state"]
    scale = changed[-1].abs().max().item()
    assert torch.allclose(found, changed[-1], atol=1e-4 * scale)
    assert not torch.allclose(changed[-1], alone[-1], atol=1e-2 * scale)


def test_states_beyond_the_room_are_not_kept(model: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.superb.upstream.KEPT", 8)
    upstream = Upstream(model)
    with torch.no_grad():
        expected = [upstream([wave])["last_hidden_state"] for wave in waves() for _ in range(2)]
    assert not upstream._kept and all(map(torch.equal, expected[::2], expected[1::2]))


def test_the_last_states_alone(model: Recogniser) -> None:
    found, every = Upstream(model, last_state=True)(waves()), Upstream(model)(waves())
    assert len(found["hidden_states"]) == 1 and torch.equal(found["last_hidden_state"], every["last_hidden_state"])


def test_silence_follows_an_utterance_too_short_for_a_frame(model: Recogniser) -> None:
    short, receptive = waves()[2][:30], model.front_end.receptive
    padded = torch.nn.functional.pad(short, (0, receptive - len(short)))
    for found, expected in zip(Upstream(model)([short])["hidden_states"], Upstream(model)([padded])["hidden_states"]):
        assert found.shape[1] == -(-len(short) // model.front_end.hop)
        assert torch.equal(found, expected[:, : found.shape[1]])


def test_it_stays_in_evaluation_mode(tmp_path: Path) -> None:
    upstream = load_upstream(str(experiment(tmp_path)), refresh=False, model_config=None)
    assert not any(module.training for module in upstream.train().modules())


def test_an_untrained_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no epoch-N\.pt in"):
        load_upstream(str(tmp_path))
