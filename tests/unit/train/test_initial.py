"""Stage 5: what an untrained experiment begins with; and what front-ends store of the training audio."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from distill.config.experiment import Experiment
from distill.config.model import FrontEnd
from distill.data.loader import fbank_statistics
from distill.features import fbank
from distill.models import checkpoint
from distill.models.frontend import build_front_end
from distill.train.initial import import_folder, write_pretrained, write_random
from distill.train.setup import Folders, calibrate, initial_model
from local import import_teacher, init_teacher

from ..models.test_pretrained import HUGGING_FACE, OUTPUTS, SMALL, hugging_face, state_of


def experiment(**changes) -> Experiment:
    values = {
        "name": "teacher", "stage": 6, "model": SMALL.model_dump(), "objective": {"alpha": 1, "beta": 1},
        "optim": {"updates": 1},
    }  # fmt: skip
    return Experiment.parse({**values, **changes}, "test")


def test_an_imported_teacher_is_epoch_0_with_a_list_of_its_tensors(tmp_path: Path) -> None:
    source = hugging_face(tmp_path / "hf")
    write_pretrained(experiment(pretrained=source), OUTPUTS, tmp_path)
    model, found, units, epoch = checkpoint.load_recogniser(tmp_path)
    assert epoch == 0 and tuple(units) == OUTPUTS and found.pretrained == source
    theirs = state_of(HUGGING_FACE)["encoder.layers.1.feed_forward.output_dense.weight"]
    assert torch.equal(model.encoder.blocks[1].ffn_down.weight, theirs)
    listed = (tmp_path / "import.tsv").read_text().splitlines()
    for name in model.state_dict():
        assert name == "front_end.gain" or sum(line.split("\t")[1] == name for line in listed) == 1, name
    with pytest.raises(ValueError, match=r"model\.encoder\.ffn_dim is 48, but the checkpoint has 24"):
        wider = SMALL.encoder.model_copy(update={"ffn_dim": 48})
        model_settings = SMALL.model_copy(update={"encoder": wider}).model_dump()
        write_pretrained(experiment(pretrained=source, model=model_settings), OUTPUTS, tmp_path)


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        write_random(experiment(seed=seed), OUTPUTS, tmp_path / str(seed))
    one, two = (checkpoint.load_recogniser(tmp_path / str(seed))[0] for seed in (1, 2))
    assert not torch.equal(one.encoder.projection.weight, two.encoder.projection.weight)


def test_a_checkpoint_becomes_an_experiment_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hugging_face(tmp_path / "hf")
    (tmp_path / "hf" / "vocab.json").write_text('{"<pad>": 0, "|": 1, "A": 2}')
    monkeypatch.setattr(sys, "argv", ["import_teacher.py", "--from", source, "--out", str(tmp_path / "mine")])
    import_teacher.main()
    _, found, units, _ = checkpoint.load_recogniser(tmp_path / "mine")
    assert units == ["<blk>", "▁", "A"] and found.name == "mine"
    written = yaml.safe_load((tmp_path / "mine" / "model.yaml").read_text())
    assert experiment(model=written["model"]).model == SMALL, "model.yaml is what an experiment's YAML must say"
    import_folder(source, OUTPUTS, tmp_path / "other", "other")
    assert checkpoint.load_recogniser(tmp_path / "other")[2] == list(OUTPUTS)


def test_stage_5_notices_another_file_of_the_same_name(tmp_path: Path) -> None:
    source = hugging_face(tmp_path / "hf")
    before = init_teacher.source(experiment(pretrained=source))
    assert set(before["files"]) == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    (tmp_path / "hf" / "config.json").write_text("{}")
    assert init_teacher.source(experiment(pretrained=source)) != before
    assert init_teacher.source(experiment()) == {}


def cuts() -> list:
    draw = np.random.default_rng(0)
    waves = [0.1 * draw.standard_normal((1, n)).astype(np.float32) for n in (8000, 16000)]
    return [SimpleNamespace(load_audio=lambda wave=wave: wave) for wave in waves]


def test_fbank_frames_are_normalised_by_the_training_audio() -> None:
    mean, scale = fbank_statistics(cuts(), 20)
    frames = torch.cat(
        [fbank(torch.from_numpy(c.load_audio()), torch.tensor([c.load_audio().shape[1]]), 20)[0] for c in cuts()]
    )
    torch.testing.assert_close(mean, frames.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(1 / scale, frames.std(0, correction=0), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="audio is empty"):
        fbank_statistics([], 20)


def test_each_front_end_stores_what_it_needs() -> None:
    loader = SimpleNamespace(cuts=cuts())
    stack = {"layers": ((8, 3, 2),), "norm": "frame"}
    features = build_front_end(FrontEnd(input="fbank", waveform="none", mels=20, **stack))
    calibrate(features, loader)
    assert torch.equal(features.mean, fbank_statistics(cuts(), 20)[0])
    gain = build_front_end(FrontEnd(waveform="gain", **stack))
    calibrate(gain, loader)
    assert float(gain.gain) == pytest.approx(10, rel=0.02)
    plain = build_front_end(FrontEnd(waveform="none", **stack))
    calibrate(plain, loader)
    assert float(plain.gain) == 1


def test_with_other_units_the_prediction_layer_is_made_anew(tmp_path: Path) -> None:
    other = ("<blk>", "X", "Y", *(f"Z{i}" for i in range(len(OUTPUTS) - 3)))
    (tmp_path / "teacher").mkdir()
    write_random(experiment(seed=1), OUTPUTS, tmp_path / "teacher")
    folders = Folders(tmp_path, tmp_path, tmp_path, tmp_path)
    loader = SimpleNamespace(cuts=cuts())
    with pytest.raises(ValueError, match=r"has other outputs than .*init_units"):
        initial_model(experiment(init="teacher", seed=2), other, folders, tmp_path, loader)
    settings = experiment(init="teacher", init_units="phones", seed=2)
    made = initial_model(settings, other, folders, tmp_path, loader)
    source, _, _, _ = checkpoint.load_recogniser(tmp_path / "teacher")
    assert torch.equal(made.encoder.projection.weight, source.encoder.projection.weight)
    assert made.head.output.weight.shape == source.head.output.weight.shape  # yet of other units
    assert not torch.equal(made.head.output.weight, source.head.output.weight)


def test_experiments_of_other_units_start_from_others(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("{stage: 6, init: a, objective: {alpha: 1, beta: 1}, optim: {updates: 1}}")
    (tmp_path / "u.yaml").write_text("{base: t.yaml, init_units: phones}")
    (tmp_path / "v.yaml").write_text("{base: t.yaml, init_units: chars_two_pdf}")
    loaded = [Experiment.load(tmp_path / f"{name}.yaml", (), "_bpe") for name in "tuv"]
    assert [e.name for e in loaded] == ["t_bpe", "u_bpe", "v_bpe"]
    assert [e.init for e in loaded] == ["a_bpe", "a", "a_chars_two_pdf"]
