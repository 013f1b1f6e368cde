"""Batches from loading processes: the same ones, without gathering handles or memory; shares of ranks."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

import distill.data.loader as module
from distill.batch import BEGIN, Place
from distill.config.experiment import Experiment
from distill.config.model import FrontEnd
from distill.data.augment import Distortion
from distill.data.loader import SpeechDataset, TrainLoader, in_order, share
from distill.data.shards import shard_path
from distill.data.units import LABELS, UnitLabels, write_shard
from distill.graphs.lexicon import Lang
from distill.train.distributed import Ranks
from tests.support.training import SETTINGS, in_ranks, loader_of, made_numerators, write_letters, write_speech


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> Lang:
    return write_letters(tmp_path_factory.mktemp("lang"))


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 8)
    monkeypatch.setattr("torch.utils.data.DataLoader.check_worker_number_rationality", lambda self: None)


def experiment(**data) -> Experiment:
    return Experiment.parse({**SETTINGS, "data": {**SETTINGS["data"], **data}}, "toy")


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def handles_and_memory() -> tuple[int, float]:
    """Most open files of this process and its loading processes, and MiB of memory of the largest."""
    pids = [os.getpid(), *children()]
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return max(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids), max(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def repeated(cuts: CutSet, times: int) -> CutSet:
    return CutSet.from_cuts(cut.with_id(f"{cut.id}-{n}") for n in range(times) for cut in cuts)


def test_handles_and_memory_stay_flat_over_two_thousand_batches(cuts: CutSet, lang: Lang, tmp_path: Path) -> None:
    many = repeated(cuts.subset(first=20), 100)
    units = unit_labels(many, tmp_path)
    loader = loader_of(many, made_numerators(lang), experiment(max_duration=0.1, workers=4), units=units)
    measured, count, others = [], 0, set(children())
    for count, batch in enumerate(loader.epoch(0), 1):
        assert len(batch.graphs) == 1 and batch.units is not None
        if count in (100, 1900):
            assert len({*children()} - others) == 4
            measured.append(handles_and_memory())
    assert count == 2000
    (_, memory), (handles, later) = measured
    assert handles < 200 and later < memory + 30


def unit_labels(cuts: CutSet, folder: Path, left_out: str = "") -> UnitLabels:
    """Random units of 20 ms, but for one cut units of 10 ms."""
    rng, front = np.random.default_rng(0), FrontEnd()
    frames = {cut.id: front.frames(cut.num_samples) * (2 if cut.id == left_out else 1) for cut in cuts}
    write_shard(
        shard_path(folder, 0), {name: rng.integers(9, size=count).astype("h") for name, count in frames.items()}
    )
    LABELS.finish(folder, 1)
    return UnitLabels([folder], front)


@pytest.mark.parametrize("workers", [0, 3])
def test_units_come_with_their_utterances(cuts: CutSet, tmp_path: Path, workers: int) -> None:
    units = unit_labels(cuts, tmp_path, left_out="cut-0003")
    loader = loader_of(cuts, None, experiment(workers=workers, max_duration=1.0), units=units)
    seen, left_out = [], {}
    for batch in loader.epoch(0):
        left_out |= dict(batch.left_out)
        seen += batch.ids
        assert batch.units is not None and batch.units.shape == (len(batch.ids), FrontEnd().frames(batch.wave.shape[1]))
        for name, row, samples in zip(batch.ids, batch.units, batch.samples.tolist()):
            shard, frames = units.find(name), FrontEnd().frames(samples)
            assert shard is not None
            assert row[:frames].tolist() == shard[name].tolist() and (row[frames:] == -1).all()
    assert sorted([*seen, "cut-0003"]) == sorted(cut.id for cut in cuts)
    assert left_out.keys() == {"cut-0003"} and "labels of another frame rate" in left_out["cut-0003"]


@pytest.mark.parametrize("keep", [False, True])
def test_loading_processes_change_nothing(cuts: CutSet, lang: Lang, keep: bool) -> None:
    alone, helped = (
        loader_of(cuts, made_numerators(lang), experiment(workers=workers, keep_audio=keep)) for workers in (0, 3)
    )
    for epoch in (0, 1):
        for one, other in zip(alone.epoch(epoch), helped.epoch(epoch), strict=True):
            assert one.ids == other.ids and torch.equal(one.wave, other.wave)
            for left, right in zip(one.graphs, other.graphs, strict=True):
                assert type(left) is type(right) and torch.equal(left.src, right.src)
                assert torch.equal(left.weight, right.weight) and left.accepts_empty == right.accepts_empty


def test_kept_audio_outlives_the_loading_processes(tmp_path: Path, lang: Lang) -> None:
    loader = loader_of(write_speech(tmp_path, 4), made_numerators(lang), experiment(workers=2, keep_audio=True))
    first = {id_ for batch in loader.epoch(0) for id_ in batch.ids}
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    assert {id_ for batch in loader.epoch(1) for id_ in batch.ids} == first and len(first) == 4


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_audio_is_kept_as_it_was_read(tmp_path: Path, cuts: CutSet, subtype: str) -> None:
    cut = copy.deepcopy(cuts[0])
    wave = np.random.default_rng(0).standard_normal(cut.num_samples)  # beyond -1..1 in places
    soundfile.write(tmp_path / "x.wav", wave, 16000, subtype=subtype)
    cut.recording.sources[0].source = str(tmp_path / "x.wav")
    dataset = SpeechDataset(None, None, 0, False, True)
    assert torch.equal(dataset[[cut]].wave, dataset[[cut]].wave)


def test_what_was_trained_on_is_not_read_again(cuts: CutSet, lang: Lang, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(cuts, made_numerators(lang), experiment(workers=0))
    read: list[str] = []
    original = SpeechDataset._read
    monkeypatch.setattr(SpeechDataset, "_read", lambda self, cut: read.append(cut.id) or original(self, cut))
    rest = [id_ for batch in loader.epoch(0, Place(0, 3)) for id_ in batch.ids]
    assert sorted(read) == sorted(rest) and 0 < len(rest) < len(cuts)


# Ranks


def epochs(ranks: Ranks, cuts: CutSet, lang: Lang) -> list[list[tuple[str, ...]]]:
    loader = loader_of(cuts, made_numerators(lang), experiment(workers=0), ranks)
    return [[batch.ids if batch.counted else () for batch in loader.epoch(number)] for number in (0, 1)]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one_process(cuts: CutSet, lang: Lang, world: int) -> None:
    alone, shares = epochs(Ranks(), cuts, lang), in_ranks(world, epochs, cuts, lang)
    for number in (0, 1):
        for whole, *parts in zip(alone[number], *(ids[number] for ids in shares), strict=True):
            assert sorted(id_ for part in parts for id_ in part) == sorted(whole)
    assert all(ids for ids in alone[0])


def test_shares_are_even_in_audio(cuts: CutSet) -> None:
    loads = [sum(cut.duration for cut in share(list(cuts), rank, 3)) for rank in range(3)]
    assert max(loads) - min(loads) <= max(cut.duration for cut in cuts)
    assert sum(loads) == pytest.approx(sum(cut.duration for cut in cuts))


def test_more_ranks_than_cuts_leave_some_without(cuts: CutSet, lang: Lang) -> None:
    distortion = Distortion(pitch_probability=0.0)
    few = cuts.subset(first=1)
    loader = loader_of(few, made_numerators(lang), experiment(workers=0), Ranks(1, 2), distortion=distortion)
    (batch,) = loader.epoch(0)
    assert not batch.counted and batch.seconds == 0 and len(batch.wave) == len(batch.graphs) == 1


def validated(ranks: Ranks, cuts: CutSet) -> list[str]:
    reading = SpeechDataset(None, None, 0, False, False)
    return [id_ for batch in in_order(cuts, reading, 1.0) for id_ in batch.ids]


def test_in_order_gives_every_rank_its_whole_share(cuts: CutSet) -> None:
    for ids in in_ranks(2, validated, cuts):
        assert sorted(ids) == sorted(cut.id for cut in cuts)


def test_no_cuts_are_no_batches() -> None:
    assert list(in_order(CutSet.from_cuts([]), SpeechDataset(None, None, 0, False, False), 1.0)) == []


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
def test_workers_leave_signals_to_the_training_process(
    cuts: CutSet, lang: Lang, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def late(worker: int) -> None:
        time.sleep(worker)  # the second is not ready when the signal comes
        begin_loading(worker)

    begin_loading = module._begin_loading
    monkeypatch.setattr(module, "_begin_loading", late)
    loader = loader_of(repeated(cuts, 10), made_numerators(lang), experiment(workers=2))
    batches: Iterator = loader.epoch(0)
    next(batches)
    for pid in children():
        os.kill(pid, number)
    assert len(list(batches)) == loader.count(0) - 1


def test_a_share_is_part_of_larger_ones(cuts: CutSet, lang: Lang) -> None:
    many = repeated(cuts, 10)
    found = {}
    for share_of_all in (1.0, 0.5, 0.1):
        loader = loader_of(many, made_numerators(lang), experiment(workers=0, share=share_of_all))
        found[share_of_all] = {id_ for batch in loader.epoch(0) for id_ in batch.ids}
        assert loader.count(0) == sum(1 for _ in loader.epoch(0))
    assert found[0.1] < found[0.5] < found[1.0] == {cut.id for cut in many}
    with pytest.raises(ValueError, match=r"data\.share: 1e-09 of \d+ cuts are none; give a larger share"):
        list(loader_of(many, made_numerators(lang), experiment(workers=0, share=1e-9)).epoch(0))
    assert 0.4 < len(found[0.5]) / len(many) < 0.6 and 0.05 < len(found[0.1]) / len(many) < 0.15


# Windows


def ids_of(loader: TrainLoader, number: int, place: Place = BEGIN) -> list[str]:
    return [id_ for batch in loader.epoch(number, place) for id_ in batch.ids]


def test_an_epoch_of_several_windows_is_every_cut_once(cuts: CutSet, lang: Lang) -> None:
    loader = loader_of(cuts, made_numerators(lang), experiment(workers=0, window=8), block=4)
    assert loader.windows == 3
    first, second = ids_of(loader, 0), ids_of(loader, 1)
    assert sorted(first) == sorted(second) == sorted(cut.id for cut in cuts) and first != second
    in_window = [{batch.after.window for batch in loader.epoch(n) if "cut-0000" in batch.ids} for n in range(6)]
    assert len(set(map(tuple, in_window))) > 1, "windows have other blocks in each epoch"


def test_every_place_continues_with_the_rest(cuts: CutSet, lang: Lang, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(cuts, made_numerators(lang), experiment(workers=0, window=8), block=4)
    batches = list(loader.epoch(1))
    read: list[int] = []
    original = TrainLoader._block
    monkeypatch.setattr(TrainLoader, "_block", lambda self, block: read.append(block) or original(self, block))
    for done, batch in enumerate(batches, 1):
        loader._read.cache_clear()
        read.clear()
        rest = [each.ids for each in loader.epoch(1, batch.after)]
        assert rest == [each.ids for each in batches[done:]]
        assert len(read) == 2 * (3 - batch.after.window), "windows before the place are not read"


def test_the_number_of_batches_is_exact_in_one_window_and_near_in_several(cuts: CutSet, lang: Lang) -> None:
    many = repeated(cuts, 20)
    one, several = (
        loader_of(many, made_numerators(lang), experiment(workers=0, window=w), block=20) for w in (9999, 80)
    )
    assert one.count(1) == len(list(one.epoch(1)))
    assert several.count(3) == pytest.approx(len(list(several.epoch(3))), rel=0.1)


# What cannot be trained on


@pytest.mark.parametrize("workers", [0, 2])
def test_utterances_that_cannot_be_used_are_left_out_with_reasons(tmp_path: Path, lang: Lang, workers: int) -> None:
    cuts = write_speech(tmp_path, 12)
    loader = loader_of(cuts, made_numerators(lang), experiment(workers=workers))
    files = sorted(tmp_path.glob("*.wav"))
    files[1].write_bytes(files[1].read_bytes()[:30])
    files[3].unlink()
    wave = np.full(4000, np.nan, dtype=np.float32)
    soundfile.write(files[5], wave, 16000, subtype="FLOAT", format="WAV")
    next(cut for cut in cuts if cut.id == "cut-0007").supervisions[0].text = "A ZEBRA"
    batches = list(loader.epoch(0))
    left_out = dict(cut for batch in batches for cut in batch.left_out)
    assert sorted(left_out) == ["cut-0001", "cut-0003", "cut-0005", "cut-0007"]
    assert "ZEBRA" in left_out["cut-0007"] and left_out["cut-0003"] == f"cut cut-0003: no such file: {files[3]}"
    assert sorted(id_ for batch in batches for id_ in batch.ids) == sorted({cut.id for cut in cuts} - {*left_out})
    assert all(len(batch.ids) == len(batch.samples) == len(batch.graphs) for batch in batches if batch.ids)


def test_a_corpus_without_a_usable_utterance_is_an_error(tmp_path: Path, lang: Lang) -> None:
    cuts = repeated(write_speech(tmp_path, 4), 99)
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    few = loader_of(cuts.subset(first=4), made_numerators(lang), experiment(workers=0))
    with pytest.raises(ValueError, match=r"none of 4 cuts can be trained on; cut cut-000.*no such file"):
        list(few.epoch(0))
    many = loader_of(cuts, made_numerators(lang), experiment(workers=2))
    with pytest.raises(ValueError, match=r"^100 batches in a row without a usable utterance; cut cut-000.*no such"):
        list(many.epoch(0))


def test_bad_files_spread_over_a_corpus_do_not_end_an_epoch(tmp_path: Path, lang: Lang) -> None:
    cuts = repeated(write_speech(tmp_path, 12), 60)
    for path in sorted(tmp_path.glob("*.wav"))[1:]:
        path.unlink()
    batches = list(loader_of(cuts, made_numerators(lang), experiment(max_duration=0.1, workers=0)).epoch(1))
    lost = [len(list(run)) for used, run in groupby(batches, lambda batch: bool(batch.ids)) if not used]
    assert sum(bool(batch.ids) for batch in batches) == 60 and len(batches) == 720 and max(lost) > 20


def test_a_damaged_shard_in_a_loading_process_is_one_line(cuts: CutSet, lang: Lang) -> None:
    numerators = made_numerators(lang)
    numerators.graphs = lambda wanted: (_ for _ in ()).throw(ValueError("shard 3 is damaged"))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^shard 3 is damaged$"):
        list(loader_of(cuts, numerators, experiment(workers=2)).epoch(0))
