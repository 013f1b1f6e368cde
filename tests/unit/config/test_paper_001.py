"""Every experiment of papers/001 is a YAML of egs/librispeech/conf, with the paper's values (§5.1, tables 1 to 5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.experiment import TEACHERS, Experiment
from distill.models.cost import parameters
from distill.models.latency import latency

CONF = Path(__file__).resolve().parents[3] / "egs/librispeech/conf"
TABLE_1 = {  # channels of the first two convolutions, width, feed-forward width, blocks, parameters in millions
    "teacher": (512, 1024, 4096, 24, 317),
    "s1": (512, 768, 3072, 12, 95),
    "s2": (512, 512, 2048, 12, 44),
    "s3": (512, 384, 1536, 12, 27),
    "s4": (512, 384, 1536, 10, 23),
    "s5": (256, 384, 1536, 10, 22),
}
FIRST = ["s1", "s2", "s3", "s4", "s5"]
SECOND = [f"{name}_stream" for name in FIRST]
LATENCIES = {"s5_stream_320ms": 16, "s5_stream_640ms": 32, "s5_stream": 48}  # frames of a chunk
TABLE_3 = {"m1": (1, 0), "m2": (1, 1), "m3": (0.8, 1), "s5": (0.8, 0.8)}  # alpha, beta


def load(name: str) -> Experiment:
    return Experiment.load(CONF / f"{name}.yaml")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_in_its_first_line_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")
    if path.stem not in ("lm", "graphs"):
        experiment = Experiment.load(path)
        assert experiment.description
        for other in (experiment.init, experiment.teacher and experiment.teacher.experiment):
            assert other is None or other.endswith("_init") or (CONF / f"{other}.yaml").is_file(), other


@pytest.mark.parametrize("name", TABLE_1)
def test_the_models_of_table_1(name: str) -> None:
    model, (channels, dim, ffn_dim, layers, millions) = load(name).model, TABLE_1[name]
    shape = [layer[0] for layer in model.front_end.layers]
    assert shape == [channels] * 2 + [512] * 5 and model.front_end.layers[0][1:] == (10, 5)
    assert (model.encoder.dim, model.encoder.ffn_dim, model.encoder.layers) == (dim, ffn_dim, layers)
    assert (model.encoder.position_kernel, model.encoder.position_groups) == (128, 16)
    # the paper counts T1 with what its pre-training alone uses (2 M)
    assert parameters(model, 43)["trunk"] / 1e6 == pytest.approx(millions, abs=2.1 if name == "teacher" else 0.7)


@pytest.mark.parametrize("name", [*FIRST, *SECOND, *TABLE_3, *LATENCIES, "s5_single"])
def test_every_student_trains_as_the_paper_says(name: str) -> None:
    experiment = load(name)
    objective, augment, optim = experiment.objective, experiment.augment, experiment.optim
    assert experiment.teacher and experiment.teacher.experiment == "teacher"
    assert experiment.data.train == ("unlabelled",) and experiment.data.numerator == "lattice"
    assert (augment.volume_probability, augment.volume) == (0.5, (0.3, 3.0))
    assert (augment.pitch_probability, augment.pitch) == (0.5, (0.9, 1.1))
    assert (optim.phases, optim.decay, optim.final_scale) == ((0.1, 0.4, 0.5), "linear", 0.05)
    assert objective.shares == TABLE_3.get(name, (0.8, 0.8))
    if "hidden" in objective.terms:
        g = {i: 2 * i for i in range(1, 13)}
        if experiment.model.encoder.layers == 10:  # without the 4th and 8th mapping
            g = dict(enumerate((t for i, t in g.items() if i not in (4, 8)), 1))
        assert objective.terms["hidden"].layer_map(experiment.model.encoder.layers) == g


@pytest.mark.parametrize("name", [*FIRST, "m1", "m2", "m3"])
def test_the_first_step(name: str) -> None:
    experiment = load(name)
    assert (experiment.stage, experiment.init, experiment.optim.epochs, experiment.optim.lr) == (8, "teacher", 30, 5e-4)
    assert experiment.model.streaming.chunk_frames == 0
    assert experiment.model.encoder.position_causal and experiment.model.front_end.causal
    assert experiment.model.shared_head_dim == 1024, "the prediction layer is shared"


@pytest.mark.parametrize("name", [*SECOND, *LATENCIES])
def test_the_second_step(name: str) -> None:
    experiment = load(name)
    assert (experiment.stage, experiment.optim.epochs, experiment.optim.lr) == (9, 15, 1e-4)
    assert experiment.init == name.partition("_")[0]
    frames = LATENCIES.get(name, 48)
    assert (experiment.model.streaming.chunk_frames, experiment.model.streaming.history_frames) == (frames, 600)
    assert latency(experiment.model).mean == pytest.approx(10 * frames, abs=10), "ms: half a chunk of 20 ms frames"


def test_the_single_step_is_as_long_as_both() -> None:
    experiment = load("s5_single")
    assert (experiment.stage, experiment.init, experiment.optim.lr) == (8, "teacher", 5e-4)
    assert experiment.optim.epochs == load("s5").optim.epochs + load("s5_stream").optim.epochs
    assert experiment.model == load("s5_stream").model


def test_t1_is_fine_tuned_as_fairseq_does_on_100_hours() -> None:
    """vox_100h.yaml of fairseq, which the paper follows, with LF-MMI for CTC."""
    t1 = load("teacher")
    assert (t1.stage, t1.pretrained) == (6, "hf:facebook/wav2vec2-large-lv60")
    assert set(t1.objective.terms) == {"mmi"} and t1.data.train == ("labelled",)
    assert (t1.optim.updates, t1.optim.lr, t1.optim.phases) == (80000, 3e-5, (0.1, 0.4, 0.5))
    assert (t1.optim.eps, t1.optim.weight_decay, t1.optim.final_scale) == (1e-8, 0.0, 0.05)
    assert t1.data.max_duration * t1.optim.accumulate == 80 * 4 * 5, "seconds of an update: of a GPU, GPUs, batches"
    mask, encoder = t1.model.mask, t1.model.encoder
    assert (mask.time_probability, mask.channel_probability, mask.channel_length) == (0.5, 0.5, 64)
    assert (encoder.layer_drop, encoder.dropout, encoder.activation_dropout) == (0.1, 0.0, 0.1)
    assert t1.frozen == {"front_end": "all", "encoder": 10000}
    assert t1.model.front_end.waveform == "utterance"


def test_every_recipes_teacher_says_what_it_starts_from() -> None:
    """Random weights have to be asked for."""
    every, others = CONF.parents[1].glob("*/conf/**/*.yaml"), {"lm", "graphs", "sets"}
    paths = [path for path in every if not {path.stem, path.parent.name} & others]
    teachers = {path: each for path in paths if (each := Experiment.load(path)).stage in TEACHERS}
    trained = {path: each.maker_of_init(path.parent, "") for path, each in teachers.items()}
    assert len(teachers) > 8 and all(each.pretrained or trained[path] for path, each in teachers.items()), teachers
