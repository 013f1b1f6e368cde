"""A training that was killed or ended by a signal continues to the same result, bit for bit."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

import distill.data.loader as module
from distill.batch import BEGIN
from distill.graphs.lexicon import Lang
from distill.models import checkpoint
from distill.train.loop import Trainer
from tests.support.training import (
    GATES,
    RANDOM,
    SETTINGS,
    assert_same_training,
    toy_trainer,
    write_letters,
    write_speech,
)

TAUGHT = {
    "teacher": {"experiment": "t", "input": "clean", "keep_targets": True},
    "objective": {"alpha": 0.8, "beta": 0.8, "teacher_layers": [1, 2]},
}
CHUNKS = {"chunk_frames": 4, "history_frames": 8, "train_chunks": [4, 8], "train_histories": [8, 16]}
KINDS = {
    "random": {"noise": RANDOM},
    "workers": {"noise": RANDOM, "data": {"max_duration": 1.5, "buckets": 2, "workers": 2}},
    "kept audio": {"noise": RANDOM, "data": {"max_duration": 1.5, "buckets": 2, "keep_audio": True}},
    "kept targets": {"noise": RANDOM, **TAUGHT},
    "accumulated": {"noise": RANDOM, "optim": {"updates": 9, "lr": 0.01, "accumulate": 2}},
    "chunks": {"noise": RANDOM, "model": {**SETTINGS["model"], "streaming": CHUNKS}},
    "gates": {
        "noise": RANDOM,
        "teacher": TAUGHT["teacher"],
        "model": {**GATES["model"], "streaming": CHUNKS},
        "objective": {**GATES["objective"], "outputs": {}, "hidden": {"layers": [1, 2]}},
    },
}


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> Lang:
    return write_letters(tmp_path_factory.mktemp("lang"))


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 2)


class Killed(BaseException):
    pass


def dies(trainer: Trainer, updates: int, at: str) -> None:
    """End the training without a word when `updates` are done, at a place where a kill may strike."""
    original = getattr(trainer, at)

    def dying(*arguments):
        if trainer.progress.updates >= updates:
            raise Killed
        return original(*arguments)

    setattr(trainer, at, dying)
    with pytest.raises(Killed):
        trainer.run()


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_becomes_the_unbroken_one(tmp_path: Path, cuts: CutSet, lang: Lang, kind: str) -> None:
    changes = KINDS[kind]
    toy_trainer(tmp_path / "whole", cuts, lang, **changes).run()
    for updates, place in ((4, "_update"), (7, "_loss"), (8, "_validate")):
        dies(toy_trainer(tmp_path / "killed", cuts, lang, **changes), updates, place)
    result = toy_trainer(tmp_path / "killed", cuts, lang, **changes).run()
    assert_same_training(tmp_path / "whole", tmp_path / "killed")
    assert result["train_loss"] < 100 and result["valid_loss"] < 100


@pytest.mark.parametrize(("place", "every"), [("_validate", 4), ("_finish_epoch", 16)])
def test_the_last_epoch_is_never_missing(tmp_path: Path, cuts: CutSet, lang: Lang, place: str, every: int) -> None:
    toy_trainer(tmp_path / "whole", cuts, lang).run()
    saving = {"every_updates": every}  # the last update's checkpoint is written before the epoch's
    dies(toy_trainer(tmp_path / "killed", cuts, lang, saving=saving), 16, place)
    assert checkpoint.load(tmp_path / "killed/last.pt")["progress"]["updates"] == 16
    result = toy_trainer(tmp_path / "killed", cuts, lang, saving=saving).run()
    for name in ("whole", "killed"):
        (tmp_path / name / "last-1.pt").unlink()  # of another update with another every_updates
    assert_same_training(tmp_path / "whole", tmp_path / "killed")
    assert result == toy_trainer(tmp_path / "killed", cuts, lang, saving=saving).run()  # nothing left to do


def test_a_kill_between_the_epoch_and_its_progress_changes_nothing(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    toy_trainer(tmp_path / "whole", cuts, lang).run()
    dying = toy_trainer(tmp_path / "killed", cuts, lang)
    save = dying._save

    def until_epoch(name: str) -> None:
        save(name)
        if name == "epoch-2.pt":
            raise Killed

    dying._save = until_epoch  # type: ignore[method-assign]
    with pytest.raises(Killed):
        dying.run()
    toy_trainer(tmp_path / "killed", cuts, lang).run()
    assert_same_training(tmp_path / "whole", tmp_path / "killed")


def test_an_epoch_longer_than_every_updates_leaves_a_checkpoint(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    dies(toy_trainer(tmp_path, cuts, lang, saving={"every_updates": 2}), 3, "_update")
    assert [path.name for path in tmp_path.glob("*.pt")] == ["last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["updates"] == 2


def test_train_loss_is_the_mean_of_the_last_epoch(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    trainer = toy_trainer(tmp_path, cuts, lang)
    losses: dict[int, list[float]] = {}
    update = trainer._update

    def noting(group, rate):
        values = update(group, rate)
        losses.setdefault(trainer.progress.epoch, []).append(values["loss"])
        return values

    trainer._update = noting  # type: ignore[method-assign]
    result = trainer.run()
    last = losses[max(losses)]
    assert len(losses) > 1 < len(last) and result["train_loss"] == pytest.approx(sum(last) / len(last))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
@pytest.mark.parametrize("place", ["_update", "_validate"])
def test_a_signal_leaves_a_checkpoint(
    tmp_path: Path, cuts: CutSet, lang: Lang, number: int, status: int, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    toy_trainer(tmp_path / "whole", cuts, lang).run()
    ending = toy_trainer(tmp_path / "ended", cuts, lang)
    original = getattr(ending, place)

    def signalled(*arguments):
        if ending.progress.updates >= 4:
            os.kill(os.getpid(), number)
        return original(*arguments)

    setattr(ending, place, signalled)
    before = signal.getsignal(number)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        ending.run()
    assert ended.value.code == status and signal.getsignal(number) == before
    updates = checkpoint.load(tmp_path / "ended/last.pt")["progress"]["updates"]
    assert f"checkpoint at update {updates} written to {tmp_path}/ended/last.pt; the same command" in caplog.text
    assert updates == (5 if place == "_update" else ending.progress.updates)
    toy_trainer(tmp_path / "ended", cuts, lang).run()
    assert_same_training(tmp_path / "whole", tmp_path / "ended")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x00" * 5000])
def test_damaged_checkpoints_are_named_and_left(tmp_path: Path, cuts: CutSet, lang: Lang, content: bytes) -> None:
    toy_trainer(tmp_path, cuts, lang).run()
    for name in ("last.pt", "last-1.pt"):
        (tmp_path / name).write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    message = r"last\.pt: unreadable .*last-1\.pt: unreadable .*move last\.pt and last-1\.pt away .*epoch-1\.pt"
    with pytest.raises(ValueError, match=message):
        toy_trainer(tmp_path, cuts, lang).run()
    assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "last-1.pt").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def zero_a_block(path: Path) -> None:
    """Zeros in place of the largest tensor, which torch alone would not notice."""
    with zipfile.ZipFile(path) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    with path.open("r+b") as file:
        file.seek(largest.header_offset + 512)
        file.write(bytes(largest.file_size // 2))


def of_an_epoch(path: Path) -> None:
    path.write_bytes((path.parent / "epoch-1.pt").read_bytes())


def of_another_model(path: Path) -> None:
    content = checkpoint.load(path)
    content["model"].popitem()
    checkpoint.save(path, content)


@pytest.mark.parametrize("damage", [cut, zero_a_block, of_an_epoch, of_another_model, Path.unlink])
def test_the_checkpoint_before_a_damaged_one_is_continued(
    tmp_path: Path, cuts: CutSet, lang: Lang, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    toy_trainer(tmp_path / "whole", cuts, lang, noise=RANDOM).run()
    dies(toy_trainer(tmp_path / "damaged", cuts, lang, noise=RANDOM), 13, "_update")
    last, before = tmp_path / "damaged/last.pt", tmp_path / "damaged/last-1.pt"
    updates = checkpoint.load(before)["progress"]["updates"]
    assert updates < checkpoint.load(last)["progress"]["updates"]
    damage(last)
    with caplog.at_level("INFO"):
        toy_trainer(tmp_path / "damaged", cuts, lang, noise=RANDOM).run()
    assert f"continuing from update {updates} of 16 ({before})" in caplog.text
    if damage is not Path.unlink:
        assert f"{last}: " in caplog.text and "put aside as last.damaged" in caplog.text
        assert (tmp_path / "damaged/last.damaged").is_file()
    assert_same_training(tmp_path / "whole", tmp_path / "damaged")


def test_a_kill_between_the_two_names_of_a_checkpoint_leaves_one(
    tmp_path: Path, cuts: CutSet, lang: Lang, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_trainer(tmp_path / "whole", cuts, lang).run()
    dying, rename = toy_trainer(tmp_path / "killed", cuts, lang), os.replace

    def until_update(source: Path, target: Path) -> None:
        if target.name == "last.pt" and dying.progress.updates >= 6:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", until_update)
        dying.run()
    assert [path.name for path in (tmp_path / "killed").glob("last*")] == ["last-1.pt"]
    toy_trainer(tmp_path / "killed", cuts, lang).run()
    assert_same_training(tmp_path / "whole", tmp_path / "killed")


def test_epochs_without_a_last_checkpoint_are_not_replaced_in_silence(
    tmp_path: Path, cuts: CutSet, lang: Lang, caplog: pytest.LogCaptureFixture
) -> None:
    toy_trainer(tmp_path, cuts, lang).run()
    for path in tmp_path.glob("last*.pt"):
        path.unlink()
    toy_trainer(tmp_path, cuts, lang).run()
    assert "no last.pt" in caplog.text and "training starts over and replaces its epochs (epoch-1.pt" in caplog.text


def test_the_best_epoch_is_kept_named_and_decoded(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 0.5, 5: 0.7, 6: 0.6}
    batches = toy_trainer(tmp_path, cuts, lang).plan.batches
    updates = sum(len(list(batches(epoch, BEGIN))) for epoch in range(6))
    trainer = toy_trainer(tmp_path, cuts, lang, saving={"keep": 1}, optim={"updates": updates, "lr": 0.01})
    kept: list[list[int]] = []
    trainer._validate = lambda monitor: losses[trainer.progress.epoch + 1]  # type: ignore[method-assign]
    finish = trainer._finish_epoch

    def listing() -> None:
        finish()
        kept.append(sorted(checkpoint.epoch_paths(tmp_path)))

    trainer._finish_epoch = listing  # type: ignore[method-assign]
    assert trainer.run()["best_epoch"] == 4
    assert kept == [[1], [2], [2, 3], [4], [4, 5], [4, 6]]
    assert [checkpoint.load_recogniser(tmp_path, epoch)[3] for epoch in ("last", "best", 4)] == [6, 4, 4]
    assert [checkpoint.load_epoch(tmp_path, epoch)["progress"]["epoch"] for epoch in ("last", "best")] == [6, 4]


def test_an_epoch_that_ends_early_has_no_validation(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    saving = {"least_updates": 12, "every_updates": 2}
    whole = toy_trainer(tmp_path / "whole", cuts, lang, saving=saving)
    whole.run()
    assert whole.progress.epoch == 2 and whole.progress.validated == whole.progress.updates == 16
    assert list(checkpoint.epoch_paths(tmp_path / "whole")) == [2]
    dies(toy_trainer(tmp_path / "killed", cuts, lang, saving=saving), 13, "_update")
    toy_trainer(tmp_path / "killed", cuts, lang, saving=saving).run()
    assert_same_training(tmp_path / "whole", tmp_path / "killed")


def test_a_disk_without_room_leaves_the_last_checkpoint(
    tmp_path: Path, cuts: CutSet, lang: Lang, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_trainer(tmp_path / "whole", cuts, lang).run()
    full = toy_trainer(tmp_path / "full", cuts, lang)
    save = torch.save

    def fills_up(content, file):
        if full.progress.updates >= 5:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(content, file)

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"last\.pt: no space left on device"):
        patched.setattr(torch, "save", fills_up)
        full.run()
    assert list(tmp_path.rglob("*.tmp")) == []
    toy_trainer(tmp_path / "full", cuts, lang).run()
    assert_same_training(tmp_path / "whole", tmp_path / "full")


def test_an_epoch_without_batches_is_an_error(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    trainer = toy_trainer(tmp_path, cuts, lang)
    trainer.plan = replace(trainer.plan, batches=lambda epoch, skip: (batch for batch in ()))
    with pytest.raises(ValueError, match="epoch 1 has no batches"):
        trainer.run()


def test_only_epochs_of_this_training_are_removed(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    (tmp_path / "epoch-99.pt").write_bytes(b"of another training")
    trainer = toy_trainer(tmp_path, cuts, lang, saving={"every_updates": 50, "keep": 1})
    best = trainer.run()["best_epoch"]
    names = {f"epoch-{number}.pt" for number in (99, best, trainer.progress.epoch)}
    assert {path.name for path in tmp_path.glob("*.pt")} == names | {"last.pt", "last-1.pt"}


def test_a_checkpoint_without_scales_of_groups_is_continued(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    trainer = toy_trainer(tmp_path, cuts, lang)
    trainer._save("last.pt")
    content = checkpoint.load(tmp_path / "last.pt")
    for group in content["optimizer"]["param_groups"]:
        del group["lr_scale"]
    checkpoint.save(tmp_path / "last.pt", content)
    again = toy_trainer(tmp_path, cuts, lang)
    again._resume()
    assert [group["lr_scale"] for group in again.optimiser.param_groups] == [1.0]
