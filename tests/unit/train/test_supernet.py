"""A supernet's updates train networks made of the leading parts of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.batch import Batch, Targets
from distill.config.experiment import Experiment
from distill.losses.objective import Objective
from distill.losses.term import TermContext
from distill.models import checkpoint
from distill.models.cost import parameters
from distill.models.recogniser import Recogniser
from distill.train.loop import TrainingStep
from distill.train.setup import training_step
from distill.train.supernet import SupernetStep, drawn_network, parts
from tests.support.training import SETTINGS
from tests.unit.train.test_teacher import trainer_of, write_teacher

SUPERNET = {"dim": [4, 8], "layers": [1, 2], "heads": [1, 2], "ffn_ratio": [1.5, 2]}
OBJECTIVE = {"regression": {"heads": "mean", "blocks": [1, 2], "cosine_weight": 0}}
CONF = Path(__file__).parents[3] / "egs/librispeech/conf"


def experiment(**changes) -> Experiment:
    values = {**SETTINGS, "stage": 8, "teacher": {"experiment": "t"}, "objective": OBJECTIVE, "supernet": SUPERNET}
    encoder = {**SETTINGS["model"]["encoder"], "dropout": 0.0, "always_project": True}
    encoder |= changes.pop("encoder", {})
    return Experiment.parse({**values, "model": {**SETTINGS["model"], "encoder": encoder}, **changes}, "test")


@pytest.fixture
def step() -> SupernetStep:
    settings = experiment()
    torch.manual_seed(0)
    made = training_step(settings, Recogniser(settings.model, 3), TermContext(settings.model, settings.model))
    assert isinstance(made, SupernetStep)
    return made


def data(step: TrainingStep) -> tuple[Batch, Targets]:
    batch = Batch(("a", "b"), torch.randn(2, 4000), torch.tensor([4000, 2800]))
    output = step.model(batch.wave, batch.samples)
    hidden = {block: torch.randn_like(output.hidden[block]) for block in (1, 2)}
    return batch, Targets(output.logits.detach(), hidden, output.lengths)


def test_an_update_is_that_of_a_network_cut_out(step: SupernetStep) -> None:
    """Loss and gradients are those of a model of its own that has the parts as weights; the rest gets none."""
    batch, targets = data(step)
    for seed in range(3):
        step.model.encoder.draws = torch.Generator().manual_seed(seed)
        ours = step.train()(batch, targets).terms["regression" + str(network_of(step, seed).encoder.layers) + "_mean"]
        step.zero_grad()
        ours.total.backward()
        shape = network_of(step, seed)
        settings = experiment()
        objective = Objective(settings.objective, TermContext(shape, settings.model))
        alone = TrainingStep(Recogniser(shape, 3), objective).train()
        alone.load_state_dict({name: x.detach() for name, x in parts(step, alone).items()})
        (theirs,) = alone(batch, targets).terms.values()
        torch.testing.assert_close(ours.total, theirs.total)
        theirs.total.backward()
        gradients = {name: x.grad for name, x in alone.named_parameters() if x.grad is not None}
        for name, x in step.named_parameters():
            expected = torch.zeros_like(x)
            if name in gradients:
                expected[tuple(map(slice, gradients[name].shape))] = gradients[name]
            torch.testing.assert_close(x.grad if x.grad is not None else torch.zeros_like(x), expected)


def network_of(step: SupernetStep, seed: int):
    return drawn_network(step.model.settings, step.settings, torch.Generator().manual_seed(seed))


def test_networks_are_drawn_from_all_that_the_settings_name(step: SupernetStep) -> None:
    drawn = [network_of(step, seed).encoder for seed in range(60)]
    assert {(each.dim, each.layers) for each in drawn} == {(4, 1), (4, 2), (8, 1), (8, 2)}
    blocks = {(each.dim, *each.widths(block)[:3]) for each in drawn for block in range(each.layers)}
    assert blocks == {
        (dim, ffn, heads, 4) for dim, ratios in ((4, (6, 8)), (8, (12, 16))) for ffn in ratios for heads in (1, 2)
    }


def test_validation_is_of_the_whole_model(step: SupernetStep) -> None:
    batch, targets = data(step.eval())
    plain = TrainingStep(step.model, step.objective).eval()
    assert torch.equal(*(each(batch, targets).terms["regression2_mean"].total for each in (step, plain)))


def test_a_training_saves_the_whole_model(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    data = {"max_duration": 1.5, "workers": 0}
    trainer = trainer_of(experiment(name="s", data=data, optim={"updates": 2, "lr": 0.01}), tmp_path)
    before = {name: x.clone() for name, x in trainer.step.model.state_dict().items()}
    assert isinstance(trainer.step, SupernetStep) and trainer.run()["updates"] == 2
    model, settings, _, _ = checkpoint.load_recogniser(tmp_path / "s")
    assert settings.supernet == experiment().supernet and model.settings == experiment().model
    changed = [name for name, x in model.state_dict().items() if not torch.equal(x, before[name])]
    assert any(name.startswith("encoder.blocks.0.") for name in changed)


def test_the_published_space_has_the_published_network() -> None:
    """LightHuBERT small is 27 M; its YAML takes it out of the second stage's supernet."""
    whole, small = (Experiment.load(CONF / f"lighthubert{name}.yaml") for name in ("2", "_ft"))
    encoder, space = small.model.encoder, whole.supernet
    assert space is not None and small.init == "lighthubert2" and "encoder." in small.init_slice
    assert encoder.dim in space.dim and encoder.layers in space.layers and encoder.heads in space.heads
    assert encoder.ffn_dim / encoder.dim in space.ffn_ratio
    assert encoder.widths().head_dim == whole.model.encoder.widths().head_dim == 64
    assert round(parameters(small.model, 43)["trunk"] / 1e6) == 27


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supernet": {**SUPERNET, "dim": [16]}}, r"supernet\.dim: its networks have up to 16, and the model.* 8"),
        ({"supernet": {**SUPERNET, "layers": [3]}}, r"supernet\.layers: .* up to 3, .* give model\.encoder\.layers"),
        ({"supernet": {**SUPERNET, "ffn_ratio": [4]}}, r"supernet\.ffn_ratio: .* up to 32, .* model\.encoder\.ffn_dim"),
        ({"supernet": {**SUPERNET, "dim": [5]}}, "must be multiples of position_groups 2"),
        ({"encoder": {"always_project": False}}, r"has 8 channels.* set model\.encoder\.always_project: true"),
        ({"encoder": {"relative_buckets": 8}}, "need the same heads in all blocks"),
        ({"encoder": {"rank": 4}}, r"parts of two factors \(encoder\.rank\) are no factors of a part"),
        ({"objective": {"temporal": {}}}, "the objective must be regression from the last block"),
        (
            {"objective": {"regression": {"heads": "layers"}}},
            "the objective must be regression from the last block",
        ),
        ({"compute": {"checkpoint_activations": True}}, "are of one network, and must be false"),
    ],
)
def test_what_is_no_supernet_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)
