"""Stage 5: initial weights of an experiment; and the front-end's statistics of the training audio."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lhotse import Recording

from distill.config.bounds import RANDOM
from distill.config.experiment import Experiment
from distill.config.model import FrontEnd
from distill.data.statistics import fbank_statistics
from distill.fbank import fbank
from distill.models import checkpoint
from distill.models.front_end import build_front_end
from distill.models.pretrained import letters_of
from distill.recipe.first_weights import first_weights_stage, import_checkpoint, source_files
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.training import training_stage
from distill.train.import_teacher import import_folder, write_pretrained, write_random
from distill.train.setup import calibrate
from local import init_teacher
from tests.unit.models.test_pretrained import HUGGING_FACE, OUTPUTS, SMALL, hugging_face, state_of


def experiment(**changes) -> Experiment:
    values = {
        "name": "teacher", "stage": 6, "model": SMALL.model_dump(), "objective": {"alpha": 1, "beta": 1},
        "optim": {"updates": 1},
    }  # fmt: skip
    return Experiment.parse({**values, **changes}, "test")


def test_an_imported_teacher_is_epoch_0_with_a_list_of_its_tensors(tmp_path: Path) -> None:
    source = hugging_face(tmp_path / "hf")
    write_pretrained(experiment(pretrained=source), OUTPUTS, tmp_path)
    model, saved, units, epoch = checkpoint.load_recogniser(tmp_path)
    assert epoch == 0 and tuple(units) == OUTPUTS and saved.pretrained == source
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
    monkeypatch.setattr(sys, "argv", ["init_teacher.py", "--from", source, "--out", str(tmp_path / "mine")])
    init_teacher.main()
    _, saved, units, _ = checkpoint.load_recogniser(tmp_path / "mine")
    assert units == ["<blk>", "▁", "A"] and saved.name == "mine"
    written = yaml.safe_load((tmp_path / "mine" / "model.yaml").read_text())
    assert experiment(model=written["model"]).model == SMALL, "model.yaml has the settings of an experiment's YAML"
    import_folder(source, OUTPUTS, tmp_path / "other", "other")
    assert checkpoint.load_recogniser(tmp_path / "other")[2] == list(OUTPUTS)


def test_stage_5_reads_all_files_of_a_checkpoint(tmp_path: Path) -> None:
    """They are its inputs, whose contents are compared: another file of the same name is noticed."""
    files = source_files(hugging_face(tmp_path / "hf"))
    assert {path.name for path in files} == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    assert source_files(f"fairseq:{files[0]}") == files[:1]
    assert source_files(RANDOM) == source_files(None) == []


def test_an_import_by_hand_stays_and_its_changes_are_noticed(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    folders = [f"--{kind}-dir={tmp_path / kind}" for kind in ("data", "exp", "conf")]
    recipe = recipe_from(recipe_parser("").parse_args(["--corpus", "librispeech", *folders]))
    teacher = experiment(init="teacher_init", pretrained=RANDOM)
    made, training = first_weights_stage(recipe, teacher), training_stage(recipe, teacher)
    assert made is not None and made.out == exp / "teacher_init"

    def imported(**changes: torch.Tensor) -> str:
        source = hugging_face(tmp_path / "hf", {**state_of(HUGGING_FACE), **changes})
        (tmp_path / "hf/vocab.json").write_text('{"<pad>": 0, "|": 1, "A": 2}')
        import_checkpoint(source, None, exp / "teacher_init")
        assert first_weights_stage(recipe, teacher) is None
        return training.identity()["inputs"]["exp/teacher_init"]

    assert imported() == imported()
    with pytest.raises(ValueError, match=r"pretrained is hf:a/b, but .*teacher_init is an import of hf:/.*move"):
        first_weights_stage(recipe, experiment(init="teacher_init", pretrained="hf:a/b"))
    name = "encoder.layers.1.feed_forward.output_dense.weight"
    assert imported() != imported(**{name: 2 * state_of(HUGGING_FACE)[name]})


def cuts() -> list:
    draw = np.random.default_rng(0)
    waves = [0.1 * draw.standard_normal((1, n)).astype(np.float32) for n in (8000, 16000)]
    common = {"id": "x", "sampling_rate": 16000, "recording": Recording("x", [], 16000, 16000, 1.0)}
    return [SimpleNamespace(**common, load_audio=lambda wave=wave: wave) for wave in waves]


def test_fbank_frames_are_normalised_by_the_training_audio() -> None:
    mean, scale = fbank_statistics(cuts(), 20)
    frames = torch.cat(
        [fbank(torch.from_numpy(c.load_audio()), torch.tensor([c.load_audio().shape[1]]), 20)[0] for c in cuts()]
    )
    torch.testing.assert_close(mean, frames.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(1 / scale, frames.std(0, correction=0), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="audio is empty or silent"):
        fbank_statistics([], 20)


def test_each_front_end_stores_what_it_needs() -> None:
    loader = SimpleNamespace(sample=lambda count: cuts())
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


def published(folder: Path) -> str:
    """A small fine-tuned model with its letters."""
    source = hugging_face(folder, pad_token_id=2, vocab_size=3)
    (folder / "vocab.json").write_text('{"|": 0, "<pad>": 2, "A": 1}')
    return source


def test_a_fine_tuned_model_is_the_teacher_with_its_prediction_layer(tmp_path: Path) -> None:
    source = published(tmp_path / "hf")
    assert letters_of(source) == ("<blk>", "▁", "A"), "the blank first, wherever it is"
    taken = experiment(stage=5, pretrained=source)
    parameters = write_pretrained(taken, letters_of(source), tmp_path)
    model, saved, units, _ = checkpoint.load_recogniser(tmp_path)
    assert saved.stage == 5 and tuple(units) == letters_of(source)
    assert sum(parameters.values()) == sum(p.numel() for p in model.parameters())
    theirs = state_of(HUGGING_FACE)["lm_head.weight"]
    assert torch.equal(model.head.output.weight, theirs[[2, 0, 1]])
    with pytest.raises(ValueError, match=r"cannot be taken over: our outputs B are not among .*--units letters"):
        write_pretrained(taken, ("<blk>", "▁", "B"), tmp_path)
    states = experiment(stage=5, pretrained=source, decoding={"methods": []})
    write_pretrained(states, ("<blk>", "▁", "B"), tmp_path)
    assert checkpoint.load_recogniser(tmp_path)[2] == ["<blk>", "▁", "B"], "its hidden states alone teach"


def test_letters_need_a_fine_tuned_model(tmp_path: Path) -> None:
    source = hugging_face(tmp_path)
    with pytest.raises(ValueError, match=r"no prediction layer with known units; name a fine-tuned model"):
        letters_of(source)
    with pytest.raises(ValueError, match="stage 5 takes a fine-tuned model over, and pretrained does not name it"):
        experiment(stage=5)
    for part, given in {
        "init": {"init": "teacher_init"}, "model.ctc_output": {"model": {"ctc_output": True}},
        "model.transducer": {"model": {"transducer": {}}}, "model.pruning": {"model": {"pruning": {}}},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=rf"test: {part}: a published teacher is taken over as it is"):
            experiment(stage=5, pretrained=source, **given)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("random", "random"),
        ("./model", "hf:./model"),
        ("/a/b", "hf:/a/b"),
        ("hf:a/b", "hf:a/b"),
        ("fairseq:x", "fairseq:x"),
    ],
)
def test_what_a_teacher_may_start_from(given: str, kept: str) -> None:
    assert experiment(pretrained=given).pretrained == kept
