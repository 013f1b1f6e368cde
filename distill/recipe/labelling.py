"""Stage 7: the teacher's lattices over HLG on the unlabelled cuts, from which students make their numerators.

The lattices are stored in shards. The ranks of a launcher, or the --nj processes on a CPU, each write whole shards;
the bytes of a shard do not depend on who writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment
from distill.config.job import takes
from distill.files import write_json, write_text
from distill.recipe import parallel
from distill.recipe.options import Recipe
from distill.recipe.search import graph_decoder
from distill.recipe.stage import Alone, Stage

if TYPE_CHECKING:
    from distill.batch import Batch
    from distill.corpora.cut_sets import CutBlocks
    from distill.data.lattices import CutLattice
    from distill.fsa.lattice import Lattice
    from distill.train.distributed import Ranks

log = logging.getLogger("label_unlabelled")
USED = ("avg", "epoch", "beam", "max_active", "acoustic_scale", "lattice_beam")  # settings that labels depend on


def labelling_stage(recipe: Recipe, teacher: Experiment, parts: Sequence[str]) -> Stage:
    """The stage that writes the lattices of a teacher."""
    used = {key: value for key, value in teacher.decoding.identity().items() if key in USED}
    settings = {"decoding": used, "parts": ",".join(parts)}
    inputs = {recipe.exp(teacher.name): teacher.stage, recipe.graphs: 4, **recipe.cut_sets(parts)}
    return Stage(7, recipe.num / teacher.name, settings, inputs, resumable=True)


def label(recipe: Recipe, ranks: Alone | Ranks, name: str, parts: Sequence[str], folder: Path) -> None:
    """Shards of lattices in a folder per part; skipped.tsv; summary.json with sizes and pseudo-labels' error rates."""
    from distill.data import lattices

    chosen = recipe.experiment(name).decoding
    if (chosen.epoch, chosen.avg) != ("last", 1) and ranks.first:
        log.info(
            "lattices are of %s's decoding.epoch: %s, avg: %d; hidden states and outputs that students learn are of its"
            " last checkpoint", name, chosen.epoch, chosen.avg,
        )  # fmt: skip
    each_shard(recipe, ranks, parts, folder, partial(write_shard, name=name, folder=folder))
    if recipe.job or not ranks.first:
        return
    summary, skipped = {}, []
    for part in parts:
        cuts = blocks(recipe.cuts, part)
        lattices.LATTICES.finish(folder / part, len(cuts))
        found = lattices.Summary()
        for shard in lattices.Lattices([folder / part]).shards():
            found.add(shard)
        summary[part] = found.figures(cuts.seconds.sum())
        skipped += [f"{cut_id}\t{reason}\n" for cut_id, reason in sorted(found.without_lattice)]
        log.info("%s: %s", part, ", ".join(f"{key} {value}" for key, value in summary[part].items()))
    write_text(folder / "skipped.tsv", "".join(skipped))
    write_json(folder / "summary.json", summary)


def each_shard(
    recipe: Recipe, ranks: Alone | Ranks, parts: Sequence[str], folder: Path,
    write: Callable[[Recipe, tuple[str, int]], None],
) -> None:  # fmt: skip
    """Write the shards, (part, number), that the folders of some parts lack: one for each block of the cuts."""
    from distill.data import shards

    every = [(part, n) for part in parts for n in shards.missing(folder / part, len(blocks(recipe.cuts, part)))]
    parallel.each(recipe, ranks, (write, [shard for shard in every if takes(recipe.job, shard[1])]))


@cache
def blocks(folder: Path, part: str) -> CutBlocks:
    """The blocks of a cut set, opened once per process."""
    from distill.corpora.cut_sets import CutBlocks

    return CutBlocks(folder, part)


def write_shard(recipe: Recipe, item: tuple[str, int], name: str, folder: Path) -> None:
    """Write shard `item`, (part, number), with the lattices of the teacher `name`: those of a block of the cuts."""
    from distill.data import lattices
    from distill.data.shards import shard_path

    part, number = item
    cuts, teacher = blocks(recipe.cuts, part), labeller(recipe, name)
    entries = teacher.label(cuts.read(number))
    lattices.write_shard(shard_path(folder / part, number), entries, teacher.frame_seconds, teacher.beam)
    log.info("%s: lattices of %d cuts, shard %d of %d", part, len(entries), number + 1, len(cuts))


@cache
def labeller(recipe: Recipe, name: str) -> Labeller:
    return Labeller(recipe, recipe.experiment(name))


class Labeller:
    """The teacher with its decoding graph, loaded once per process."""

    def __init__(self, recipe: Recipe, experiment: Experiment) -> None:
        import torch

        from distill.batch import SAMPLE_RATE
        from distill.models.checkpoint import load_recogniser

        torch.set_num_threads(1 if recipe.device == "cpu" else recipe.threads)  # sums depend on their number
        chosen = experiment.decoding
        model, trained, units, _ = load_recogniser(recipe.exp(experiment.name), chosen.epoch, chosen.avg)
        self.model, self.device, self.beam = model.to(recipe.device), recipe.device, chosen.lattice_beam
        self.batch_seconds = 4 * trained.data.max_duration
        self.frame_seconds = trained.model.front_end.hop / SAMPLE_RATE
        own = replace(recipe, hlg=None)  # students depend on the lattices, and not on --hlg
        self.decoder = graph_decoder(own, experiment, units)

    def label(self, cuts: Sequence[Any]) -> list[CutLattice]:
        """The entry of each cut in a shard, by cut id; unreadable audio has none, and a reason."""
        import numpy as np

        from distill.data.lattices import CutLattice
        from distill.data.loader import SpeechDataset, in_order
        from distill.decode import log_probs
        from distill.decode.graph_decoder import decode_all

        reading = SpeechDataset(None, None, 0, False, False)
        unreadable: dict[str, str] = {}

        def usable() -> Iterator[Batch]:
            for batch in in_order(cuts, reading, self.batch_seconds, strict=False):
                unreadable.update(batch.left_out)
                if batch.counted:
                    yield batch.to(self.device)

        references = {cut.id: (cut.supervisions[0].custom or {}).get("reference") for cut in cuts if cut.supervisions}
        work = partial(self._entry, references)
        entries = dict(decode_all(self.decoder, work, log_probs.offline(self.model, usable())))
        entries |= {name: CutLattice(name, None, np.zeros(0), reason=why) for name, why in unreadable.items()}
        return [entries[name] for name in sorted(entries)]

    def _entry(self, references: Mapping[str, str | None], name: str, lattice: Lattice) -> CutLattice:
        """Unit sequences, confidences, words and counts; counts: arcs, frames, errors, oracle errors, true words."""
        import numpy as np

        from distill.data.lattices import CutLattice
        from distill.decode.graph_decoder import oracle_errors
        from distill.scoring.wer import score
        from distill.search.determinise import best_path, determinised, words_of

        path, confidence = best_path(lattice) if lattice.complete else (np.zeros(0, dtype=np.int64), np.zeros(0))
        sequences = determinised(lattice, self.decoder.new_unit, self.beam) if lattice.complete else None
        if sequences is None or next(sequences.ranked())[0] == ():
            return CutLattice(name, None, np.zeros(0))
        words, reference = words_of(lattice, path), (references.get(name) or "").split()
        counts = [lattice.num_arcs, lattice.num_frames, 0, 0, len(reference)]
        if reference:  # known for corpora whose transcripts were set aside
            counts[2] = score("", reference, [self.decoder.words[word] for word in words]).errors
            ids = [self.decoder.lang.words.get(word, -1) for word in reference]
            counts[3] = oracle_errors(determinised(lattice, None, self.beam), ids)
        return CutLattice(name, sequences, confidence, words, counts)
