"""Pruned, factored and plain models of papers/002 have the share of parameters that they are compared at; DPHuBERT.

Its conformers start from each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from distill.config.decoding import OF_TRANSDUCER
from distill.config.experiment import Experiment
from distill.config.experiment_set import ExperimentSet
from distill.models.cost import parameters
from distill.models.pruning import with_widths
from distill.models.recogniser import build_model, without_values
from distill.models.transfer import copy_matching
from distill.recipe.experiment_set import SetRun
from tests.unit.config.test_paper_001 import CONF, load

KINDS = ("half", "lrf", "l0")
CONV = (360, 400, 410, 420, 420, 420, 430)
HEADS = (4, 5, 5, 5, 4, 4, 4, 4, 3, 3, 4, 4)
FFN = (360, 300, 280, 280, 284, 304, 324, 340, 360, 380, 380, 400)
"""Units of each layer of a HuBERT base that is pruned to a quarter; chosen, not the published ones."""


def trunk(experiment: Experiment) -> int:
    return parameters(experiment.model, 43)["trunk"]


@pytest.mark.parametrize("folder", ["", "mini/"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kd", ["", "_kd"])
def test_all_have_half_of_the_teachers_parameters(folder: str, kind: str, kd: str) -> None:
    experiment, whole = (Experiment.load(CONF / f"{folder}{name}.yaml") for name in (kind + kd, "hubert"))
    if kind == "l0":
        assert trunk(experiment) == trunk(whole) and experiment.objective.terms["sparsity"].target == 0.5  # type: ignore[attr-defined]
    else:
        assert trunk(experiment) / trunk(whole) == pytest.approx(0.5, abs=5e-3)
    terms = {"mmi"} | ({"outputs", "hidden"} if kd else set()) | ({"sparsity"} if kind == "l0" else set())
    assert experiment.objective.terms.keys() == terms and experiment.init == "hubert"
    assert (experiment.teacher.experiment if experiment.teacher else None) == ("teacher_hubert" if kd else None)
    assert experiment.data.train == ("labelled",)


def updates_of(name: str, made: Mapping[str, Experiment]) -> int:
    """Updates with transcripts of an experiment and those that it starts from, as far as the set trains them."""
    init = made[name].init
    before = updates_of(init, made) if init in made and made[init].objective.terms.keys() & {"mmi"} else 0
    return before + made[name].optim.updates


@pytest.mark.parametrize(("file", "updates"), [("paper-002", 800), ("paper-002-conformer", 950)])
def test_rows_that_are_compared_have_the_same_size_updates_and_mode(file: str, updates: int, tmp_path: Path) -> None:
    settings = ExperimentSet.read(CONF / f"sets/{file}.yaml")
    made = dict(SetRun(settings, CONF.parents[2], tmp_path).experiments)
    unpruned = "teacher_hubert" if file == "paper-002" else "conformer_rnnt"
    whole = trunk(made[unpruned])
    for label, name in settings.tables[0].rows.items():
        experiment = made[name]
        assert bool(experiment.model.streaming.chunk_frames) == name.endswith("_stream") == ("streaming" in label), name
        if label.startswith("unpruned"):
            assert trunk(experiment) == whole, name
            continue
        assert updates_of(name, made) == updates, name
        assert experiment.model.pruning is None
        if experiment.init_slim:  # its widths are those of the checkpoint
            gated = made[str(experiment.init)]
            assert experiment.init_sparsity == 0.5 and gated.model.pruning, name
        else:
            assert trunk(experiment) / whole == pytest.approx(0.5, abs=5e-3), name
        assert ({"outputs", "hidden"} <= experiment.objective.terms.keys()) == ("KD" in label), name
    ends = {first.endswith("_stream") == second.endswith("_stream") for first, second, *_ in settings.compared}
    assert ends == {True}


def test_the_set_has_transducers_and_lf_mmi_on_one_encoder(tmp_path: Path) -> None:
    """Every column's method is decoded wherever its output is trained."""
    settings = ExperimentSet.read(CONF / "sets/paper-002-conformer.yaml")
    made, table = SetRun(settings, CONF.parents[2], tmp_path).experiments, settings.tables[-1]
    for name in table.rows.values():
        experiment, plain = made[name], made[name.partition("_rnnt")[0]]
        assert experiment.model.encoder == plain.model.encoder, name
        trained = {True: experiment.transduces, False: experiment.recognises}
        expected = {method for method in table.methods.values() if trained[method in OF_TRANSDUCER]}
        assert {*experiment.decoding.methods} == expected, name
    for name in made:
        if name.startswith("conformer_"):
            assert made[name].decoding.methods == ("1best", "transducer_beam"), name


def test_dphubert_is_as_published() -> None:
    one, two = load("dphubert_1"), load("dphubert_2")
    term = one.objective.regression
    assert term and (term.groups, term.identity, term.cosine) == (((0,), (4, 8, 12)), True, "plain")
    assert one.objective.terms.keys() == {"regression", "sparsity"} and two.objective.terms.keys() == {"regression"}
    assert one.model.pruning and one.model.pruning.units == ("conv", "heads", "ffn")
    assert one.optim.lr * one.model.pruning.lr_scale == pytest.approx(0.02)
    assert [each.optim.updates * each.optim.phases[0] for each in (one, two)] == [15000, 5000]
    assert (two.init, two.init_slim, two.model.pruning) == ("dphubert_1", True, None)
    assert (one.optim.clip, one.optim.weight_decay, two.optim.lr, two.optim.updates) == (10, 0, 1e-4, 25000)
    for each in (one, two):
        assert (each.optim.betas, each.optim.eps) == ((0.9, 0.999), 1e-8), "torch's"
        encoder = each.model.encoder
        assert (encoder.dropout, encoder.attention_dropout, encoder.input_dropout, encoder.layer_drop) == (
            0.1, 0.1, 0.1, 0
        )  # fmt: skip
    assert trunk(one) == 94_371_712


@pytest.mark.parametrize("seed", [0, 1])
def test_gates_of_a_hubert_base_settle_on_the_published_count(seed: int) -> None:
    """Whatever the order of the units is in which training left them."""
    torch.manual_seed(seed)
    model = load("dphubert_1").model
    gates = without_values(model, 43).gates.to_empty(device="cpu")
    for gate in gates.each.values():
        torch.nn.init.normal_(gate.log_alpha, std=2.0)
        gate.shift = 0.0
    gates.settle(0.75)
    sparsity = gates.sparsity()
    assert sparsity is not None and sparsity.item() == pytest.approx(0.75, abs=5e-3)
    units = {name: int(gate.open.sum()) for name, gate in gates.each.items()}
    assert parameters(with_widths(model, units), 43)["trunk"] == pytest.approx(23.59e6, rel=5e-3)


def test_a_hubert_base_of_which_gates_leave_a_quarter_has_the_published_count() -> None:
    model = load("dphubert_1").model
    gates = without_values(model, 43).gates.to_empty(device="cpu").eval()
    widths = {f"conv{i}": width for i, width in enumerate(CONV)}
    for i, (heads, ffn_dim) in enumerate(zip(HEADS, FFN)):
        widths |= {f"block{i}_heads": heads, f"block{i}_ffn_dim": ffn_dim}
    for name, gate in gates.each.items():
        with torch.no_grad():
            gate.log_alpha.fill_(-20)[: widths[name]] = 20
    gates.draw()
    left = parameters(with_widths(model, widths), 43)["trunk"]
    assert left == pytest.approx(23.59e6, rel=5e-3)
    sparsity = gates.sparsity()
    assert sparsity is not None and sparsity.item() == pytest.approx(1 - left / 94_371_712, abs=1e-6)
    assert gates.greatest_sparsity() > 0.9


@pytest.mark.parametrize(
    ("name", "millions", "mini"),
    [("conformer", 74.07, 2.52), ("conformer_ft", 74.07, 2.52), ("conformer_sn", 18.96, 0.68)],
)
def test_conformers_have_their_sizes(name: str, millions: float, mini: float) -> None:
    found = [round(trunk(Experiment.load(CONF / f"{folder}{name}.yaml")) / 1e6, 2) for folder in ("", "mini/")]
    assert found == [millions, mini]


@pytest.mark.parametrize("folder", ["", "mini/"])
def test_each_conformer_starts_from_the_one_before_it(folder: str) -> None:
    one, tuned, sn, ss = (Experiment.load(CONF / f"{folder}conformer{end}.yaml") for end in ("", "_ft", "_sn", "_ss"))
    assert (one.stage, tuned.stage, sn.stage, ss.stage) == (5, 6, 8, 9)
    assert (tuned.init, sn.init, ss.init) == ("conformer", "conformer_ft", "conformer_sn")
    assert (one.model.encoder, one.model.front_end) == (tuned.model.encoder, tuned.model.front_end)
    assert ss.model == sn.model.model_copy(update={"streaming": ss.model.streaming})
    assert sn.teacher is not None and sn.teacher.experiment == "conformer_ft"
    assert sn.model.shared_head_dim == tuned.model.encoder.dim
    front = ss.model.front_end
    assert (front.input, front.mels, front.stride) == ("fbank", 80, 4), "the frames of sherpa-onnx's streams"


def test_leading_channels_of_a_conformer_can_be_taken_over() -> None:
    """Of its gates too, which are layers of their own."""
    names = "conformer_ft", "conformer_ss"
    teacher, student = (build_model(Experiment.load(CONF / f"mini/{name}.yaml").model, 43) for name in names)
    report = copy_matching(teacher.state_dict(), student, slices=["encoder.blocks"])
    assert "front_end.layers.0.conv.weight" in report.copied
    assert "encoder.blocks.0.convolution.gate.weight" in report.sliced
    ours, theirs = (model.encoder.blocks[0].convolution.gate.weight for model in (student, teacher))
    assert torch.equal(ours, theirs[:96, :96])


RNNT = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("**/*_rnnt*.yaml"))


@pytest.mark.parametrize("name", RNNT)
def test_transducers_learn_from_one_of_the_same_shape(name: str) -> None:
    experiment, folder = Experiment.load(CONF / f"{name}.yaml"), name.rpartition("/")[0]
    alone = "alone" in name
    assert experiment.transduces and experiment.recognises != alone
    assert ("mmi" in experiment.objective.terms) != alone and "transducer" in experiment.objective.terms
    assert ("1best" in experiment.decoding.methods) != alone and "transducer_beam" in experiment.decoding.methods
    if experiment.teacher is None:
        return
    teacher = Experiment.load(CONF / folder / f"{experiment.teacher.experiment}.yaml")
    experiment.objective.check_models(experiment.model, teacher.model)
    assert teacher.model.transducer == experiment.model.transducer and teacher.recognises
    assert "transducer_kl" in experiment.objective.terms
    before = Experiment.load(CONF / folder / f"{experiment.init}.yaml")
    assert before.model.encoder == experiment.model.encoder or experiment.stage == 8
    plain = "mini/sn" if folder else "s5"
    assert trunk(experiment) == pytest.approx(trunk(Experiment.load(CONF / f"{plain}.yaml")), rel=0.02)
