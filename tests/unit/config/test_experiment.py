"""Settings: unknown keys, types, overrides, bases, and rules between settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from distill.config.decoding import Decoding
from distill.config.experiment import Experiment, stage_of
from distill.config.graphs import Graphs
from distill.config.model import FrontEnd, Model
from distill.config.training import Optim, Teacher
from distill.train.schedule import learning_rate

MINIMAL = "stage: 6\nobjective: {alpha: 1, beta: 1}\noptim: {updates: 10}\n"
EGS = Path(__file__).parents[3] / "egs"
OTHERS = ("lm", "graphs", "sets")
CONF = sorted(path for path in EGS.glob("*/conf/**/*.yaml") if not {path.stem, path.parent.name} & {*OTHERS})


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", CONF, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_experiment_of_the_recipes_is_valid(path: Path) -> None:
    experiment = Experiment.load(path)
    assert experiment.name == path.stem and experiment.description
    assert Experiment.parse(experiment.resolved(), "again") == experiment


@pytest.mark.parametrize("path", sorted(EGS.glob("*/conf/graphs.yaml")), ids=lambda path: path.parents[1].name)
def test_the_graphs_of_the_recipes_differ_from_the_defaults(path: Path) -> None:
    assert Graphs.load(path) != Graphs()


def test_base_is_merged_and_overrides_win(minimal: Path, tmp_path: Path) -> None:
    child = tmp_path / "sn.yaml"
    child.write_text("base: teacher.yaml\nstage: 8\noptim: {lr: 0.25}\n")
    experiment = Experiment.load(child, ["optim.updates=7", "model.encoder.dim=96", "data.train=[a, b]"])
    assert (experiment.name, experiment.stage, experiment.optim.lr) == ("sn", 8, 0.25)
    assert experiment.optim.updates == 7 and experiment.data.train == ("a", "b")
    assert experiment.model.encoder.dim == 96 and experiment.model.encoder.layers == 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'lrr'; did you mean 'lr'"),
        ("model.front_end.causl=true", "model.front_end: unknown key 'causl'; did you mean 'causal'"),
        ("optim.lr=fast", r"optim\.lr.*valid number.*'fast'"),
        ("optim.epochs=3", "either optim.updates or optim.epochs"),
        ("objective.alpha=0.5", "'teacher' is not set"),
        ("model.streaming.chunk_frames=16", "needs a model that streams"),
        ("model.encoder.heads=7", "not a multiple of heads 7"),
        ("objective.teacher_layers=[1, 2]", "one for each of the 12 blocks"),
        ("objective.attention.layers=[0, 0]", r"layers \[0, 0\] compare no block; give"),
        ("teacher={experiment: t, keep_targets: true}", "needs teacher.input: clean"),
        ("optim.lr", "not of the form key=value"),
        ("stage=7", "stage"),
        ("objective.transducer={}", "the terms transducer need model.transducer, such as"),
        ("objective.transducer_kl={}", "'teacher' is not set"),
        ("model.transducer={}", "model.transducer needs a term with a weight above 0: objective.transducer, or"),
        ("model.transducer.context=0", "context: must be"),
        (
            "model.encoder.conv_kernel=9",
            r"conv_kernel: of a conformer's blocks \(got block: transformer\); leave this out",
        ),
        ("decoding.methods=[1best, transducer_beam]", "transducer_beam need a transducer; train one"),
    ],
)
def test_wrong_settings_name_key_and_way_out(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.load(minimal, [override])


def test_a_transducer_alone_leaves_the_main_output_untrained(minimal: Path) -> None:
    alone = ["objective={alpha: null, beta: null, transducer: {}}", "model.transducer={}"]
    with pytest.raises(ValueError, match="1best, greedy, nbest-rescoring are of the main output, which no term"):
        Experiment.load(minimal, alone)
    experiment = Experiment.load(minimal, [*alone, "decoding.methods=[transducer_beam]"])
    assert experiment.transduces and experiment.supervised and not experiment.recognises
    with pytest.raises(ValueError, match=r"blank_skip: frames of the main output .*, transducer_beam, read the trans"):
        Experiment.load(minimal, [*alone, "decoding={methods: [transducer_beam], blank_skip: 0.9}"])
    with pytest.raises(ValueError, match=r"context: 3 units are what a stateless predictor sees"):
        Experiment.load(minimal, [*alone, "model.transducer={predictor: lstm, context: 3}"])
    both = Experiment.load(minimal, ["objective.transducer={}", "model.transducer={}"])
    assert both.transduces and both.recognises


def test_unreadable_files_are_named(tmp_path: Path, minimal: Path) -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'teacher'"):
        Experiment.load(tmp_path / "techer.yaml")
    minimal.write_text("a: [")
    with pytest.raises(ValueError, match=r"teacher\.yaml: not valid YAML"):
        Experiment.load(minimal)
    minimal.write_text("just text")
    with pytest.raises(ValueError, match="expected a mapping"):
        Experiment.load(minimal)


def test_front_end_geometry_of_wav2vec2() -> None:
    assert (FrontEnd().hop, FrontEnd().receptive) == (320, 400)


def test_a_front_end_that_leaves_audio_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sees 165 samples and is 320 after the last one, so that none sees"):
        FrontEnd(layers=((16, 10, 5), (16, 8, 8), (24, 4, 8)))


def test_tri_state_schedule() -> None:
    linear = Optim(updates=1, lr=2.0, phases=(0.1, 0.4, 0.5), final_scale=0.05)
    assert learning_rate(linear, 0.0) == pytest.approx(0.02)
    assert learning_rate(linear, 0.1) == learning_rate(linear, 0.49) == 2.0
    assert learning_rate(linear, 0.75) == pytest.approx(2.0 * (1 + 0.05) / 2)
    exponential = linear.model_copy(update={"decay": "exponential"})
    assert learning_rate(exponential, 0.75) == pytest.approx(2.0 * 0.05**0.5)
    cosine = linear.model_copy(update={"decay": "cosine"})
    assert learning_rate(cosine, 0.625) == pytest.approx(0.1 + 1.9 * (1 + math.cos(math.pi / 4)) / 2)
    for settings in (linear, exponential, cosine):
        assert learning_rate(settings, 1.0) == pytest.approx(0.1)


def test_a_start_may_have_other_units_than_the_variant(tmp_path: Path) -> None:
    path = tmp_path / "teacher_ctc.yaml"
    for units, expected in (("phones", "teacher"), ("chars", "teacher_chars")):
        path.write_text(MINIMAL + f"init: teacher\ninit_units: {units}\n")
        assert Experiment.load(path, suffix="_bpe").init == expected
    path.write_text(MINIMAL + "init: teacher\n")
    assert Experiment.load(path, suffix="_bpe").init == "teacher_bpe"


def test_the_stage_of_what_it_starts_from_is_that_of_a_training(tmp_path: Path) -> None:
    for name, text in {
        "teacher": "{stage: 6, init: teacher_init, objective: {alpha: 1, beta: 1}, optim: {updates: 1}}",
        "again": "{base: teacher.yaml, init: teacher}",
        "ctc": "{base: teacher.yaml, init: teacher, init_units: phones}",
        "sn": "{base: teacher.yaml, stage: 8, init: teacher}",
        "ss": "{base: teacher.yaml, stage: 9, init: sn}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    for name, stage in {"teacher": 5, "again": 6, "ctc": 6, "sn": 6, "ss": 8}.items():
        for suffix in ("", "_bpe"):
            loaded = Experiment.load(tmp_path / f"{name}.yaml", (), suffix)
            assert stage_of(loaded.maker_of_init(tmp_path, suffix)) == stage, (name, suffix)


def test_earlier_names_of_keys_are_read() -> None:
    teacher = {"experiment": "t", "hears": "clean"}
    assert Teacher.model_validate(teacher) == Teacher(experiment="t", input="clean")


def test_the_epoch_that_is_decoded_is_named_where_it_is_not_the_last() -> None:
    last, best = Decoding().identity(), Decoding(epoch="best").identity()
    assert "epoch" not in last and best == last | {"epoch": "best"}
    with pytest.raises(ValueError, match=r"avg must be 1 \(got 2\)"):
        Decoding(epoch="best", avg=2)


def test_no_condition_has_the_name_of_the_test_set_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"conditions: clean is the test set as it is; give"):
        Decoding.model_validate({"conditions": {"clean": {}}})


def test_changed_settings_are_those_that_differ_from_their_defaults() -> None:
    """So that names made of them stay when a setting is added."""
    assert Model().changed() == {}
    changed = {"encoder": {"dim": 48}, "mask": {"time_probability": 0.5}}
    assert Model.model_validate({**changed, "encoder": {"dim": 48, "layers": 12}}).changed() == changed
