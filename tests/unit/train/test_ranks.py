"""One, two and four processes train alike, are shared out evenly, and end together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import CutSet

from distill.batch import BEGIN
from distill.graphs.lexicon import Lang
from distill.models import checkpoint
from distill.train import distributed
from distill.train.distributed import Ranks, join
from distill.train.stopping import exit_status
from tests.support.training import (
    PLAIN,
    RANDOM,
    assert_same_training,
    in_ranks,
    toy_trainer,
    write_letters,
    write_speech,
)

Run = tuple[list[float], dict[str, torch.Tensor], float]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> Lang:
    return write_letters(tmp_path_factory.mktemp("lang"))


def trained(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang, updates: int, noise: dict, accumulate: int) -> Run:
    """Loss of each update, gradients of the first, validation loss at the end."""
    optim = {"updates": updates, "lr": 0.003, "accumulate": accumulate}
    trainer = toy_trainer(folder, cuts, lang, ranks, noise, double=True, optim=optim)
    losses: list[float] = []
    gradients: dict[str, torch.Tensor] = {}
    update = trainer._update

    def noting(group, rate):
        values = update(group, rate)
        losses.append(values["loss"])
        if not gradients:
            gradients.update(
                {k: p.grad.clone().numpy() for k, p in trainer.step.model.named_parameters() if p.grad is not None}
            )
        return values

    trainer._update = noting  # type: ignore[method-assign]
    return losses, gradients, trainer.run()["valid_loss"]


def close(left: Run, right: Run) -> None:
    assert left[0] == pytest.approx(right[0], rel=1e-6) and left[2] == pytest.approx(right[2], rel=1e-6)
    assert left[1].keys() == right[1].keys()
    largest = max(abs(value).max() for value in left[1].values())
    for name, value in left[1].items():
        assert abs(value - right[1][name]).max() <= 1e-6 * largest, name


def test_one_two_and_four_processes_train_alike(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    alone = trained(Ranks(), tmp_path / "1", cuts, lang, 50, PLAIN, 1)
    assert len(alone[0]) == 50 and alone[0][-1] < alone[0][0]
    for world in (2, 4):
        results = in_ranks(world, trained, tmp_path / str(world), cuts, lang, 50, PLAIN, 1)
        for result in results:
            close(alone, result)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_are_alike_too(tmp_path: Path, cuts: CutSet, lang: Lang, accumulate: int) -> None:
    alone = trained(Ranks(), tmp_path / "1", cuts, lang, 4, PLAIN, accumulate)
    close(alone, in_ranks(2, trained, tmp_path / "2", cuts, lang, 4, PLAIN, accumulate)[1])


def test_more_ranks_than_cuts_train_alike(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    few = cuts.subset(first=2)
    alone = trained(Ranks(), tmp_path / "1", few, lang, 3, PLAIN, 1)
    for result in in_ranks(4, trained, tmp_path / "4", few, lang, 3, PLAIN, 1):
        close(alone, result)


def pretrained(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang, objective: dict) -> dict[str, np.ndarray]:
    trainer = toy_trainer(folder, cuts, lang, ranks, RANDOM, objective=objective, optim={"updates": 4, "lr": 0.003})
    trainer.run()
    return {name: value.numpy() for name, value in trainer.step.state_dict().items()}


def test_ranks_pretrain_the_same_model_where_one_has_no_cut(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    """Masks and negatives are of each rank's own; no rank waits for gradients that another has none of."""
    objective = {"contrastive": {"codewords": 5, "final_dim": 4, "negatives": 3}}
    few = cuts.subset(first=3)
    one, *others = in_ranks(4, pretrained, tmp_path, few, lang, objective)
    assert any(name.startswith("objective.contrastive.") for name in one)
    for other in others:
        assert all(np.isfinite(x).all() and np.array_equal(x, other[name]) for name, x in one.items())


def without(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang) -> tuple[list[bool], float, list[np.ndarray]]:
    """Whether each update had a loss, the mean of those, and the weights; the second batch is lost on every rank."""
    trainer = toy_trainer(folder, cuts, lang, ranks, optim={"updates": 4, "lr": 0.003})
    whole, used, update = trainer.plan.batches, [], trainer._update

    def batches(*place: Any) -> Generator[Any, None, None]:
        for number, batch in enumerate(whole(*place)):
            yield replace(batch, ids=() if number == 1 else batch.ids)

    trainer.plan = replace(trainer.plan, batches=batches)
    trainer._update = lambda *group: used.append(update(*group)) or used[-1]  # type: ignore[method-assign]
    loss = trainer.run()["train_loss"]
    return [bool(values) for values in used], loss, [x.detach().numpy() for x in trainer.clipped[0]]


def test_an_update_without_an_utterance_is_one_on_no_rank(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    alone, *both = (
        *in_ranks(1, without, tmp_path / "1", cuts, lang),
        *in_ranks(2, without, tmp_path / "2", cuts, lang),
    )
    for used, loss, weights in both:
        assert used == alone[0] == [True, False, True, True] and loss == pytest.approx(alone[1], rel=1e-4)
        assert all(np.array_equal(x, y) for x, y in zip(weights, both[0][2], strict=True))


DROP = {"dropout": 0.0, "layer_drop": 0.5}


def test_blocks_are_dropped_alike(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    alone = trained(Ranks(), tmp_path / "1", cuts, lang, 20, DROP, 1)
    for result in in_ranks(2, trained, tmp_path / "2", cuts, lang, 20, DROP, 1):
        close(alone, result)


def run_until(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang, updates: int, rank: int, ends: int) -> object:
    """Train; before an update, one rank is ended by a signal. Returns exit status or message."""
    trainer = toy_trainer(folder, cuts, lang, ranks, RANDOM)
    update = trainer._update

    def ending(group, rate):
        if trainer.progress.updates == updates and ranks.rank == rank:
            os.kill(os.getpid(), ends)
        return update(group, rate)

    trainer._update = ending  # type: ignore[method-assign]
    begun = time.monotonic()
    try:
        trainer.run()
    except (SystemExit, RuntimeError) as ended:
        return str(ended), trainer.progress.updates, time.monotonic() - begun
    return "finished", trainer.progress.updates, 0.0


def whole(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang) -> None:
    toy_trainer(folder, cuts, lang, ranks, RANDOM).run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_ends_all_after_the_same_update(
    tmp_path: Path, cuts: CutSet, lang: Lang, number: int
) -> None:
    in_ranks(2, whole, tmp_path / "whole", cuts, lang)
    ended = in_ranks(2, run_until, tmp_path / "ended", cuts, lang, 4, 1, number)
    assert [(status, updates) for status, updates, _ in ended] == [(str(exit_status(number)), 5)] * 2
    assert checkpoint.load(tmp_path / "ended/last.pt")["progress"]["updates"] == 5
    in_ranks(2, whole, tmp_path / "ended", cuts, lang)
    assert_same_training(tmp_path / "whole", tmp_path / "ended")


@pytest.mark.parametrize("dies", [0, 1])
def test_when_a_rank_dies_the_other_stops_and_names_the_way_out(
    tmp_path: Path, cuts: CutSet, lang: Lang, dies: int
) -> None:
    results = in_ranks(2, run_until, tmp_path / "died", cuts, lang, 4, dies, signal.SIGKILL, lost=dies)
    message, _, seconds = results[1 - dies]
    assert "another rank stopped" in message and "continues from the last checkpoint" in message and seconds < 60
    in_ranks(2, whole, tmp_path / "died", cuts, lang)
    in_ranks(2, whole, tmp_path / "whole", cuts, lang)
    assert_same_training(tmp_path / "whole", tmp_path / "died")


@pytest.mark.parametrize(("world", "hangs"), [(2, 0), (3, 1)])
def test_when_a_rank_hangs_the_others_stop_and_name_it(
    tmp_path: Path, cuts: CutSet, lang: Lang, world: int, hangs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_TIMEOUT", "5")
    monkeypatch.setattr(distributed, "ROLL_CALL", 3.0)
    results = in_ranks(world, run_until, tmp_path, cuts, lang, 4, hangs, signal.SIGSTOP, lost=hangs)
    message, updates, _ = results[0 if hangs else 1]
    assert f"no answer from rank {hangs}, hung or cut off; another rank waits 5 s" in message and updates == 4
    assert "DISTILL_TIMEOUT" in message and "continues from the last checkpoint" in message
    assert all(
        "another rank stopped" in each[0] for n, each in enumerate(results) if n not in (hangs, 0 if hangs else 1)
    )


def test_another_number_of_ranks_continues(
    tmp_path: Path, cuts: CutSet, lang: Lang, caplog: pytest.LogCaptureFixture
) -> None:
    in_ranks(2, run_until, tmp_path, cuts, lang, 4, 0, signal.SIGTERM)
    with caplog.at_level("INFO"):
        result = toy_trainer(tmp_path, cuts, lang, noise=RANDOM).run()
    assert result["updates"] == 16 and "begun on 2 processes, continued on 1: batches, their order" in caplog.text
    assert "masks and dropout are drawn anew" in caplog.text


def continued(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang, until: int) -> list[tuple[float, set[str]]]:
    """Train up to an update, from where the folder's checkpoint is; the loss and this rank's cuts of each update."""
    trainer = toy_trainer(folder, cuts, lang, ranks, PLAIN)
    found, update = [], trainer._update

    def noting(group, rate):
        if trainer.progress.updates == until - 1 and ranks.first:
            os.kill(os.getpid(), signal.SIGTERM)
        values = update(group, rate)
        found.append((values["loss"], {cut_id for batch in group if batch.seconds for cut_id in batch.ids}))
        return values

    trainer._update = noting  # type: ignore[method-assign]
    with contextlib.suppress(SystemExit):
        trainer.run()
    return found


@pytest.mark.parametrize("worlds", [(1, 2, 1), (2, 4)])
def test_the_loss_goes_on_with_another_number_of_ranks(
    tmp_path: Path, cuts: CutSet, lang: Lang, worlds: tuple[int, ...]
) -> None:
    whole, updates = continued(Ranks(), tmp_path / "whole", cuts, lang, 99), list[tuple[float, set[str]]]()
    for world, until in zip(worlds, (5, 10, 99) if len(worlds) == 3 else (7, 99), strict=True):
        of_ranks = in_ranks(world, continued, tmp_path / "continued", cuts, lang, until)
        for parts in zip(*of_ranks, strict=True):
            updates.append((parts[0][0], set[str]().union(*(ids for _, ids in parts))))
            assert sum(len(ids) for _, ids in parts) == len(updates[-1][1])  # each cut by one rank
    assert [ids for _, ids in updates] == [ids for _, ids in whole]
    assert [loss for loss, _ in updates] == pytest.approx([loss for loss, _ in whole], rel=1e-3)


def other_folders(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang) -> str:
    try:
        toy_trainer(folder / f"{ranks.rank}", cuts, lang, ranks).run()
    except ValueError as error:
        return str(error)
    return "trained"


def test_ranks_without_a_shared_folder_are_refused(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    toy_trainer(tmp_path / "1", cuts, lang).run()
    results = in_ranks(2, other_folders, tmp_path, cuts, lang)
    assert all("they must share exp-dir" in message for message in results)


def test_not_finite_names_the_cuts_of_all_ranks(tmp_path: Path, cuts: CutSet, lang: Lang) -> None:
    batches = in_ranks(2, second_epoch, tmp_path, cuts, lang)
    assert len(set(batches)) == 2
    for message in in_ranks(2, broken, tmp_path, cuts, lang):
        assert "update 1: loss not finite" in message and "look at these cuts: " in message
        assert set(re.findall(r"cut-\d+", message)) == {cut_id for ids in batches for cut_id in ids}
        assert all(str(tmp_path / f"nonfinite-1-{rank}.npz") in message for rank in range(2))
    for rank, ids in enumerate(batches):
        written = np.load(tmp_path / f"nonfinite-1-{rank}.npz")
        assert tuple(written["0.ids"]) == ids and len(written["0.wave"]) == len(ids)
        assert written["0.samples"].max() == written["0.wave"].shape[1] and abs(written["0.wave"]).max() > 0.1


def second_epoch(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang) -> tuple[str, ...]:
    return next(toy_trainer(folder, cuts, lang, ranks).plan.batches(1, BEGIN)).ids


def broken(ranks: Ranks, folder: Path, cuts: CutSet, lang: Lang) -> str:
    trainer = toy_trainer(folder, cuts, lang, ranks)
    try:
        trainer._check_finite({"loss": float("nan")}, [next(trainer.plan.batches(1, BEGIN))])
    except FloatingPointError as error:
        return str(error)
    return "passed"


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE and LOCAL_RANK not; .* unset RANK"):
        join("cpu")


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="--device cuda: torch finds no GPU"):
        join("cuda")
