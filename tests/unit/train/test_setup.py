"""Numerators, graphs and initial weights of an experiment."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.batch import BEGIN
from distill.config.experiment import Experiment
from distill.corpora.cut_sets import write_cuts
from distill.data.lattices import LATTICES, CutLattice, write_shard
from distill.data.loader import SpeechDataset
from distill.data.numerators import Wanted
from distill.data.shards import shard_path
from distill.fsa.graph import Fsa, Hmm
from distill.fsa.k2_format import save_fsa
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.numerator import UnitLm
from distill.graphs.unit_ngram import train_unit_ngram
from distill.models import checkpoint
from distill.models.pruning import slimmed
from distill.models.recogniser import count_parameters
from distill.search.determinise import SequenceGraph
from distill.train.import_teacher import write_random
from distill.train.setup import Folders, Graphs, build_trainer, initial_model, stored_numerators, validation
from tests.support.training import ALONE, SETTINGS, write_letters, write_speech


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """A lattice of one arc, with a beam of 3 and frames of 40 ms, where students look for it."""
    zero = np.zeros(1, dtype=np.float32)
    ends = np.array([-np.inf, 0], dtype=np.float32)
    frames = np.zeros(2, dtype=np.int32)
    graph = SequenceGraph(
        frames[:1],
        frames[:1] + 1,
        frames[:1] + 1,
        zero,
        zero,
        ends,
        np.zeros_like(ends),
        frames,
        frames,
        (0.0, 0.0),
        3.0,
    )
    cuts = [CutLattice("cut", graph, np.ones(4))]
    part = tmp_path / "num/teacher/unlabelled"
    part.mkdir(parents=True)
    write_shard(shard_path(part, 0), cuts, frame_shift=0.04, beam=3.0)
    LATTICES.finish(part, 1)
    (tmp_path / "lexicon.txt").write_text("A A\nB B\n", encoding="utf-8")
    write_lang(Lexicon.read(tmp_path / "lexicon.txt"), tmp_path)
    return Folders(tmp_path, tmp_path, tmp_path, tmp_path)


def numerators(folders: Folders, **data):
    settings = {"data": {"train": ["labelled", "unlabelled"], **data}, "teacher": {"experiment": "teacher"}}
    experiment = Experiment.parse({"name": "sn", "stage": 8, "optim": {"updates": 1}, **settings}, "test")
    lang = Lang.load(folders.lang)
    lm = train_unit_ngram([(1, 2), (2, 3, 1)], 2, len(lang.tokens))
    return stored_numerators(experiment, folders, Graphs(lang, UnitLm(lm, len(lang.tokens)), lang.topology.compose(lm)))


def test_parts_without_lattices_are_passed_over_and_frames_are_counted(folders: Folders) -> None:
    made = numerators(folders, lattice={"beam": 2.0})
    assert {cut_id for shard in made.stored.shards() for cut_id in shard} == {"cut"}
    assert made.frame_ratio == 2.0  # the model has frames of 20 ms


@pytest.mark.parametrize(("kind", "key"), [("lattice", "beam"), ("nbest", "nbest_beam")])
def test_lattices_with_too_small_a_beam_are_refused(folders: Folders, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"within 3\.5 .* within 3\.0; lower data\.lattice\.{key} or raise"):
        numerators(folders, numerator=kind, lattice={key: 3.5})
    assert numerators(folders, numerator=kind, lattice={key: 3.0}).stored.beam == 3.0


def test_a_denominator_that_cannot_end_is_named_before_training(folders: Folders) -> None:
    save_fsa(folders.graphs / "denominator.pt", Fsa.from_arcs([(0, 1, 1, 0.0)], {}, 2))
    with pytest.raises(ValueError, match=r"denominator\.pt is without a final state"):
        Graphs.load(folders, Lang.load(folders.lang))
    save_fsa(folders.graphs / "denominator.pt", Fsa.from_arcs([(0, 1, 9, 0.0)], {1: 0.0}, 2))
    with pytest.raises(ValueError, match=r"denominator\.pt has labels 9\.\.9, expected 1\.\.\d; was it built"):
        Graphs.load(folders, Lang.load(folders.lang))


def test_one_best_needs_no_beam(folders: Folders) -> None:
    (graph,) = numerators(folders, numerator="one_best").graphs([Wanted("cut")])
    assert isinstance(graph, Hmm)


def test_a_teacher_of_other_units_gives_all_but_its_prediction_layers(tmp_path: Path) -> None:
    encoder = {"dim": 8, "ffn_dim": 8, "layers": 1, "heads": 2, "position_kernel": 3, "position_groups": 2}
    values = {"name": "teacher", "stage": 6, "model": {"front_end": {"waveform": "none"}, "encoder": encoder}}
    values |= {"objective": {"alpha": 1, "beta": 1}, "optim": {"updates": 1}}
    (tmp_path / "teacher").mkdir()
    write_random(Experiment.parse(values, "test"), ["<blk>", "A"], tmp_path / "teacher")
    folders, other = Folders(tmp_path, tmp_path, tmp_path, tmp_path), {**values, "init": "teacher", "seed": 7}
    with pytest.raises(ValueError, match=r"has other outputs .*init_units"):
        initial_model(Experiment.parse(other, "test"), ["<blk>", "X"], folders, tmp_path, None)  # type: ignore[arg-type]
    after = Experiment.parse({**other, "init_units": "phones"}, "test")
    model = initial_model(after, ["<blk>", "X"], folders, tmp_path, None)  # type: ignore[arg-type]
    before = checkpoint.load(tmp_path / "teacher" / "epoch-0.pt")["model"]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.output.weight"}, "biases start at zero"
    assert "not taken over\thead.output.weight" in (tmp_path / "init.tsv").read_text()


def test_a_distillation_of_hidden_states_needs_no_denominator(tmp_path: Path) -> None:
    (tmp_path / "cuts").mkdir()
    for part in ("labelled", "dev"):
        write_cuts(write_speech(tmp_path / "speech", 6), tmp_path / f"cuts/{part}.jsonl.gz")
    outputs, folders = write_letters(tmp_path).outputs, Folders(tmp_path, tmp_path, tmp_path, tmp_path)
    values = {**SETTINGS, "optim": {"updates": 3}, "data": {"max_duration": 1.5, "workers": 0}}
    for name in ("t", "s"):
        (tmp_path / name).mkdir()
    write_random(Experiment.parse({**values, "name": "t"}, "test"), outputs, tmp_path / "t")
    objective = {"outputs": {"updates": 1}, "hidden": {"layers": [1, 2], "lr_scale": 0.5}}
    student = {**values, "name": "s", "stage": 8, "teacher": {"experiment": "t"}, "objective": objective}
    trainer = build_trainer(
        Experiment.parse(student, "test"), folders, tmp_path / "s", "native", ALONE, torch.device("cpu")
    )
    first, later = (trainer._update([next(trainer.plan.batches(0, BEGIN))], 0.1) for trainer.progress.updates in (0, 1))
    assert set(first) - set(later) == {"outputs"} and {"hidden1", "hidden2"} <= set(later)
    assert [group["lr"] for group in trainer.optimiser.param_groups] == [0.1, 0.05]
    assert trainer.result()["params"]["training_only"] == 2 * 8 * 8


GATED = {**SETTINGS["model"], "pruning": {"units": ["conv", "heads", "ffn"]}}


def write_gated(folder: Path) -> None:
    """An experiment with gates, of which those of half of the units are closed."""
    folder.mkdir()
    objective = {"mmi": {}, "sparsity": {"target": 0.3, "warm_up": 0}}
    values = {**SETTINGS, "name": folder.name, "model": GATED, "objective": objective}
    write_random(Experiment.parse(values, "test"), Lang.load(folder.parent).outputs, folder)
    content = checkpoint.load(folder / "epoch-0.pt")
    for name, value in content["model"].items():
        if name.startswith("gates."):
            value[: len(value) // 2], value[len(value) // 2 :] = -9.0, 9.0
    checkpoint.save(folder / "epoch-0.pt", content)


def test_a_training_goes_on_with_what_the_gates_of_its_start_leave(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    gated = checkpoint.load_recogniser(tmp_path / "gated")[0]
    trainer = trainer_of(tmp_path, init="gated", init_slim=True)
    model = trainer.step.model.eval()
    settings = model.settings
    assert (settings.encoder.heads, settings.encoder.head_dim, settings.encoder.ffn_dim) == (1, 4, 8)
    assert [layer[0] for layer in settings.front_end.layers] == [4, 8], "the last one is as wide as the encoder"
    assert trainer.plan.settings.model == settings and trainer.plan.sizes == count_parameters(model)
    wave, samples = torch.randn(1, 4000), torch.tensor([4000])
    with torch.no_grad():
        torch.testing.assert_close(model(wave, samples).logits, gated(wave, samples).logits, rtol=1e-5, atol=1e-5)
    trainer._update([next(trainer.plan.batches(0, BEGIN))], 0.1)
    trainer._save("epoch-1.pt")
    assert checkpoint.load_recogniser(tmp_path)[0].settings == settings


@pytest.mark.parametrize("kind", ["gates", "rank"])
def test_a_conformer_is_pruned_jointly_with_its_transducer(tmp_path: Path, kind: str) -> None:
    """The setting of papers/002, with LF-MMI beside RNN-T."""
    conformer = {**SETTINGS["model"]["encoder"], "norm_first": False, "block": "conformer", "conv_kernel": 3}
    model = {**SETTINGS["model"], "encoder": conformer, "transducer": {"dim": 8, "joiner_dim": 8}}
    objective = {"mmi": {}, "transducer": {}}
    if kind == "rank":
        conformer["rank"] = 2
    else:
        model["pruning"], objective["sparsity"] = {"units": ["conv", "heads", "ffn"]}, {"target": 0.3, "warm_up": 0}
    trainer = trainer_of(tmp_path, model=model, objective=objective)
    trained = trainer.step.model
    before = {name: x.detach().clone() for name, x in trained.named_parameters()}
    for _ in range(2):  # the multipliers are 0 in the first update
        values = trainer._update([next(trainer.plan.batches(0, BEGIN))], 0.1)
    assert {"mmi", "transducer"} <= values.keys() and ("sparsity" in values) == (kind == "gates")
    moved = {name for name, x in trained.named_parameters() if not torch.equal(x, before[name])}
    assert {name for name in before if name.startswith(("transducer.", "gates."))} <= moved
    if kind == "gates":
        trained.gates.settle(0.3)
        wave, samples, tokens = torch.randn(1, 4000), torch.tensor([4000]), torch.tensor([[1, 2]])
        with torch.no_grad():
            small, whole = (each.eval()(wave, samples, tokens=tokens) for each in (slimmed(trained), trained))
        torch.testing.assert_close(small.joint.frames, whole.joint.frames, rtol=1e-5, atol=1e-5)


def test_gates_are_neither_lost_nor_made_by_a_start(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    message = r"toy: gated has gates .* on conv, heads, ffn, which are missing here, .* init_slim: true, or give these"
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, init="gated")
    (tmp_path / "cuts").rename(tmp_path / "cuts.before")
    fewer = {**SETTINGS["model"], "pruning": {"units": ["conv", "layers"]}}
    with pytest.raises(ValueError, match=r"gated has gates .* on heads, ffn, which are missing here"):
        trainer_of(tmp_path, init="gated", model=fewer, objective={"mmi": {}, "sparsity": {"target": 0.3}})


def test_a_slimmed_start_keeps_the_channels_of_its_heads_and_needs_its_width(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    heads = {**SETTINGS["model"], "encoder": {**SETTINGS["model"]["encoder"], "heads": 1}}
    widths = trainer_of(tmp_path, init="gated", init_slim=True, model=heads).step.model.settings.encoder.widths()
    assert (widths.heads, widths.head_dim) == (1, 4), "of the start: 4 channels, not all 8"
    (tmp_path / "cuts").rename(tmp_path / "cuts.before")
    wider = {**SETTINGS["model"], "encoder": {**SETTINGS["model"]["encoder"], "dim": 16}}
    message = r"toy: init_slim: true takes the widths of gated, but encoder\..* another shape"
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, init="gated", init_slim=True, model=wider)


def write_slimmed(folder: Path) -> None:
    """An experiment `slim` of what the gates of `gated` leave."""
    write_gated(folder / "gated")
    trainer = trainer_of(folder, init="gated", init_slim=True)
    (folder / "slim").mkdir()
    trainer._save("epoch-1.pt")
    (folder / "epoch-1.pt").rename(folder / "slim/epoch-1.pt")
    (folder / "cuts").rename(folder / "cuts.before")


def test_widths_of_a_slimmed_start_are_not_lost(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_slimmed(tmp_path)
    with pytest.raises(ValueError, match=r"toy: slim has the widths that gates left, .* set init_slim: true"):
        trainer_of(tmp_path, init="slim")
    (tmp_path / "cuts").rename(tmp_path / "cuts.other")
    assert trainer_of(tmp_path, init="slim", init_slim=True).step.model.settings.encoder.ffn_dim == 8


def test_widths_of_blocks_are_not_lost(tmp_path: Path) -> None:
    """Those of tools/slim.py, whose settings name no start."""
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    encoder = {**SETTINGS["model"]["encoder"], "ffn_dim": [8, 4]}
    values = {**SETTINGS, "name": "cut", "model": {**SETTINGS["model"], "encoder": encoder}}
    (tmp_path / "cut").mkdir()
    write_random(Experiment.parse(values, "test"), Lang.load(tmp_path).outputs, tmp_path / "cut")
    with pytest.raises(ValueError, match=r"toy: cut has the widths that gates left, .* set init_slim: true"):
        trainer_of(tmp_path, init="cut")


def test_gates_of_other_widths_are_not_opened(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    model = {**GATED, "encoder": {**GATED["encoder"], "ffn_dim": 12}}
    sparsity = {"mmi": {}, "sparsity": {"target": 0.3}}
    with pytest.raises(ValueError, match=r"toy: gates\..*ffn_dim.* have other widths in gated, and would"):
        trainer_of(tmp_path, init="gated", model=model, objective=sparsity, init_slice=["encoder.blocks"])


def test_a_slimmed_start_keeps_its_front_end(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    front = {**SETTINGS["model"]["front_end"], "layers": [[8, 12, 4], [8, 4, 4]]}
    with pytest.raises(ValueError, match=r"widths of gated, but front_end\..* model\.encoder and model\.front_end as"):
        trainer_of(tmp_path, init="gated", init_slim=True, model={**SETTINGS["model"], "front_end": front})


@pytest.mark.parametrize("layers", [1, 3])
def test_a_slimmed_start_has_all_blocks(tmp_path: Path, layers: int) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    model = {**SETTINGS["model"], "encoder": {**SETTINGS["model"]["encoder"], "layers": layers}}
    with pytest.raises(ValueError, match=r"init_slim: true takes the widths of gated, but encoder\.blocks\."):
        trainer_of(tmp_path, init="gated", init_slim=True, model=model)


def test_multipliers_of_a_pruning_begin_at_0(tmp_path: Path) -> None:
    write_letters(tmp_path)
    write_gated(tmp_path / "gated")
    content = checkpoint.load(tmp_path / "gated/epoch-0.pt")
    content["objective"]["sparsity.multipliers"] = torch.tensor([3.0, 4.0])
    checkpoint.save(tmp_path / "gated/epoch-0.pt", content)
    pruned = {"model": GATED, "objective": {"mmi": {}, "sparsity": {"target": 0.3, "warm_up": 0}}}
    step = trainer_of(tmp_path, init="gated", **pruned).step
    assert step.objective.state_dict()["sparsity.multipliers"].tolist() == [0, 0]
    assert step.model.gates.each["block0_heads"].log_alpha.tolist() == [-9, 9], "gates go on"


@pytest.mark.parametrize("warm_up", [2, 8])
def test_a_target_that_training_ends_before_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warm_up: int
) -> None:
    objective = {"mmi": {}, "sparsity": {"target": 0.3, "warm_up": warm_up}}
    trainer_of(tmp_path, model=GATED, objective=objective, optim={"updates": 2})
    assert ("for 8 updates (warm_up), and the training ends after 2, at 0.075 in place of 0.3" in caplog.text) == (
        warm_up == 8
    )


def trainer_of(folder: Path, **changes):
    """The trainer of a teacher on generated speech."""
    (folder / "cuts").mkdir()
    for part in ("labelled", "dev"):
        write_cuts(write_speech(folder / "speech", 6), folder / f"cuts/{part}.jsonl.gz")
    lang, folders = write_letters(folder), Folders(folder, folder, folder, folder)
    save_fsa(folder / "denominator.pt", train_unit_ngram([(1, 2), (2, 2, 1), (1,)], 2, len(lang.tokens)))
    values = {**SETTINGS, "data": {"max_duration": 1.5, "workers": 0}, **changes}
    return build_trainer(Experiment.parse(values, "test"), folders, folder, "native", ALONE, torch.device("cpu"))


def test_frozen_parts_stay_as_they_are_for_so_many_updates(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, frozen={"front_end": "all", "encoder": 1, "head": 0})
    batch, changed = next(trainer.plan.batches(0, BEGIN)), []
    for trainer.progress.updates in range(2):
        before = {name: value.clone() for name, value in trainer.step.model.state_dict().items()}
        trainer._update([batch], 0.1)
        after = trainer.step.model.state_dict()
        changed.append({name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])})
    assert changed == [{"head"}, {"encoder", "head"}]


def test_a_frozen_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"toy: frozen: no parameter's name begins with 'encodr'; parts: front_end, enc"
    ):
        trainer_of(tmp_path, frozen={"encodr": 3})


def test_validation_audio_that_is_gone_is_named_before_training(tmp_path: Path) -> None:
    cuts, folders = write_speech(tmp_path / "speech", 3), Folders(tmp_path, tmp_path, tmp_path, tmp_path)
    (tmp_path / "cuts").mkdir()
    write_cuts(cuts, tmp_path / "cuts/dev.jsonl.gz")
    experiment, reading = Experiment.parse(SETTINGS, "test"), partial(SpeechDataset, with_clean=False, keep_audio=False)
    assert sum(len(batch.ids) for batch in validation(experiment, folders, None, reading, ALONE)()) == 3
    (tmp_path / "speech/cut-0001.wav").unlink()
    with pytest.raises(ValueError, match=r"^no such file: .*/cut-0001\.wav$"):
        validation(experiment, folders, None, reading, ALONE)
