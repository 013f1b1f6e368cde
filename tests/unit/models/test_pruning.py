"""Slimmed models against those with gates that they come from; low rank against the best approximation."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from distill.config.experiment import Experiment
from distill.config.model import Model, Pruning
from distill.models import checkpoint
from distill.models.cost import parameters
from distill.models.low_rank import LowRank, factors, linear, rank_of_energy
from distill.models.macs import macs, trunk_macs
from distill.models.pruning import open_units, slimmed, with_widths
from distill.models.recogniser import Recogniser, count_parameters
from distill.models.transfer import copy_matching
from distill.recipe.stage import Stage, written_by_slim
from tests.support.models import MODELS, OUTPUTS, build
from tests.support.streams import assert_step_equals_forward
from tests.unit.models.test_gates import gated, plain_model
from tools.slim import main, show_ranks, write

ALL = ("conv", "heads", "ffn", "layers")
WAVE = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
SAMPLES = torch.tensor([9000, 6100])


def assert_same_outputs(one: Recogniser, other: Recogniser) -> None:
    """In double precision, so that norms of few channels do not enlarge rounding."""
    with torch.no_grad():
        ours, theirs = (copy.deepcopy(model).double().eval()(WAVE.double(), SAMPLES) for model in (one, other))
    assert torch.equal(ours.lengths, theirs.lengths)
    for left, right in zip((*ours.hidden, ours.logits), (*theirs.hidden, theirs.logits)):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def close(model: Recogniser, name: str) -> None:
    with torch.no_grad():
        model.gates.each[name].log_alpha.fill_(-20)


@pytest.mark.parametrize(
    "name",
    [
        "waveform",
        "gabor",
        "post-LN",
        "fbank",
        "teacher",
        "widths",
        "low rank",
        "pruned",
        "conformer",
        "low rank conformer",
    ],
)
def test_a_slimmed_model_gives_what_the_one_with_gates_gives(name: str) -> None:
    model = gated(name, ALL)
    slim = slimmed(model)
    assert_same_outputs(model, slim)
    assert not slim.gates.each and slim.settings.pruning is None
    assert count_parameters(slim) == parameters(Model.model_validate(slim.settings.model_dump()), slim.outputs)
    if slim.settings.streaming.chunk_frames:
        for each in (model, slim):
            assert_step_equals_forward(each, [9000, 2000], [700, 5000])


def test_blocks_that_take_maps_from_others_keep_their_heads() -> None:
    settings = gated("waveform", ("conv", "ffn")).settings
    sources = (0, *(1,) * (settings.encoder.layers - 1))
    encoder = settings.encoder.model_copy(update={"attention_of": sources})
    model = Recogniser(settings.model_copy(update={"encoder": encoder}), len(OUTPUTS)).eval()
    assert_same_outputs(model, slimmed(model))


@pytest.mark.parametrize("name", ["waveform", "fbank", "low rank", "conformer", "low rank conformer"])
@pytest.mark.parametrize("target", [0.2, 0.5])
def test_sparsity_in_evaluation_is_that_of_the_slimmed_model(name: str, target: float) -> None:
    """Of two factors, too, in whose place slimming takes their product where that is smaller."""
    model = gated(name, ("conv", "heads", "ffn"), spread=0.5)
    model.gates.settle(target)
    before, after = (count_parameters(each)["trunk"] for each in (plain_model(name), slimmed(model)))
    assert model.gates.sparsity().item() == pytest.approx(1 - after / before)


@pytest.mark.parametrize(
    "name", ["waveform", "fbank", "offline", "post-LN", "low rank", "conformer", "low rank conformer"]
)
def test_sparsity_of_macs_in_evaluation_is_that_of_the_slimmed_model(name: str) -> None:
    model = gated(name, ALL, of="macs")
    model.gates.settle(0.5 * model.gates.greatest_sparsity())
    left = trunk_macs(slimmed(model).settings) / trunk_macs(model.settings)
    assert model.gates.sparsity().item() == pytest.approx(1 - left)
    own = gated(name, ALL)
    assert own.gates.sizes == model.gates.sizes and own.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.6])
def test_gates_settle_on_a_sparsity_in_their_order(target: float) -> None:
    model = gated("waveform", ("conv", "heads", "ffn"))
    model.gates.settle(target)
    for gate in model.gates.each.values():
        factors = (1.2 * gate.log_alpha).sigmoid()
        closed = factors.sort().values[: int((~gate.open).sum())]
        torch.testing.assert_close(gate.factors, torch.where(torch.isin(factors, closed), 0.0, factors))
    slim, whole = slimmed(model), count_parameters(build(*MODELS["waveform"]))["trunk"]
    assert 1 - count_parameters(slim)["trunk"] / whole == pytest.approx(target, abs=2e-3)


@pytest.mark.parametrize("target", [0.0, 0.99, 75.0])
def test_gates_do_not_settle_on_what_is_out_of_reach(target: float) -> None:
    gates = gated("waveform", ("heads", "ffn")).gates
    reach = rf"\(heads, ffn\) closed .* is {gates.greatest_sparsity():.4f}; give a share"
    with pytest.raises(ValueError, match=rf"init_sparsity, --sparsity: {target} is not in reach: .*{reach}"):
        gates.settle(target)
    with pytest.raises(ValueError, match=r"is not in reach: the model has no gates; set model\.pruning"):
        build(*MODELS["waveform"]).gates.settle(0.5)
    encoder = {"layers": 1, "heads": [0], "head_dim": 8, "ffn_dim": [0]}
    empty = Recogniser(Model.model_validate({"encoder": encoder, "pruning": {"units": ["heads", "ffn"]}}), 2)
    with pytest.raises(ValueError, match=r"no gates; heads, ffn of model\.pruning\.units are closed already"):
        empty.gates.settle(0.5)


@pytest.mark.parametrize("name", ["waveform", "post-LN", "conformer"])
def test_a_layer_without_units_counts_as_gone(name: str) -> None:
    model = gated(name, ("heads", "ffn"), spread=0.1)
    close(model, "block0_heads")
    close(model, "block1_ffn_dim")
    model.gates.draw()
    before, after = (count_parameters(each)["trunk"] for each in (plain_model(name), slimmed(model)))
    assert model.gates.sparsity().item() == pytest.approx(1 - after / before)


def test_gates_follow_their_blocks() -> None:
    source, target = gated("waveform", ("heads", "ffn")), gated("waveform", ("heads", "ffn"), spread=0.1)
    report = copy_matching(source.state_dict(), target, blocks=[2, 1])
    for ours, theirs in ((0, 1), (1, 0)):
        for kind in ("heads", "ffn_dim"):
            mine, other = target.gates.each[f"block{ours}_{kind}"], source.gates.each[f"block{theirs}_{kind}"]
            assert torch.equal(mine.log_alpha, other.log_alpha)
    assert "gates.block0_heads.log_alpha <- gates.block1_heads.log_alpha" in report.copied


def test_factors_start_from_the_leading_part_of_a_larger_map() -> None:
    source, target = build(*MODELS["low rank"][:6], (48, 2, None)), low_rank(5)
    report = copy_matching(source.state_dict(), target, slices=["encoder.blocks"])
    ours = target.encoder.blocks[0].ffn_up
    down, up = factors(source.encoder.blocks[0].ffn_up.weight[: ours.out_features], 5)
    torch.testing.assert_close((ours.up.weight, ours.down.weight), (up, down))
    assert not report.absent and "encoder.blocks.0.ffn_up.up.weight" in report.refactored


@pytest.mark.parametrize("norm_first", ["waveform", "post-LN"])
def test_a_layer_without_an_open_unit_is_the_identity(norm_first: str) -> None:
    """Its bias goes too; the norm behind it (post-LN) stays, the one before it does not."""
    model = gated(norm_first, ("heads", "ffn"), spread=0.1)
    close(model, "block0_heads")
    close(model, "block1_ffn_dim")
    slim = slimmed(model)
    assert slim.settings.encoder.heads[0] == 0 and slim.settings.encoder.ffn_dim[1] == 0
    assert_same_outputs(model, slim)
    names = {name.split(".", 3)[3] for name, _ in slim.encoder.named_parameters("x") if ".blocks.0." in name}
    first = {name.split(".")[0] for name in names}
    assert first == {"ffn_up", "ffn_down", "ffn_norm"} | (set() if norm_first == "waveform" else {"attention_norm"})


@pytest.mark.parametrize("name", ["block0_heads_layer", "block1_ffn_dim_layer"])
def test_a_closed_layer_is_the_identity(name: str) -> None:
    model = gated("waveform", ("layers",), spread=0.1)
    close(model, name)
    width = name.split("_", 1)[1].removesuffix("_layer")
    slim = slimmed(model)
    assert 0 in getattr(slim.settings.encoder, width)
    assert_same_outputs(model, slim)


def test_a_model_can_be_pruned_to_nothing_but_its_norms_and_convolutions() -> None:
    model = gated("waveform", ALL)
    for name in model.gates.each:
        close(model, name)
    slim = slimmed(model)
    assert [layer[0] for layer in slim.settings.front_end.layers] == [1, 1, 1]
    assert slim.settings.encoder.heads == slim.settings.encoder.ffn_dim == (0, 0)
    assert_same_outputs(model, slim)
    assert macs(slim.settings, 5)["attention projections"] == 0


def test_widths_that_stay_equal_are_one_number() -> None:
    settings = build(*MODELS["waveform"]).settings
    same = with_widths(settings, {"block0_ffn_dim": 20, "block1_ffn_dim": 20, "conv2": 16})
    assert (same.encoder.ffn_dim, same.encoder.heads, same.encoder.head_dim) == (20, 2, None)
    assert same.encoder.always_project, "features have the encoder's width now, and are projected still"
    fewer = with_widths(settings, {"block0_heads": 1})
    assert (fewer.encoder.heads, fewer.encoder.head_dim) == ((1, 2), 8)


def test_a_slimmed_model_trains_on() -> None:
    slim = slimmed(gated("pruned", ALL)).train()
    slim(WAVE, SAMPLES).logits.square().mean().backward()
    assert [name for name, parameter in slim.named_parameters() if parameter.grad is None] == ["encoder.mask_embedding"]


def test_a_slimmed_model_can_be_pruned_again() -> None:
    once = slimmed(gated("waveform", ("ffn", "layers")))
    settings = once.settings.model_copy(update={"pruning": Pruning(units=ALL)})
    again = Recogniser(settings, once.outputs)
    again.load_state_dict(once.state_dict(), strict=False)
    assert open_units(again.eval()).keys() <= again.gates.units.keys()
    assert_same_outputs(again, slimmed(again))


def test_factors_are_the_best_approximation_of_their_rank() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5)
    down, up = factors(weight, 3)
    assert down.shape == (3, 5) and up.shape == (7, 3)
    values = torch.linalg.svdvals(weight)
    assert (weight - up @ down).square().sum().item() == pytest.approx(values[3:].square().sum().item(), rel=1e-4)
    torch.testing.assert_close(up.square().sum(0), down.square().sum(1), msg="half of the singular values each")
    total = values.square().sum()
    for energy in (0.3, 0.9, 1.0):
        rank = rank_of_energy([weight], energy)
        assert rank <= min(weight.shape)
        assert values[:rank].square().sum() >= (energy - 1e-6) * total
        assert rank == 1 or values[: rank - 1].square().sum() < energy * total


def test_one_rank_keeps_the_energy_of_all_maps() -> None:
    """Against the singular values of each, the first `rank` of which are kept."""
    torch.manual_seed(0)
    weights = [torch.randn(4, 9), 3 * torch.randn(12, 7), torch.randn(2, 2)]
    values = [torch.linalg.svdvals(weight).square() for weight in weights]
    total = sum(float(each.sum()) for each in values)
    kept = [sum(float(each[:rank].sum()) for each in values) / total for rank in range(8)]
    for energy in (0.2, 0.5, 0.8, 0.95):
        rank = rank_of_energy(weights, energy)
        assert kept[rank] >= energy > kept[rank - 1]
    assert rank_of_energy(weights, 1.0) == 7


def test_a_map_has_factors_only_where_they_are_smaller() -> None:
    assert isinstance(linear(8, 8, 3), LowRank) and isinstance(linear(8, 8, None), torch.nn.Linear)
    assert isinstance(linear(8, 8, 4), torch.nn.Linear) and isinstance(linear(8, 32, 6), LowRank)


def low_rank(rank: int | None) -> Recogniser:
    return build(*MODELS["low rank"][:7], rank=rank)


def test_a_factored_model_starts_from_the_singular_values_of_another() -> None:
    source, target = low_rank(None), low_rank(5)
    report = copy_matching(source.state_dict(), target, blocks=(2, 1))
    assert not report.absent and not report.unused and not report.other_shape
    for ours, theirs in ((0, 1), (1, 0)):
        one, other = target.encoder.blocks[ours].ffn_up, source.encoder.blocks[theirs].ffn_up
        down, up = factors(other.weight, 5)
        torch.testing.assert_close(one.up.weight @ one.down.weight, up @ down)
        assert torch.equal(one.up.bias, other.bias)
    assert "copied in other factors (singular values)\tencoder.blocks.0.ffn_up.up.weight" in "\n".join(report.lines())


def test_a_factored_model_gives_its_product_to_another() -> None:
    source, target = low_rank(5), low_rank(None)
    report = copy_matching(source.state_dict(), target)
    assert not report.absent and not report.unused
    assert_same_outputs(source, target)


def test_macs_and_parameters_of_low_rank() -> None:
    whole, factored = low_rank(None).settings, low_rank(5).settings
    saved = 2 * (4 * (16 * 16 - 5 * 32) + 2 * (16 * 32 - 5 * 48))
    assert parameters(whole, 3)["trunk"] - parameters(factored, 3)["trunk"] == saved
    rate = 16000 / whole.front_end.hop
    assert sum(macs(whole, 3).values()) - sum(macs(factored, 3).values()) == pytest.approx(rate * saved)


def test_the_tool_writes_a_smaller_experiment_and_shows_ranks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = gated("waveform", ("conv", "heads", "ffn"))
    values = {"name": "gated", "stage": 8, "model": model.settings.model_dump(mode="json"), "optim": {"updates": 1}}
    experiment = Experiment.parse({**values, "objective": {"mmi": {}, "sparsity": {}}}, "test")
    settings = {"experiment": experiment.resolved(), "units": OUTPUTS, "progress": {}}
    (tmp_path / "gated").mkdir()
    checkpoint.save(tmp_path / "gated/epoch-3.pt", {"model": model.state_dict(), "objective": {}, **settings})
    write(tmp_path / "gated", tmp_path / "slim")
    slim, stored, units, epoch = checkpoint.load_recogniser(tmp_path / "slim")
    assert (stored.name, units, epoch, stored.objective.terms.keys()) == ("slim", OUTPUTS, 3, {"mmi"})
    assert (stored.init, stored.init_slim) == ("gated", True) and written_by_slim(tmp_path / "slim")
    assert not written_by_slim(tmp_path / "gated")
    assert_same_outputs(model, slim)
    assert f"settings: {tmp_path}/slim/slim.yaml" in capsys.readouterr().out
    assert Experiment.load(tmp_path / "slim/slim.yaml") == stored and stored.model == slim.settings
    Stage(12, tmp_path / "slim/export", {}, {tmp_path / "slim": stored.stage}).check_inputs()
    with pytest.raises(ValueError, match="slim is there already; give another --out"):
        write(tmp_path / "gated", tmp_path / "slim")
    with pytest.raises(ValueError, match="must be a name"):
        write(tmp_path / "gated", tmp_path / "slim one")
    with pytest.raises(ValueError, match="must not be lm"):
        write(tmp_path / "gated", tmp_path / "lm")
    with pytest.raises(ValueError, match=r"slim has no gates \(model\.pruning\), so that nothing is cut off"):
        write(tmp_path / "slim", tmp_path / "slimmer")
    assert {path.name for path in tmp_path.iterdir()} == {"gated", "slim"}
    show_ranks(slim, 1.0)
    assert "rank: 16 would keep that share of all, and makes no map smaller" in capsys.readouterr().out
    show_ranks(slim, 0.4)
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 * slim.settings.encoder.layers and lines[0].startswith("0.attention.query\trank ")
    assert re.fullmatch(r"encoder\.rank: \d+ keeps that share of all; [\d,]+ -> [\d,]+ parameters .*", last)


@pytest.mark.parametrize("energy", ["0", "90", "-1", "nan"])
def test_the_energy_is_a_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, energy: str) -> None:
    monkeypatch.setattr("sys.argv", ["slim.py", "--exp-dir", "exp", f"--energy={energy}"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--energy: a share, such as 0.9, is needed" in capsys.readouterr().err
