"""Losses of pre-training against their formulas written out for each frame, and on batches without a masked frame."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch, Output
from distill.config.losses import BestRq as BestRqSettings
from distill.config.losses import Contrastive as ContrastiveSettings
from distill.config.losses import Hubert as HubertSettings
from distill.config.losses import Objective as Settings
from distill.config.model import Model
from distill.fbank import fbank
from distill.losses.bestrq import BestRq
from distill.losses.contrastive import Contrastive, draw_negatives
from distill.losses.hubert import Hubert
from distill.losses.objective import Objective
from distill.losses.term import Losses, LossTerm, TermContext

DIM, FEATURES, FRAMES, CLUSTERS, HOP = 8, 6, 12, 5, 320
LENGTHS = (12, 7, 3)
MODEL = Model.model_validate({"encoder": {"dim": DIM, "layers": 2, "heads": 2, "position_groups": 2}})
TERMS = {
    "hubert": lambda: Hubert(HubertSettings(final_dim=4, unmasked_weight=0.5), DIM, CLUSTERS),
    "contrastive": lambda: Contrastive(ContrastiveSettings(codewords=3, final_dim=4, negatives=3), FEATURES, DIM),
    "bestrq": lambda: BestRq(BestRqSettings(codebooks=2, codewords=7, dim=4, mels=10), 2, DIM),
}


def student(hit: Tensor | None = None) -> Output:
    """Random outputs for LENGTHS; hit: masked frames, by default about half of them, some behind an utterance's end."""
    torch.manual_seed(1)
    hidden = tuple(torch.randn(3, FRAMES, DIM, requires_grad=True) for _ in range(3))
    features = torch.randn(3, FRAMES, FEATURES, requires_grad=True)
    hit = torch.rand(3, FRAMES) < 0.5 if hit is None else hit
    normed = F.layer_norm(features, (FEATURES,))
    return Output(hidden[-1], torch.tensor(LENGTHS), hidden, features=features, normed=normed, masked=hit)


def batch(silent: bool = False) -> Batch:
    torch.manual_seed(2)
    wave = torch.zeros(3, FRAMES * HOP) if silent else 0.1 * torch.randn(3, FRAMES * HOP)
    units = torch.randint(CLUSTERS, (3, FRAMES))
    samples = HOP * torch.tensor(LENGTHS)
    units[torch.arange(FRAMES) >= torch.tensor(LENGTHS)[:, None]] = -1
    return Batch(("a", "b", "c"), torch.zeros_like(wave), samples, clean=wave, units=units)


def term(name: str) -> LossTerm:
    torch.manual_seed(0)
    return TERMS[name]()


def loss_of(losses: Losses) -> Tensor:
    return sum((t.weight * t.total / t.count.clamp_min(1) for t in losses.terms.values()), start=torch.zeros(()))


def part(output: Output, content: Batch, rows: list[int]) -> tuple[Output, Batch]:
    """The same for some of the utterances."""
    tensors = {name: value[rows] for name, value in output._asdict().items() if isinstance(value, Tensor)}
    hidden = tuple(x[rows] for x in output.hidden)
    return output._replace(**tensors, hidden=hidden), Batch(
        ("a",) * len(rows), content.wave[rows], content.samples[rows], (), content.clean[rows],
        units=content.units[rows],
    )  # fmt: skip


def inside(output: Output) -> Tensor:
    return torch.arange(FRAMES) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("block", [0, 1])
def test_hubert_is_the_cross_entropy_over_cosines(block: int) -> None:
    torch.manual_seed(0)
    hubert = Hubert(HubertSettings(final_dim=4, unmasked_weight=0.5, block=block), DIM, CLUSTERS)
    output, content = student(), batch()
    total, frames, right, found = 0.0, 0, 0, Counter[int]()
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            weight = 1.0 if output.masked[b, t] else 0.5
            projected = hubert.head.projection(output.hidden[block or 2][b, t])
            scores = torch.cosine_similarity(projected[None], hubert.head.codewords, dim=-1) / 0.1
            total = total - weight * scores.log_softmax(0)[content.units[b, t]]
            frames += 1
            right += int(bool(output.masked[b, t]) and scores.argmax() == content.units[b, t])
            found.update([int(scores.argmax())] if output.masked[b, t] else [])
    losses = hubert(output, None, content)
    torch.testing.assert_close(losses.terms["hubert"].total, total)
    assert int(losses.terms["hubert"].count) == frames
    accuracy = losses.terms["hubert_masked_accuracy"]
    assert (int(accuracy.total), int(accuracy.count), accuracy.weight) == (
        right,
        int((output.masked & inside(output)).sum()),
        0,
    )
    used = losses.terms["hubert_masked_perplexity"]
    shares = [count / found.total() for count in found.values()]
    assert float(used.total / used.count) == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)), rel=1e-4)
    penalty, square = losses.terms["hubert_features"], output.features[inside(output)].square().mean()
    torch.testing.assert_close(penalty.weight * penalty.total / penalty.count, 10 * square)


def test_units_of_another_number_of_frames_are_cut_or_left_out() -> None:
    hubert, output, content = term("hubert"), student(), batch()
    expected = hubert(output, None, content).terms["hubert"]
    longer = Batch(content.ids, content.wave, content.samples, units=F.pad(content.units, (0, 2), value=1))
    assert torch.equal(hubert(output, None, longer).terms["hubert"].total, expected.total)
    shorter = Batch(content.ids, content.wave, content.samples, units=content.units[:, :-2])
    assert int(hubert(output, None, shorter).terms["hubert"].count) == int(expected.count) - 2


@pytest.mark.parametrize("training", [False, True])
def test_the_contrastive_loss_is_equation_3_and_4(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    contrastive, output = term("contrastive").train(training), student()
    contrastive.update_number = 100_000
    hit = output.masked & inside(output)
    negatives, noise = draw_negatives(hit, 3), torch.randn(int(hit.sum()), 2, 3)

    def drawn(logits: Tensor, temperature: float, hard: bool) -> Tensor:
        assert hard and temperature == pytest.approx(2 * 0.999995**100_000)
        soft = ((logits + noise) / temperature).softmax(-1)
        return F.one_hot(soft.argmax(-1), 3) - soft.detach() + soft

    monkeypatch.setattr(F, "gumbel_softmax", drawn)
    monkeypatch.setattr("distill.losses.contrastive.draw_negatives", lambda *_: negatives)
    scores = contrastive.quantiser.scores(output.normed[hit]).view(-1, 2, 3)
    chosen = drawn(scores, 2 * 0.999995**100_000, True) if training else F.one_hot(scores.argmax(-1), 3).float()
    table = contrastive.quantiser.codewords.view(2, 3, 2)
    vectors = torch.cat([chosen[:, group] @ table[group] for group in range(2)], 1)
    codes, hidden = contrastive.project_codes(vectors), contrastive.project_hidden(output.hidden[-1][hit])
    total, right = 0.0, 0
    for i, others in enumerate(negatives.tolist()):
        same = [bool((chosen[j].argmax(-1) == chosen[i].argmax(-1)).all()) for j in others]
        kept = [i, *(j for j, equal in zip(others, same) if not equal)]
        likeness = torch.cosine_similarity(hidden[i][None], codes[kept], dim=-1) / 0.1
        total, right = total - likeness.log_softmax(0)[0], right + int(likeness.argmax() == 0)
    shares = scores.softmax(-1).mean(0)
    diversity = (6 - (-(shares * shares.log()).sum(-1)).exp().sum()) / 6
    losses, count = contrastive(output, None, batch()).terms, int(hit.sum())
    torch.testing.assert_close(losses["contrastive"].total, total)
    term_of, accuracy = losses["contrastive_diversity"], losses["contrastive_accuracy"]
    torch.testing.assert_close(term_of.weight * term_of.total / count, 0.1 * diversity)
    assert (int(accuracy.total), int(accuracy.count), int(losses["contrastive"].count)) == (right, count, count)
    likely = F.one_hot(scores.argmax(-1), 3).float().mean(0)
    used = sum(float((-(p[p > 0] * p[p > 0].log()).sum()).exp()) for p in likely)
    assert float(losses["contrastive_perplexity"].total) / count == pytest.approx(used, rel=1e-5)


def test_the_temperature_ends_at_its_least() -> None:
    contrastive, seen = term("contrastive"), []
    contrastive.quantiser.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    objective = Objective(
        Settings.model_validate({"contrastive": {"codewords": 3, "final_dim": 4}}), TermContext(MODEL)
    )
    objective["contrastive"] = contrastive
    for update in (0, 1, 10**6):
        objective.update_number = update
        objective(student(), None, batch())
    assert seen == [2.0, 2 * 0.999995, 0.5]


def test_negatives_are_all_other_masked_frames_of_the_utterance_alike() -> None:
    torch.manual_seed(0)
    hit = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]).bool()
    drawn = draw_negatives(hit, 3000)
    counts = torch.stack([row.bincount(minlength=6) for row in drawn])
    shares = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 2, 0, 0],
                           [0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 2, 0]]) / 2  # fmt: skip
    assert (counts / 3000 - shares).abs().max() < 0.03 and torch.equal(counts > 0, shares > 0)


def test_bestrq_predicts_the_nearest_codeword_of_stacked_normed_fbank() -> None:
    bestrq, output, content = term("bestrq"), student(), batch()
    total, frames, right = 0.0, 0, 0
    for b, length in enumerate(LENGTHS):
        mel = fbank(content.clean[b : b + 1, : HOP * length], content.samples[b : b + 1], 10)[0]
        mel = (mel - mel.mean(0)) / (mel.var(0, unbiased=False) + 1e-5).sqrt()
        for t in range(length):
            if output.masked[b, t]:
                for book in range(2):
                    projected = F.normalize(mel[2 * t : 2 * t + 2].flatten() @ bestrq.projections[book], dim=0)
                    target = int((F.normalize(bestrq.codebooks[book], dim=1) - projected).norm(dim=1).argmin())
                    scores = bestrq.output(output.hidden[-1][b, t])[7 * book : 7 * book + 7]
                    total, frames = total - scores.log_softmax(0)[target], frames + 1
                    right += int(scores.argmax() == target)
    losses = bestrq(output, None, content).terms
    torch.testing.assert_close(losses["bestrq"].total, total)
    assert int(losses["bestrq"].count) == frames == int(losses["bestrq_accuracy"].count)
    assert int(losses["bestrq_accuracy"].total) == right
    assert 1 < float(losses["bestrq_perplexity"].total) / frames <= 7


def test_codebooks_are_those_of_the_seed_and_are_not_trained() -> None:
    torch.manual_seed(5)
    one, other = term("bestrq"), BestRq(BestRqSettings(codebooks=2, codewords=7, dim=4, mels=10, seed=1), 2, DIM)
    assert torch.equal(one.codebooks, TERMS["bestrq"]().codebooks) and not torch.equal(one.codebooks, other.codebooks)
    assert [name for name, _ in one.named_parameters()] == ["output.weight", "output.bias"]
    assert {"projections", "codebooks"} < one.state_dict().keys()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("silent", [False, True])
def test_without_a_masked_frame_the_loss_is_0_and_its_gradient_finite(name: str, silent: bool) -> None:
    module, output = term(name), student(torch.zeros(3, FRAMES, dtype=torch.bool))
    if name == "hubert":
        module.settings = module.settings.model_copy(update={"unmasked_weight": 0.0})
    terms = module(output, None, batch(silent)).terms
    terms.pop(f"{name}_features", None)
    loss = loss_of(Losses(terms))
    assert loss.item() == 0
    loss.backward()
    for parameter in module.parameters():  # all of them, so that ranks agree on what is reduced
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("silent", [False, True])
def test_masks_beyond_the_end_of_short_utterances_are_not_counted(name: str, silent: bool) -> None:
    module = term(name)
    every = student(torch.ones(3, FRAMES, dtype=torch.bool))
    torch.manual_seed(3)
    losses = module(every, None, batch(silent))
    assert int(losses.terms[name].count) == sum(LENGTHS) * (2 if name == "bestrq" else 1)
    torch.manual_seed(3)
    valid = module(every._replace(masked=inside(every)), None, batch(silent))
    assert torch.equal(losses.terms[name].total, valid.terms[name].total)
    loss_of(losses).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())
    assert every.hidden[-1].grad[1, LENGTHS[1] :].abs().max() == 0


@pytest.mark.parametrize("name", TERMS)
def test_sums_of_two_ranks_are_those_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, output, content = term(name).eval(), student(), batch()
    sizes = (output.masked & inside(output)).sum(1).tolist()
    negatives = draw_negatives(output.masked & inside(output), 3)
    place = {1: (negatives[: sizes[0]]), 2: negatives[sizes[0] :] - sizes[0], 3: negatives}
    monkeypatch.setattr("distill.losses.contrastive.draw_negatives", lambda hit, _: place[len(hit)])
    whole = module(output, None, content).terms
    ranks = [module(*_with_none(part(output, content, rows))).terms for rows in ([0], [1, 2])]
    for key, expected in whole.items():
        if key.endswith(("_perplexity", "_diversity")):  # of each rank's own frames
            continue
        torch.testing.assert_close(sum(rank[key].total for rank in ranks), expected.total)
        assert int(sum(rank[key].count for rank in ranks)) == int(expected.count)


def _with_none(pair: tuple[Output, Batch]) -> tuple[Output, None, Batch]:
    return pair[0], None, pair[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hubert": {"block": 3}}, "hubert.block is 3, but the encoder has blocks 1 to 2"),
        ({"contrastive": {"groups": 3, "final_dim": 256}}, "3 groups do not divide final_dim 256"),
        ({"contrastive": {"codewords": 1}}, "codewords: must be 2 or more|greater than or equal to 2"),
        ({"bestrq": {"codewords": 1}}, "codewords: must be 2 or more|greater than or equal to 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        for term in Settings.model_validate(values).terms.values():
            term.check_model(MODEL)


def test_bestrq_refuses_frames_that_are_no_multiple_of_fbanks() -> None:
    front = MODEL.front_end.model_copy(update={"layers": ((6, 250, 250),)})
    with pytest.raises(ValueError, match=r"250 samples apart .* must be a multiple of 160"):
        BestRq.build(BestRqSettings(), TermContext(MODEL.model_copy(update={"front_end": front})))
