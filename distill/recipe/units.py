"""Units of frames for an experiment that needs them: k-means on a sample of its audio, then labels of all cuts.

They are made before its training, in the same stage, and shared by experiments with equal settings. The labels are
stored in shards, which ranks and jobs write as they do those of lattices (`distill.recipe.labelling`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment, maker_of, stage_of
from distill.config.units import CODEWORDS, Units
from distill.files import write_json, write_text
from distill.recipe.labelling import blocks, each_shard
from distill.recipe.locks import locked
from distill.recipe.options import Recipe
from distill.recipe.stage import Alone, Stage

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from distill.batch import Batch
    from distill.train.distributed import Ranks

log = logging.getLogger("units")
TOGETHER = 100  # cuts that are read at once to find the units
SECONDS = 200.0  # of audio in a batch for features
PROGRESS_SECONDS = 60.0  # between two lines about the units that are being found


def units_stage(recipe: Recipe, experiment: Experiment) -> Stage | None:
    """The stage that writes the units of an experiment; None where it needs none."""
    if experiment.units is None:
        return None
    settings = {"units": experiment.units.resolved(), "train": experiment.data.train, "valid": experiment.data.valid}
    inputs = recipe.cut_sets(experiment.data.parts)
    if source := experiment.units.experiment:
        inputs[recipe.exp(source)] = stage_of(maker_of(recipe.conf_dir, source, recipe.suffix))
    return Stage(5, recipe.frame_units / experiment.units_folder, settings, inputs, resumable=True)


def with_units(recipe: Recipe, experiment: Experiment, quiet: bool = False) -> Experiment:
    """The experiment; where it compares codewords and its teacher has none, with units of the teacher's states.

    They are of the block at three quarters of its depth, as HuBERT's second iteration takes them.
    """
    compares = any(term.codes for term in experiment.objective.terms.values())
    if experiment.units is not None or experiment.teacher is None or not compares:
        return experiment
    from distill.models import checkpoint

    name = experiment.teacher.experiment
    if not checkpoint.epoch_paths(recipe.exp(name)):
        return experiment
    content = checkpoint.load_epoch(recipe.exp(name))
    if checkpoint.code_head_state(content):
        return experiment
    layers = content["experiment"]["model"]["encoder"]["layers"]
    units = Units(of=name, layer=max(1, 3 * layers // 4), clusters=CODEWORDS)
    if not quiet:
        log.info(
            "%s: its teacher %s has no codewords, so that %d are found by k-means of its block %d (`units` gives"
            " others)", experiment.name, name, units.clusters, units.layer,
        )  # fmt: skip
    return experiment.model_copy(update={"units": units})


def make_units(recipe: Recipe, ranks: Alone | Ranks, experiment: Experiment, folder: Path) -> None:
    """inventory.npz, and where a term predicts units the labels of all frames."""
    assert experiment.units is not None
    find_inventory(recipe, experiment.units, experiment.data.train, folder)
    if experiment.predicts_units:
        label_frames(recipe, ranks, experiment, folder)
    frames_of.cache_clear()  # the training needs the memory


def label_frames(recipe: Recipe, ranks: Alone | Ranks, experiment: Experiment, folder: Path) -> None:
    """Shards of labels in a folder per part; skipped.tsv; summary.json with counts of each cluster."""
    from distill.data import units

    settings, data = experiment.units, experiment.data
    assert settings is not None
    parts = data.parts
    write = partial(write_shard, settings=settings, train=data.train, folder=folder)
    each_shard(recipe, ranks, parts, folder, write)
    if recipe.job or not ranks.first:
        return
    summary, skipped = {}, []
    for part in parts:
        units.LABELS.finish(folder / part, len(blocks(recipe.cuts, part)))
        found = units.Summary(settings.clusters)
        for path in units.LABELS.paths(folder / part):
            found.add(units.UnitShard(path))
        summary[part] = found.figures()
        skipped += [f"{cut_id}\t{reason}\n" for cut_id, reason in sorted(found.without_labels)]
        log.info("%s: perplexity of the units %g, of %d", part, summary[part]["perplexity"], settings.clusters)
    write_text(folder / "skipped.tsv", "".join(skipped))
    write_json(folder / "summary.json", summary)


def find_inventory(recipe: Recipe, settings: Units, train: tuple[str, ...], folder: Path) -> None:
    """Write the inventory of a folder unless it is there; of several calls or ranks one does, and the others wait."""
    from distill.corpora.cut_sets import spread
    from distill.data.units import INVENTORY, find_units

    with locked(folder / INVENTORY, wait=True):
        if (folder / INVENTORY).is_file():
            return
        frames, files = frames_of(recipe, settings, train), [blocks(recipe.cuts, part) for part in train]
        every, seconds = sum(int(file.counts.sum()) for file in files), sum(float(file.seconds.sum()) for file in files)
        count = math.ceil(every * min(1.0, 3600 * settings.hours / max(1.0, seconds)))
        log.info("finding %d units of %s in %d of %d utterances", settings.clusters, settings.of, count, every)
        cuts = spread(files, count, settings.seed)
        groups = iter(lambda: list(islice(cuts, TOGETHER)), [])
        shown = _with_progress(groups, count)
        rows = (row for group in shown for _, row in frames.of(group) if not isinstance(row, str))
        find_units(rows, frames.origin).write(folder / INVENTORY)


def _with_progress(groups: Iterator[list[Any]], count: int) -> Iterator[list[Any]]:
    """The groups of utterances, and every minute a line that says how many of `count` are done."""
    done, shown = 0, time.monotonic()
    for group in groups:
        yield group
        done += len(group)
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("units: %d of %d utterances", done, count)


def write_shard(
    recipe: Recipe, item: tuple[str, int], settings: Units, train: tuple[str, ...], folder: Path
) -> None:  # fmt: skip
    """Write shard `item`, (part, number), with the labels of a block of the cuts."""
    from distill.data import units
    from distill.data.shards import shard_path

    part, number = item
    cuts, frames = blocks(recipe.cuts, part), frames_of(recipe, settings, train)
    inventory = units.Inventory.load(folder / units.INVENTORY, frames.origin)
    rows = frames.of(cuts.read(number))
    labels = {cut_id: row if isinstance(row, str) else inventory.labels(row) for cut_id, row in rows}
    units.write_shard(shard_path(folder / part, number), labels)
    log.info("%s: units of %d cuts, shard %d of %d", part, len(labels), number + 1, len(cuts))


@cache
def frames_of(recipe: Recipe, settings: Units, train: tuple[str, ...]) -> Frames:
    return Frames(recipe, settings, train)


class Frames:
    """What is clustered: features, or hidden states of a model, loaded once per process. train: parts to find it in."""

    def __init__(self, recipe: Recipe, settings: Units, train: tuple[str, ...]) -> None:
        import torch

        from distill.data.units import Origin
        from distill.models import checkpoint

        torch.set_num_threads(1 if recipe.device == "cpu" else recipe.threads)  # sums depend on their number
        self.settings, self.device, self.model, self.batch_seconds = settings, recipe.device, None, SECONDS
        weights = ""
        if settings.experiment is not None:
            model, trained, _, _ = checkpoint.load_recogniser(recipe.exp(settings.experiment))
            weights = checkpoint.weights_of(model)
            self.model, self.batch_seconds = model.to(recipe.device), 4 * trained.data.max_duration
        self.origin = Origin.of_settings(settings, train, weights)

    def of(self, cuts: Sequence[Any]) -> Iterator[tuple[str, np.ndarray | str]]:
        """Frames (T, D) of each cut by its id, or why there are none; the longest first."""
        from distill.data.loader import SpeechDataset, in_order

        for batch in in_order(cuts, SpeechDataset(None, None, 0, False, False), self.batch_seconds, strict=False):
            yield from batch.left_out
            if batch.counted:
                for cut_id, row in zip(batch.ids, self._rows(batch.to(self.device))):
                    yield cut_id, row.cpu().numpy() if len(row) else f"cut {cut_id} is shorter than a frame"

    def _rows(self, batch: Batch) -> list[Tensor]:
        import torch

        from distill.data.units import features

        if self.model is None:
            return [features(self.settings.of, wave[:size]) for wave, size in zip(batch.wave, batch.samples)]
        with torch.no_grad():
            output = self.model(batch.wave, batch.samples)
        return [row[:size] for row, size in zip(output.hidden[self.settings.layer], output.lengths)]
