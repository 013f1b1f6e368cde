"""The distortion classifier of papers/003 against two objectives trained in turn, and the denoising head."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.batch import Batch, Output
from distill.config.experiment import Experiment
from distill.config.losses import Objective as Settings
from distill.config.model import Model
from distill.config.training import Optim
from distill.fbank import fbank
from distill.losses.adversary import Adversary
from distill.losses.objective import Objective
from distill.losses.term import Losses, TermContext
from distill.models.recogniser import Recogniser, build_model
from distill.train.loop import TrainingStep
from distill.train.optimiser import build_optimiser, clipped_together
from tests.support.training import SETTINGS

DIM, LABELS, LENGTHS = 6, 4, torch.tensor([9, 5])
MODEL = Model.model_validate(
    {"front_end": {"layers": [[4, 320, 320]]}, "encoder": {"dim": DIM, "layers": 1, "heads": 2, "position_groups": 2}}
)


def made(objective: dict) -> tuple[Objective, Output, Batch]:
    """An objective, random outputs of a student, and a batch with labels and clean audio."""
    torch.manual_seed(0)
    terms = Objective(Settings.model_validate(objective), TermContext(MODEL, distortions=LABELS))
    hidden = tuple(torch.randn(2, 9, DIM, requires_grad=True) for _ in range(2))
    samples = 320 * LENGTHS
    clean = torch.randn(2, 9 * 320) * (torch.arange(9 * 320) < samples[:, None])
    batch = Batch(("a", "b"), torch.zeros_like(clean), samples, clean=clean)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    return terms, Output(torch.empty(2, 9, 3), LENGTHS, hidden), replace(batch, distortions=labels)


def value(losses: Losses) -> Tensor:
    weighted = (term.weight * term.total / term.count for term in losses.terms.values())
    return sum(weighted, start=torch.zeros(()))


def test_each_distortion_is_classified_from_the_mean_of_the_valid_states() -> None:
    terms, student, batch = made({"adversary": {"weight": 2.0}})
    classifier, expected = terms["adversary"].classifier, []
    for row, length, labels in zip(student.hidden[-1].detach(), LENGTHS.tolist(), batch.distortions):
        for logit, label in zip(classifier(row[:length].mean(0)).tolist(), labels.tolist()):
            expected.append(math.log1p(math.exp(-logit if label else logit)))
    losses = terms(student, None, batch)
    assert value(losses).item() == pytest.approx(2 * sum(expected) / len(expected), rel=1e-5)
    terms.eval()
    assert value(terms(student, None, batch)).item() == 0, "not of the loss by which checkpoints are chosen"


def test_the_figure_is_the_share_of_utterances_with_every_label_right() -> None:
    terms, student, batch = made({"adversary": {}})
    with torch.no_grad():
        terms["adversary"].classifier.weight.zero_()
        terms["adversary"].classifier.bias.copy_(torch.tensor([1.0, -1, 1, -1]))
    figure = terms(student, None, batch).terms["adversary_accuracy"]
    assert (figure.total / figure.count, figure.weight) == (0.5, 0.0)


@pytest.mark.parametrize("objective", [{"adversary": {}}, {"denoising": {"mels": 20}}], ids=str)
def test_padding_does_not_count(objective: dict) -> None:
    terms, student, batch = made(objective)
    before = value(terms(student, None, batch))
    hidden = student.hidden[-1].detach().index_put((torch.tensor(1), torch.arange(5, 9)), torch.tensor(torch.nan))
    longer = torch.nn.functional.pad(hidden, (0, 0, 0, 3), value=torch.nan)
    other = student._replace(hidden=(hidden, longer), logits=torch.empty(2, 12, 3))
    clean = torch.nn.functional.pad(batch.clean, (0, 3 * 320))
    torch.testing.assert_close(value(terms(other, None, replace(batch, clean=clean))), before)


@pytest.mark.parametrize("reversal", [0.0, 0.3])
def test_gradients_are_those_of_the_two_equations(reversal: float) -> None:
    """The classifier's of L_D (Eq. 3), the student's of - lambda L_D (Eq. 4)."""
    terms, student, batch = made({"adversary": {"reversal": reversal}})
    module, hidden = terms["adversary"], student.hidden[-1]
    logits = torch.stack([module.classifier(row[:n].mean(0)) for row, n in zip(hidden, LENGTHS)])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.distortions)
    theta_d, theta_s = torch.autograd.grad(plain, [module.classifier.weight, hidden])
    ours = torch.autograd.grad(value(terms(student, None, batch)), [module.classifier.weight, hidden])
    torch.testing.assert_close(ours, (theta_d, -reversal * theta_s))


def test_one_update_of_both_is_a_step_of_each_by_its_own_objective() -> None:
    """Each by an objective of its own; the classifier's states are those before the student's step."""

    def student_states(weights: Tensor, x: Tensor) -> Tensor:
        return (x @ weights).tanh()

    draws, rate, reversal = torch.Generator().manual_seed(1), 0.1, 0.5
    batches = [
        (torch.randn(2, 9, 3, generator=draws), torch.randint(2, (2, LABELS), generator=draws)) for _ in range(5)
    ]
    results = []
    for in_turn in (True, False):
        torch.manual_seed(0)
        module, theta_s = Adversary(DIM, LABELS, reversal, 1.0), torch.randn(3, DIM, requires_grad=True)
        theta_d = list(module.parameters())
        for x, labels in batches:
            batch = Batch(("a", "b"), x, LENGTHS, distortions=labels.float())
            hidden = student_states(theta_s, x)
            distil = hidden.square().mean()
            if in_turn:
                logits = torch.stack([module.classifier(row[:n].mean(0)) for row, n in zip(hidden, LENGTHS)])
                adversarial = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
                (up,) = torch.autograd.grad(distil - reversal * adversarial, [theta_s], retain_graph=True)
                down = torch.autograd.grad(adversarial, theta_d)
            else:
                losses = module(Output(torch.empty(2, 9, 3), LENGTHS, (hidden,)), None, batch)
                up, *down = torch.autograd.grad(distil + value(losses), [theta_s, *theta_d])
            with torch.no_grad():
                for parameter, gradient in zip([theta_s, *theta_d], [up, *down]):
                    parameter -= rate * gradient
        results.append([theta_s.detach(), *(p.detach() for p in theta_d)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_the_classifiers_gradient_is_clipped_by_its_own_norm(clip: float) -> None:
    """A student that nothing is passed back to is the one without the term, as with another optimiser."""
    torch.manual_seed(0)
    wave, samples = torch.randn(2, 4000), torch.tensor([4000, 3000])
    batch = Batch(("a", "b"), wave, samples, clean=wave, distortions=torch.ones(2, LABELS))
    norms, gradients, first = [], [], None
    for adversary in ({"reversal": 0.0}, None):
        terms = Settings.model_validate({"denoising": {}, "adversary": adversary})
        step = TrainingStep(build_model(MODEL, 3), Objective(terms, TermContext(MODEL, distortions=LABELS)))
        optimiser = build_optimiser(step, Optim(updates=1), torch.device("cpu"))
        step.load_state_dict(first or step.state_dict(), strict=False)
        first = step.state_dict()
        torch.manual_seed(1)
        value(step(batch, None)).backward()
        norms.append([float(torch.nn.utils.clip_grad_norm_(each, clip)) for each in clipped_together(optimiser)])
        gradients.append([p.grad for p in step.model.parameters() if p.grad is not None])
    (own, classifiers), (alone,) = norms
    assert own == pytest.approx(alone) and classifiers > 0
    torch.testing.assert_close(*gradients)


def test_the_classifier_has_a_learning_rate_of_its_own() -> None:
    objective = Settings.model_validate({"denoising": {}, "adversary": {"lr_scale": 0.1}})
    step = TrainingStep(Recogniser(MODEL, 3), Objective(objective, TermContext(MODEL, distortions=LABELS)))
    groups = build_optimiser(step, Optim(updates=1), torch.device("cpu")).param_groups
    assert [group["lr_scale"] for group in groups] == [1.0, 0.1]
    assert [p.shape for p in groups[1]["params"]] == [(LABELS, DIM), (LABELS,)]


def test_clean_energies_are_predicted_from_the_last_states() -> None:
    """Of two Fbank frames to a frame, each energy with mean 0 and variance 1 over its utterance."""
    terms, student, batch = made({"denoising": {"mels": 20}})
    errors = []
    for row, length, wave in zip(student.hidden[-1], LENGTHS.tolist(), batch.clean):
        x = fbank(wave[None, : 320 * length], torch.tensor([320 * length]), 20)[0]
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        for frame in range(length):
            target = torch.cat([x[2 * frame], x[2 * frame + 1]])
            errors.append((terms["denoising"].prediction(row[frame]) - target).abs().mean())
    expected = torch.stack(errors).mean()
    ours = value(terms(student, None, batch))
    torch.testing.assert_close(ours, expected)
    wanted = [student.hidden[-1], *terms.parameters()]
    torch.testing.assert_close(torch.autograd.grad(ours, wanted), torch.autograd.grad(expected, wanted))


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="adversary are of distortions, but 'distort' is not set"):
        Experiment.parse({**SETTINGS, "objective": {"adversary": {}}}, "toy")
    odd = Model.model_validate({"front_end": {"layers": [[4, 200, 200]]}})
    with pytest.raises(ValueError, match=r"objective\.denoising: frames are 200 samples apart"):
        Objective(Settings.model_validate({"denoising": {}}), TermContext(odd))
