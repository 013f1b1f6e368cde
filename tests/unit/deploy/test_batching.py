"""Streams of different ages in one forward give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from distill.deploy.batching import Piece, TorchBatches
from distill.deploy.session import Session
from distill.deploy.torch_runner import TorchRunner, facts_of

from .conftest import GABOR, MODELS, OUTPUTS, build


def speech(samples: int, seed: int) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def together(runner: TorchBatches, waves: list[np.ndarray], arrivals: list[int]) -> list[np.ndarray]:
    """All streams through the runner; stream i arrives at round arrivals[i], and takes a chunk each round."""
    states, heard = [runner.open() for _ in waves], [[] for _ in waves]
    position, done, now = [0] * len(waves), [False] * len(waves), 0
    while not all(done):
        pieces, members = [], []
        for i, wave in enumerate(waves):
            if done[i] or now < arrivals[i]:
                continue
            new = wave[position[i] : position[i] + runner.needs(position[i] > 0)]
            done[i] = len(new) < runner.needs(position[i] > 0)
            position[i] += len(new)
            pieces.append(Piece(states[i], new, done[i]))
            members.append(i)
        for i, (log_probs, state) in zip(members, runner.step(pieces)):
            heard[i].append(log_probs)
            states[i] = state
        now += 1
    return [np.concatenate(each) for each in heard]


@pytest.mark.parametrize("name", [name for name, (_, streams, *_) in MODELS.items() if streams])
def test_a_stream_in_a_batch_is_as_alone(name: str) -> None:
    model = build(*MODELS[name])
    facts = facts_of(model, OUTPUTS, name)
    waves = [speech(n, seed) for seed, n in enumerate((9000, 1, 20011, 5120, 12345, 159, 7000))]
    found = together(TorchBatches(model, facts), waves, [0, 0, 1, 3, 3, 4, 7])
    alone = Session(TorchRunner(model, facts, True))
    for wave, log_probs in zip(waves, found):
        np.testing.assert_allclose(log_probs, alone.whole(wave), rtol=0, atol=1e-4)
    assert found[2].std() > 0.1


def test_sinks_and_unequal_memories() -> None:
    model = build(GABOR, True)
    model.settings = model.settings.model_copy(
        update={"streaming": model.settings.streaming.model_copy(update={"sink_frames": 3})}
    )
    facts = facts_of(model, OUTPUTS, "sinks")
    waves = [speech(n, seed) for seed, n in enumerate((9000, 20000, 12000))]
    found = together(TorchBatches(model, facts), waves, [0, 1, 4])
    alone = Session(TorchRunner(model, facts, True))
    for wave, log_probs in zip(waves, found):
        np.testing.assert_allclose(log_probs, alone.whole(wave), rtol=0, atol=1e-4)


def test_a_model_with_full_context_is_refused() -> None:
    model = build(*MODELS["offline"])
    with pytest.raises(ValueError, match="cannot stream"):
        TorchBatches(model, facts_of(model, OUTPUTS, "offline"))
