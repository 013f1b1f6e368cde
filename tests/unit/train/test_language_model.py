"""A language model in the training loop: it learns, continues after a kill, and names missing files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.batch import BEGIN, Place
from distill.config.language_model import LanguageModel
from distill.graphs.arpa import read_arpa
from distill.graphs.word_ngram import train_word_ngram
from distill.lm.scoring import load_lm, log_probabilities, perplexity
from distill.lm.text import TextBatch, padded
from distill.train.distributed import Ranks
from distill.train.language_model import build_lm_trainer, prepare, remove_token_ids
from distill.train.loop import Trainer
from tests.support.lang import trained_lm

# a word is known from the one before the last: what a 2-gram cannot learn
SENTENCES = ["A X B", "C X D", "A Y B", "C Y D"] * 20
SETTINGS = {
    "name": "lm",
    "model": {"dim": 16, "ffn_dim": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "text": {"units": "words", "batch_units": 64},
    "optim": {"updates": 20, "lr": 0.02},
    "saving": {"every_updates": 3},
}


def trainer(folder: Path, updates: int = 20, **changes) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    text = folder.parent / "lm.txt"
    text.write_text("".join(f"{line}\n" for line in SENTENCES))
    settings = LanguageModel.model_validate({**SETTINGS, **changes, "optim": {"updates": updates, "lr": 0.02}})
    return build_lm_trainer(settings, text, SENTENCES[:4], folder, Ranks(), torch.device("cpu"))


def test_it_learns_a_dependency_beyond_a_bigram(tmp_path: Path) -> None:
    result = trainer(tmp_path / "lm", 150).run()
    scorer, settings, epoch = load_lm(tmp_path / "lm")
    scores = perplexity(scorer, SENTENCES[:4])
    bigram = trained_lm(tmp_path, SENTENCES, 2).perplexity(SENTENCES[:4])
    ideal = 4 ** (1 / 4)  # four sentences, equally likely, of three words and an end
    assert ideal <= scores["perplexity"] < 1.1 * ideal < bigram
    assert (scores["words"], scores["unknown"]) == (12, 0)
    assert result["updates"] == 150 and result["params"]["head"] == len(scorer.units) * 16
    assert result["valid_loss"] == pytest.approx(math.log(scores["perplexity"]), abs=1e-3)
    assert settings.optim.updates == 150 and epoch >= 1


def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    dying = trainer(tmp_path / "killed")
    batches = dying.plan.batches

    def until_killed(epoch: int, place: Place = BEGIN) -> Iterator[TextBatch]:
        for index, batch in enumerate(batches(epoch, place)):
            if epoch == 1 and index == 2:
                raise KeyboardInterrupt
            yield batch

    dying.plan = replace(dying.plan, batches=until_killed)
    with pytest.raises(KeyboardInterrupt):
        dying.run()
    continuing = trainer(tmp_path / "killed")
    continuing.run()
    assert continuing.progress.updates == 20
    whole, continued = (load_lm(tmp_path / name)[0].model.state_dict() for name in ("whole", "killed"))
    for name, value in whole.items():
        assert torch.equal(continued[name], value), name


def test_sentences_are_scored_as_alone(tmp_path: Path) -> None:
    trainer(tmp_path / "lm", 1).run()
    scorer, *_ = load_lm(tmp_path / "lm")
    scorer.batch_units = 7
    texts = [("A", "X", "B"), (), ("Y",), ("A", "X", "B"), ("C", "Y", "D", "NEW")]
    scores = scorer(texts)
    for sentence, value in zip(texts, scores):
        alone = log_probabilities(scorer.model, *padded([scorer.units.sentence(sentence)])).double().sum()
        assert value == pytest.approx(float(alone.detach()), abs=1e-5)
    assert len(scorer([])) == 0
    assert perplexity(scorer, ["C Y NEW"])["unknown"] == 1


def test_not_finite_stops_with_the_rows(tmp_path: Path) -> None:
    broken = trainer(tmp_path / "lm")
    with torch.no_grad():
        broken.step.model.embedding.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"update 1: .*text row \d+"):
        broken.run()


def test_missing_files_are_named(tmp_path: Path) -> None:
    settings = LanguageModel.model_validate(SETTINGS)
    with pytest.raises(FileNotFoundError, match=r"no text corpus at .*stage 0 writes it"):
        prepare(settings, tmp_path / "lm.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no Transformer language model in .*--stage 11"):
        load_lm(tmp_path)
    trainer(tmp_path / "lm", 5).run()
    (tmp_path / "lm/units.txt").write_text("<blk> 0\n<sos/eos> 1\n<unk> 2\n")
    with pytest.raises(ValueError, match="other units than its checkpoints"):
        load_lm(tmp_path / "lm")


def test_no_transcripts_to_validate_on_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lm.txt").write_text("A X B\n")
    with pytest.raises(ValueError, match="no transcripts in cut set 'dev'"):
        build_lm_trainer(
            LanguageModel.model_validate(SETTINGS), tmp_path / "lm.txt", [""], tmp_path, Ranks(), torch.device("cpu")
        )


def test_more_checkpoints_than_there_are_cannot_be_averaged(tmp_path: Path) -> None:
    trainer(tmp_path / "lm", 2, avg=3).run()
    with pytest.raises(ValueError, match=r"has epochs \[1\]; cannot average 3"):
        load_lm(tmp_path / "lm")


def test_token_ids_are_removed_after_training(tmp_path: Path) -> None:
    trainer(tmp_path / "lm", 1)
    before = {path.name for path in (tmp_path / "lm").iterdir()}
    remove_token_ids(tmp_path / "lm")
    assert before - {path.name for path in (tmp_path / "lm").iterdir()} == {"text.numbers", "text.rows"}


def test_an_arpa_file_can_be_read_for_some_sentences_alone(tmp_path: Path) -> None:
    path = tmp_path / "3gram.arpa"
    train_word_ngram(SENTENCES, 3).write(path)
    whole, part = read_arpa(path), read_arpa(path, SENTENCES[:1])
    assert part.perplexity(SENTENCES[:1]) == whole.perplexity(SENTENCES[:1])
    assert len(part.probability) < len(whole.probability) and part.order == 3
