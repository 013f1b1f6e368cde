"""Greedy search and beam of a transducer against loops over all they could find, in one piece and in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
import torch

from distill.batch import Batch
from distill.config.model import Transducer as Settings
from distill.decode import log_probs
from distill.decode.transducer import Beam, Chain, Greedy, LexiconTree, Place, with_penalty
from distill.models.recogniser import Recogniser
from distill.models.transducer import Transducer
from distill.runtime.torch_runner import TorchNetwork
from tests.support.decoding import Small
from tests.support.models import CHUNK, FBANK, build

WIDTH, FRAMES, ALL = 6, 5, 10**6
KINDS = {"stateless": Settings(dim=5, joiner_dim=WIDTH), "lstm": Settings(predictor="lstm", dim=5, joiner_dim=WIDTH)}


@pytest.fixture(params=KINDS)
def network(request: pytest.FixtureRequest, small: Small) -> Transducer:
    torch.manual_seed(0)
    network = Transducer(KINDS[request.param], 3, len(small.lang.units)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


def frames_of(seed: int, count: int = FRAMES) -> torch.Tensor:
    return 2 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def behind(network: Transducer, frame: torch.Tensor, units: Sequence[int]) -> np.ndarray:
    """Log-probabilities (V,) at a frame behind some units, computed from all of them anew."""
    joint = network.joint(frame[None, None], torch.tensor([units], dtype=torch.int64))
    return joint.logits(joint.frames[0, 0], joint.predicted[0, -1]).double().log_softmax(0).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_a_penalty_is_taken_from_the_logit_of_blanks(network: Transducer, seed: int) -> None:
    frame, plain = frames_of(seed, 1)[0], TorchNetwork(network)
    fewer = with_penalty(plain, 1.5)
    state, predicted = fewer.start()
    joint = network.joint(frame[None, None])
    logits = joint.logits(joint.frames[0, 0], joint.predicted[0, 0]).detach().double().numpy()
    logits[0] -= 1.5
    found = fewer.log_probs(frame.numpy(), predicted)[0]
    np.testing.assert_allclose(found, logits - np.log(np.exp(logits).sum()), rtol=1e-4, atol=1e-5)
    assert with_penalty(plain, 0.0) is plain
    np.testing.assert_array_equal(fewer.advance(state, np.array([1]))[1], plain.advance(state, np.array([1]))[1])


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_best_of_each_frame(network: Transducer, seed: int) -> None:
    frames, units, places = frames_of(seed, 30), [], []
    for place, frame in enumerate(frames):
        best = int(behind(network, frame, units).argmax())
        if best:
            units.append(best)
            places.append(place)
    search = Greedy(TorchNetwork(network))
    search.feed(frames.numpy())
    assert (search.units, search.frames) == (units, places) and 0 < len(units) < 30


def acoustic(network: Transducer, frames: torch.Tensor, units: Sequence[int]) -> float:
    """log p of all alignments with at most one unit a frame."""
    scores = []
    for places in combinations(range(len(frames)), len(units)):
        score, done = 0.0, 0
        for place, frame in enumerate(frames):
            emitted = units[done] if place in places else 0
            score += behind(network, frame, units[:done])[emitted]
            done += place in places
        scores.append(score)
    return float(np.logaddexp.reduce(scores))


def sentences(small: Small, longest: int) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Every word sequence in every pronunciation of up to so many units."""
    stack: list[tuple[tuple[str, ...], tuple[int, ...]]] = [((), ())]
    while stack:
        words, units = stack.pop()
        yield words, units
        for word in small.lang.lexicon.words:
            for variant in small.lang.pronunciation_ids(word, "test"):
                if len(units) + len(variant) <= longest:
                    stack.append(((*words, word), (*units, *variant)))


def lm_score(small: Small, words: Sequence[str]) -> float:
    said = ("<s>", *words, "</s>")
    return math.log(10) * sum(small.lm.score(said[:n], said[n]) for n in range(1, len(said)))


@pytest.mark.parametrize(("seed", "scale"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)])
def test_a_beam_of_everything_is_the_best_sentence_of_all(
    network: Transducer, small: Small, seed: int, scale: float
) -> None:
    frames = frames_of(seed)
    search = Beam(TorchNetwork(network), LexiconTree(small.lang, small.lm, scale), ALL)
    search.feed(frames.numpy())
    total = {
        (words, units): acoustic(network, frames, units) + scale * lm_score(small, words)
        for words, units in sentences(small, FRAMES)
    }
    found = {
        (tuple(each.place.words), tuple(each.units)): each.acoustic + search.tree.ended(each.place)
        for each in search.hypotheses
        if each.place.node == 0
    }
    assert found.keys() == total.keys() and len(found) > 100
    np.testing.assert_allclose([found[key] for key in total], list(total.values()), rtol=1e-5)
    assert total[max(found, key=found.__getitem__)] == pytest.approx(max(total.values()), rel=1e-5)
    assert search.words() in {words for (words, _), score in total.items() if score > max(total.values()) - 1e-4}
    assert max(len(each.units) for each in search.hypotheses) == FRAMES  # one unit a frame


def test_units_are_those_of_words(network: Transducer, small: Small) -> None:
    search = Beam(TorchNetwork(network), LexiconTree(small.lang, small.lm, 0.3), 6)
    search.feed(frames_of(4, 40).numpy())
    sayings = dict.fromkeys((units, words) for words, units in sentences(small, 4))
    assert len(search.hypotheses) == 6 and all(len(each.units) <= 40 for each in search.hypotheses)
    for each in search.hypotheses:
        rest = list(each.units)
        for word in each.place.words:
            variants = small.lang.pronunciation_ids(word, "test")
            rest = next(rest[len(variant) :] for variant in variants if tuple(rest[: len(variant)]) == variant)
        assert any(units[: len(rest)] == tuple(rest) for units, _ in sayings)


def test_the_n_gram_decides_between_homophones(small: Small) -> None:
    tree = LexiconTree(small.lang, small.lm, 1.0)
    unit = small.lang.tokens["B"]
    after = {tuple(place.words): place.score for place in tree.after(Place(), unit) if len(place.words)}
    assert after.keys() == {("BE",), ("BEE",)}
    for words, score in after.items():
        assert score == pytest.approx(math.log(10) * small.lm.score(("<s>",), words[0]))


def test_a_beam_that_ends_within_words_gives_those_before(small: Small) -> None:
    tree = LexiconTree(small.lang, small.lm, 1.0)
    torch.manual_seed(0)
    search = Beam(TorchNetwork(Transducer(KINDS["lstm"], 3, len(small.lang.units))), tree, 1)
    node = tree.children[0][small.lang.tokens["A"]]
    search.hypotheses = [search.hypotheses[0]._replace(place=Place(Chain("BE"), node, 0.0))]
    assert tree.ended(search.hypotheses[0].place) == -math.inf and search.words() == ("BE",)


@pytest.mark.parametrize("seed", range(3))
def test_chunks_change_nothing(network: Transducer, small: Small, seed: int) -> None:
    frames, tree = frames_of(seed, 25), LexiconTree(small.lang, small.lm, 0.3)
    asked = TorchNetwork(network)
    whole, parts = (Greedy(asked), Beam(asked, tree, 4)), (Greedy(asked), Beam(asked, tree, 4))
    for search in whole:
        search.feed(frames.numpy())
    for piece in frames.split([0, 1, 7, 0, 12, 5]):
        for search in parts:
            search.feed(piece.numpy())
    assert parts[0].units == whole[0].units and parts[0].frames == whole[0].frames
    assert parts[1].hypotheses == whole[1].hypotheses


def test_a_stream_has_the_frames_of_whole_utterances() -> None:
    torch.manual_seed(0)
    settings = build(FBANK, True).settings.model_copy(update={"transducer": KINDS["stateless"]})
    model = Recogniser(settings, 5).eval().select_output("transducer")
    samples = torch.tensor([16000, 9000])
    batch = Batch(("a", "b"), torch.randn(2, 16000), samples)
    offline = dict(log_probs.offline(model, [batch]))
    streamed = dict(log_probs.streaming(model, [batch], CHUNK * settings.front_end.hop))
    assert model.transducer is not None
    for name, frames in offline.items():
        assert frames.shape[1] == WIDTH
        np.testing.assert_allclose(streamed[name], frames, atol=1e-4)
        searches = [Greedy(TorchNetwork(model.transducer)), Greedy(TorchNetwork(model.transducer))]
        for search, each in zip(searches, (frames, streamed[name])):
            search.feed(each)
        assert searches[0].units == searches[1].units


def test_chains_compare_as_their_items_do() -> None:
    one = Chain(1, 2)
    assert one == Chain(1).then(2) and hash(one) == hash(Chain(1).then(2)) and one != Chain(1, 3) != Chain(1)
    assert [tuple(Chain()), tuple(one.then(3)), one.then(3).last(2), one.last(9)] == [(), (1, 2, 3), (2, 3), (1, 2)]
    assert len(one.then(2)) == 3 and one != (1, 2)
    longest = one
    for item in range(10**5):
        longest = longest.then(item)
    assert longest.last(1) == (10**5 - 1,) and len({longest.then(1), longest.then(1), longest.then(2)}) == 2
