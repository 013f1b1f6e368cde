"""The loop on a toy task: it learns, survives being killed, counts over ranks, and stops on NaN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.batch import BEGIN, Batch, Place, Targets
from distill.config.experiment import Experiment
from distill.config.training import Teacher
from distill.fsa.graph import Fsa
from distill.graphs import topology
from distill.losses.objective import Objective
from distill.losses.term import TermContext
from distill.models import checkpoint
from distill.models.codes import CentroidCodes, CodeHead
from distill.models.recogniser import build_model, count_parameters, without_values
from distill.models.transfer import copy_matching
from distill.train.distributed import Ranks
from distill.train.loop import Trainer, TrainingPlan, TrainingStep
from distill.train.teacher import TeacherTargets

UNITS = ["<blk>", "A", "B"]
SETTINGS = {
    "name": "toy",
    "stage": 6,
    "model": {
        "front_end": {"layers": [[8, 40, 20], [8, 8, 4]], "norm": "frame", "causal": True, "waveform": "gain"},
        "encoder": {
            "dim": 8, "ffn_dim": 16, "layers": 2, "heads": 2, "position_kernel": 3, "position_groups": 2,
            "norm_first": True, "dropout": 0.1,
        },
    },
    "objective": {"alpha": 1, "beta": 1},
    "optim": {"updates": 12, "lr": 0.02},
    "saving": {"every_updates": 5},
}  # fmt: skip


def tone_batches(epoch: int, place: Place = BEGIN) -> Iterator[Batch]:
    """Two tones, one unit each: eight batches an epoch."""
    generator = torch.Generator().manual_seed(epoch)
    for index in range(8):
        first = torch.rand((), generator=generator) < 0.5
        wave = torch.stack([tone(220 if first else 900), tone(900 if first else 220)])
        if index >= place.batch:
            units = (1, 2) if first else (2, 1)
            graphs = [topology.ctc(Fsa.from_arcs([(0, 1, u, -1.1)], {1: -1.1}, 2)) for u in units]
            ids = f"{epoch}-{index}-a", f"{epoch}-{index}-b"
            yield Batch(ids, wave, torch.tensor([1600, 1600]), graphs, after=Place(0, index + 1))


def tone(hertz: float) -> torch.Tensor:
    return torch.sin(torch.arange(1600) / 16000 * 2 * torch.pi * hertz)


def denominator():
    return topology.ctc(Fsa.from_arcs([(0, 0, 1, -1.1), (0, 0, 2, -1.1)], {0: -1.1}, 1))


def trainer(folder: Path, batches=tone_batches, **changes) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment.parse({**SETTINGS, **changes}, "test")
    torch.manual_seed(experiment.seed)
    model = build_model(experiment.model, len(UNITS))
    objective = Objective(experiment.objective, TermContext(experiment.model, None, "native", denominator()))
    plan = TrainingPlan(
        experiment, batches, lambda: batches(99), experiment.optim.updates, UNITS, count_parameters(model), folder,
        Ranks(), torch.device("cpu"),
    )  # fmt: skip
    return Trainer(plan, TrainingStep(model, objective))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_recogniser(folder)[0].state_dict()


def test_it_learns_and_describes_itself(tmp_path: Path) -> None:
    long = {"updates": 40, "lr": 0.02}
    result = trainer(tmp_path, optim=long).run()
    assert result["valid_loss"] < 0.5 * first_loss()
    assert result["updates"] == 40 and result["without_path"] == 0
    assert result["audio_hours"] == pytest.approx(40 * 2 * 0.1 / 3600, abs=1e-3)
    model, experiment, units, epoch = checkpoint.load_recogniser(tmp_path, avg=2)
    assert units == UNITS and epoch == 5 and experiment.optim.updates == 40 and not model.training


def first_loss() -> float:
    step = trainer(Path("/tmp"), optim={"updates": 1}).step.eval()
    batch = next(tone_batches(99))
    term = step(batch, None).terms["mmi"]
    return float(5 * term.total.detach() / term.count)


def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()

    def dying(epoch: int, place: Place = BEGIN) -> Iterator[Batch]:
        for index, batch in enumerate(tone_batches(epoch, place)):
            if epoch == 0 and index == 6:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", dying).run()
    assert not checkpoint.epoch_paths(tmp_path / "killed")
    trainer(tmp_path / "killed").run()
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, value in whole.items():
        torch.testing.assert_close(continued[name], value, rtol=0, atol=0)


def test_accumulated_batches_give_the_mean_of_their_gradients(tmp_path: Path) -> None:
    def fresh(name: str) -> Trainer:
        made = trainer(tmp_path / name, optim={"updates": 1, "clip": 1e9})
        for module in made.step.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return made

    batches = list(tone_batches(0))[:2]
    both, singles = fresh("both"), [fresh("one"), fresh("two")]
    both._update(batches, 0.0)
    for single, batch in zip(singles, batches):
        single._update([batch], 0.0)
    for together, one, two in zip(both.clipped[0], singles[0].clipped[0], singles[1].clipped[0]):
        torch.testing.assert_close(together.grad, (one.grad + two.grad) / 2)


def test_utterances_without_a_path_are_listed_once(tmp_path: Path) -> None:
    def short(epoch: int, place: Place = BEGIN) -> Iterator[Batch]:
        many = topology.ctc(Fsa.from_arcs([(n, n + 1, 1, 0.0) for n in range(99)], {99: 0.0}, 100))
        for batch in tone_batches(epoch, place):
            yield Batch(("short", batch.ids[1]), batch.wave, batch.samples, [many, batch.graphs[1]], after=batch.after)

    result = trainer(tmp_path, short, optim={"updates": 12, "lr": 0.02}).run()
    assert (result["without_path"], result["left_out"]) == (12, 1)
    assert (tmp_path / "skipped.tsv").read_text().startswith("short\tno path: ")


def test_an_update_without_an_utterance_leaves_the_weights_alone(tmp_path: Path) -> None:
    def lost(epoch: int, place: Place = BEGIN) -> Iterator[Batch]:
        for batch in tone_batches(epoch, place):
            odd = epoch < 99 and batch.after.batch % 2
            yield replace(batch, ids=() if odd else batch.ids)

    made = trainer(tmp_path, lost, optim={"updates": 8, "lr": 0.02})
    losses, update = [], made._update

    def noting(group: Sequence[Batch], rate: float) -> dict[str, float]:
        before = [x.detach().clone() for x in made.clipped[0]]
        values = update(group, rate)
        moved = any(not torch.equal(x, y) for x, y in zip(before, made.clipped[0], strict=True))
        assert moved == bool(group[0].ids) == bool(values)
        losses.extend([values["loss"]] if values else [])
        return values

    made._update = noting  # type: ignore[method-assign]
    result = made.run()
    assert result["updates"] == 8 and len(losses) == 4
    assert result["train_loss"] == pytest.approx(sum(losses) / 4)


def test_an_epoch_without_an_utterance_is_an_error(tmp_path: Path) -> None:
    def lost(epoch: int, place: Place = BEGIN) -> Iterator[Batch]:
        return (replace(batch, ids=()) for batch in tone_batches(epoch, place))

    with pytest.raises(ValueError, match=r"toy: nothing counted in the loss of any batch of epoch 1: 0 utterances"):
        trainer(tmp_path, lost).run()


def test_nan_stops_with_step_cuts_and_term(tmp_path: Path) -> None:
    def broken(epoch: int, place: Place = BEGIN) -> Iterator[Batch]:
        for index, batch in enumerate(tone_batches(epoch, place)):
            yield Batch(batch.ids, batch.wave * (torch.inf if index == 2 else 1), batch.samples, batch.graphs)

    with pytest.raises((FloatingPointError, ValueError), match=r"0-2-a|NaN"):
        trainer(tmp_path, broken).run()


def test_checkpoints_refuse_what_they_are_not(tmp_path: Path) -> None:
    path = tmp_path / "epoch-1.pt"
    with pytest.raises(FileNotFoundError, match=r"no epoch-N\.pt"):
        checkpoint.load_recogniser(tmp_path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"epoch-1\.pt: unreadable checkpoint"):
        checkpoint.load_recogniser(tmp_path)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        checkpoint.load_recogniser(tmp_path)
    torch.save(Path, path)  # a pickle that names a class: never executed
    with pytest.raises(ValueError, match="unreadable checkpoint"):
        checkpoint.load(path)


def test_copying_is_by_name_and_shape_and_reported() -> None:
    experiment = Experiment.parse(SETTINGS, "test")
    big = build_model(experiment.model, 3, seed=1)
    encoder = experiment.model.encoder.model_copy(update={"dim": 4, "position_groups": 2})
    small = build_model(experiment.model.model_copy(update={"encoder": encoder}), 3, seed=2)
    report = copy_matching(big.state_dict(), small)
    assert "front_end.layers.0.conv.weight" in report.copied
    assert "encoder.blocks.0.ffn_up.weight" in report.other_shape
    assert report.absent == ("encoder.projection.weight", "encoder.projection.bias") and not report.unused
    assert not report.sliced
    torch.testing.assert_close(small.front_end.layers[0].conv.weight, big.front_end.layers[0].conv.weight)
    with pytest.raises(ValueError, match="another family"):
        copy_matching({"x": torch.zeros(1)}, small)


def test_blocks_are_copied_by_number_and_named_tensors_sliced() -> None:
    experiment = Experiment.parse(SETTINGS, "test")
    big = build_model(experiment.model, 3, seed=1).state_dict()
    front = experiment.model.front_end.model_copy(update={"layers": ((4, 40, 20), (8, 8, 4))})
    encoder = experiment.model.encoder.model_copy(update={"layers": 1})
    small = build_model(experiment.model.model_copy(update={"front_end": front, "encoder": encoder}), 3, seed=2)
    drawn = {name: value.clone() for name, value in small.state_dict().items()}
    report = copy_matching(big, small, blocks=(2,), slices=("front_end.layers.1.conv",))
    assert report.sliced == ("front_end.layers.1.conv.weight",)
    assert "front_end.layers.0.conv.weight" in report.other_shape
    assert "encoder.blocks.0.ffn_up.weight <- encoder.blocks.1.ffn_up.weight" in report.copied
    assert "encoder.blocks.0.ffn_up.weight" in report.unused
    lines = report.lines()
    assert all(any(line.split("\t")[1].split(" <- ")[0] == name for line in lines) for name in drawn)
    now = small.state_dict()
    assert torch.equal(now["front_end.layers.1.conv.weight"], big["front_end.layers.1.conv.weight"][:, :4])
    assert torch.equal(now["encoder.blocks.0.ffn_up.weight"], big["encoder.blocks.1.ffn_up.weight"])
    assert torch.equal(now["front_end.layers.0.conv.weight"], drawn["front_end.layers.0.conv.weight"])
    with pytest.raises(ValueError, match=r"blocks \[3\], but the source has blocks 1\.\.2"):
        copy_matching(big, small, blocks=(3,))


def test_s5_takes_from_t1_what_the_paper_shares() -> None:
    """papers/001 §5.2: the convolutions without the first two, and the prediction layer."""
    conf = Path(__file__).parents[3] / "egs" / "librispeech" / "conf"
    teacher, student = Experiment.load(conf / "teacher.yaml"), Experiment.load(conf / "s5.yaml")
    large, small = without_values(teacher.model, 43), without_values(student.model, 43)
    report = copy_matching(large.state_dict(), small, student.init_blocks, student.init_slice)
    convolutions = {f"front_end.layers.{n}.{part}" for n in (3, 4, 5, 6) for part in ("conv.weight", "conv.bias")}
    norms = {f"front_end.layers.{n}.norm.{part}" for n in (2, 3, 4, 5, 6) for part in ("weight", "bias")}
    others = {"front_end.gain", "front_end.layers.2.conv.bias", "head.output.weight", "head.output.bias"}
    features = {"encoder.feature_norm.weight", "encoder.feature_norm.bias"}
    assert set(report.copied) == convolutions | norms | others | features
    assert report.sliced == ("front_end.layers.2.conv.weight",)
    new = {name for name in report.other_shape if name.startswith("front_end")}
    assert new == {
        f"front_end.layers.{n}.{p}.{q}" for n in (0, 1) for p in ("conv", "norm") for q in ("weight", "bias")
    }
    assert "encoder.positions.conv.parametrizations.weight.original0" in report.other_shape, "no scale without kernel"
    assert set(report.absent) == {"head.shared_projection.weight"}
    assert len([name for name in report.unused if ".blocks." in name]) == 14 * 16, "blocks 11 to 24"


def test_what_means_something_else_in_the_source_is_left() -> None:
    experiment = Experiment.parse(SETTINGS, "test")
    source, target = build_model(experiment.model, 3, seed=1), build_model(experiment.model, 3, seed=2)
    before = target.front_end.layers[0].norm.weight.clone()
    with torch.no_grad():
        source.front_end.layers[0].norm.weight.fill_(7)
    report = copy_matching(source.state_dict(), target, leave=("front_end.",))
    assert torch.equal(target.front_end.layers[0].norm.weight, before)
    assert "front_end.layers.0.norm.weight" in report.absent and "front_end.layers.0.norm.weight" in report.unused


def test_kept_targets_equal_fresh_ones(tmp_path: Path) -> None:
    experiment = Experiment.parse(SETTINGS, "test")
    model = build_model(experiment.model, 3).train()
    settings = {"experiment": "t", "input": "clean"}
    further = {"normed": True, "codes": CodeHead(8, 4, 5), "attention": [1]}
    fresh = TeacherTargets(Teacher(**settings), model, [2], tmp_path, **further)

    def kept(batch: Batch) -> Targets:
        return TeacherTargets(Teacher(**settings, keep_targets=True), model, [2], tmp_path, **further)(batch)

    batch = next(tone_batches(0))
    batch = Batch(batch.ids, batch.wave * 0.3, torch.tensor([1600, 900]), batch.graphs, batch.wave)
    expected = fresh(batch)
    for targets in (kept(batch), kept(batch)):
        assert targets.lengths.tolist() == expected.lengths.tolist()
        for b, n in enumerate(expected.lengths.tolist()):
            torch.testing.assert_close(targets.logits[b, :n], expected.logits[b, :n], atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(targets.hidden[2][b, :n], expected.hidden[2][b, :n], atol=5e-3, rtol=5e-3)
            torch.testing.assert_close(targets.normed[b, :n], expected.normed[b, :n], atol=5e-3, rtol=5e-3)
            torch.testing.assert_close(targets.codes[b, :n], expected.codes[b, :n], atol=2e-2, rtol=5e-3)
            torch.testing.assert_close(targets.attention[1][b, :n], expected.attention[1][b, :n], atol=5e-3, rtol=5e-3)
    output = model(batch.clean, batch.samples)
    assert torch.equal(expected.normed, output.normed)
    assert torch.equal(expected.codes, further["codes"](output.hidden[-1]))
    with pytest.raises(ValueError, match="input: clean"):
        fresh(next(tone_batches(0)))


def test_stored_targets_are_those_of_a_teacher_and_a_waveform(tmp_path: Path) -> None:
    experiment = Experiment.parse(SETTINGS, "test")
    settings = Teacher(experiment="t", input="clean", keep_targets=True)
    models = [build_model(experiment.model, 3, seed=seed) for seed in (1, 2)]
    batch = next(tone_batches(0))
    batch = Batch(batch.ids, batch.wave, batch.samples, batch.graphs, batch.wave)
    louder = Batch(batch.ids, batch.wave, batch.samples, batch.graphs, 2 * batch.wave)

    def logits(model: int, batch: Batch, *blocks: int, **further) -> torch.Tensor:
        return TeacherTargets(settings, models[model], blocks or [2], tmp_path, **further)(batch).logits

    first = logits(0, batch)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == len(batch.ids)
    models[0].forward = None  # type: ignore[assignment]
    assert torch.equal(logits(0, batch), first), "read, not computed"
    codes = CentroidCodes(torch.randn(3, 8), 1)
    for other in (
        lambda: logits(0, louder), lambda: logits(0, batch, 1), lambda: logits(0, batch, normed=True),
        lambda: logits(0, batch, codes=codes),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            other()
    assert not torch.equal(logits(1, batch), first)
    del models[0].forward
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert torch.equal(logits(0, batch), first), "a file that was cut short is written again"
