"""Stage 7: the teacher's lattices over HLG on the unlabelled part; students make their numerators of them.

They are stored in shards, each written whole by one process: the ranks of a launcher share them, else the processes
of --nj on a CPU. The same shards hold the same bytes whoever wrote them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment
from distill.config.names import names_of
from distill.files import replacing, write_json
from distill.recipe import parallel
from distill.recipe.emissions import cut_set
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Alone, Stage, relaunched, run_stage

if TYPE_CHECKING:
    from distill.train.distributed import Ranks

log = logging.getLogger("label_unlabelled")
USED = ("avg", "beam", "max_active", "acoustic_scale", "lattice_beam")  # of the decoding settings


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--parts", default="unlabelled", help="cut sets, comma-separated")
    args = parser.parse_args()
    recipe, parts = recipe_from(args), names_of("--parts", args.parts)
    loaded = {name: Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
              for name in recipe.names}  # fmt: skip
    stages = {name: stage_of(recipe, each, args.parts) for name, each in loaded.items() if each.stage == 6}
    if recipe.launcher and relaunched(recipe, list(stages.values())):
        return
    ranks, recipe = parallel.join(recipe)
    for name, stage in stages.items():
        run_stage(stage, partial(write, recipe, ranks, name, parts), ranks)


def stage_of(recipe: Recipe, teacher: Experiment, parts: str) -> Stage:
    """The stage that writes the lattices of a teacher."""
    decoding = teacher.resolved()["decoding"]
    settings = {"decoding": {key: decoding[key] for key in USED}, "parts": parts}
    needed = {recipe.exp(teacher.name): 6, recipe.graphs: 4, recipe.cuts: 0}
    return Stage(7, recipe.num / teacher.name, settings, needed, resumable=True)


def write(recipe: Recipe, ranks: Alone | Ranks, name: str, parts: Sequence[str], folder: Path) -> None:
    """A folder of shards for each part; skipped.tsv; summary.json with sizes and the pseudo-labels' error rates."""
    from distill.data import lattices

    missing = [(part, k) for part in parts for k in lattices.missing(folder / part, len(ordered(recipe.cuts, part)))]
    parallel.each(recipe, ranks, (partial(write_shard, name=name, folder=folder), missing))
    if not ranks.first:
        return
    summary, skipped = {}, []
    for part in parts:
        cuts = ordered(recipe.cuts, part)
        lattices.finish(folder / part, len(cuts))
        stored = lattices.Lattices([folder / part])
        summary[part] = facts(stored, sum(cut.duration for cut in cuts))
        skipped += [f"{cut_id}\tno complete path that says something\n" for cut_id in sorted(stored.silent)]
        log.info("%s: %s", part, ", ".join(f"{key} {value}" for key, value in summary[part].items()))
    with replacing(folder / "skipped.tsv") as temporary:
        temporary.write_text("".join(skipped), encoding="utf-8")
    write_json(folder / "summary.json", summary)


@cache
def ordered(folder: Path, part: str) -> list:
    """The cuts of a part, longest first: cut into shards they need little padding."""
    return sorted(cut_set(folder, part), key=lambda cut: (-cut.duration, cut.id))


def write_shard(recipe: Recipe, item: tuple[str, int], name: str, folder: Path) -> None:
    """Lattices of the shard `item`, (part, number), by the teacher `name`."""
    from distill.data import lattices

    part, number = item
    cuts, teacher = ordered(recipe.cuts, part), labeller(recipe, name)
    found = teacher.label(lattices.shard_of(cuts, number))
    lattices.write_shard(lattices.shard_path(folder / part, number), found, teacher.shift, teacher.beam)
    log.info("%s: lattices of %d of %d cuts, shard %d", part, len(found), len(cuts), number)


def facts(stored, seconds: float) -> dict[str, Any]:
    """What summary.json holds of a part."""
    return {
        "utterances": len(stored) + len(stored.silent), "without_lattice": len(stored.silent),
        "audio_hours": round(seconds / 3600, 3), "bytes_per_second": round(stored.bytes / seconds, 1),
        **shape(stored), **quality(stored),
    }  # fmt: skip


@cache
def labeller(recipe: Recipe, name: str) -> Labeller:
    return Labeller(recipe, Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix))


class Labeller:
    """The teacher with its decoding graph."""

    def __init__(self, recipe: Recipe, experiment: Experiment) -> None:
        import torch

        from distill.batch import SAMPLE_RATE
        from distill.decode.graph_decoder import GraphDecoder
        from distill.fsa.lattice import Search
        from distill.graphs.lexicon import Lang
        from distill.lfmmi import build_engine
        from distill.models.checkpoint import load_recogniser

        torch.set_num_threads(1 if recipe.device == "cpu" else recipe.threads)  # sums depend on their number
        decoding = experiment.decoding
        self.model, trained, units, _ = load_recogniser(recipe.exp(experiment.name), avg=decoding.avg)
        self.model.to(recipe.device)
        lang = Lang.load(recipe.lang)
        if lang.outputs != units:
            raise ValueError(
                f"{experiment.name} was trained with other outputs than {recipe.lang}; run stages 2 to 6 again"
            )
        self.device, self.beam, self.batch_seconds = recipe.device, decoding.lattice_beam, 4 * trained.data.max_duration
        self.shift = trained.model.front_end.hop / SAMPLE_RATE
        search = Search(decoding.beam, decoding.lattice_beam, decoding.max_active)
        engine, hlg = build_engine(recipe.engine), recipe.graphs / "HLG.fst"
        self.decoder = GraphDecoder(engine, hlg, lang, search, decoding.acoustic_scale)

    def label(self, cuts: Sequence) -> list:
        """The lattice of each cut and what else is stored (`distill.data.lattices.Heard`), by cut id."""
        from lhotse import CutSet

        from distill.data.loader import SpeechDataset, in_order
        from distill.decode import log_probs
        from distill.decode.graph_decoder import decode_all

        reading = SpeechDataset(None, None, 0, False, False)
        batches = (b.to(self.device) for b in in_order(CutSet.from_cuts(cuts), reading, self.batch_seconds))
        truth = {cut.id: (cut.supervisions[0].custom or {}).get("reference") for cut in cuts if cut.supervisions}
        work = partial(self._heard, truth)
        found = dict(decode_all(self.decoder, work, log_probs.offline(self.model, batches)))
        return [found[name] for name in sorted(found)]

    def _heard(self, truth: dict[str, str | None], name: str, lattice) -> Any:
        import numpy as np

        from distill.data.lattices import Heard
        from distill.search.determinise import best_path, words_of

        path, confidence = best_path(lattice) if lattice.complete else (np.zeros(0, dtype=np.int64), np.zeros(0))
        sequences = self.decoder.unit_lattice(lattice, self.beam) if lattice.complete else None
        if sequences is None or next(sequences.ranked())[0] == ():
            return Heard(name, None, np.zeros(0))
        words = words_of(lattice, path)
        return Heard(name, sequences, confidence, words, self._counts(lattice, words, truth.get(name)))

    def _counts(self, lattice, words: list[int], reference: str | None) -> list[int]:
        """Arcs, frames; errors of the best path and fewest of any, and true words, where the corpus knows them."""
        from distill.decode.graph_decoder import oracle_errors
        from distill.scoring.wer import score

        if not reference:
            return [lattice.num_arcs, lattice.num_frames, 0, 0, 0]
        said = reference.split()
        errors = score("", said, [self.decoder.words[word] for word in words]).errors
        known = self.decoder.lang.words
        oracle = oracle_errors(self.decoder.word_lattice(lattice, self.beam), [known.get(word, -1) for word in said])
        return [lattice.num_arcs, lattice.num_frames, errors, oracle, len(said)]


def shape(stored) -> dict[str, float]:
    """Arcs of the searched lattices per frame (depth), and of the stored ones per unit of the best sequence."""
    import numpy as np

    arcs, frames = np.sum([stored.counts(name)[:2] for name in stored] or [[0, 0]], axis=0)
    graphs = [stored[name] for name in stored]
    unit_arcs = sum(graph.num_arcs for graph in graphs)
    units = sum(len(next(graph.ranked())[0]) for graph in graphs)
    return {
        "depth": round(float(arcs) / max(1, frames), 2),
        "unit_arcs_per_unit": round(unit_arcs / max(1, units), 2),
        "narrowed": sum(graph.beam < (stored.beam or 0.0) for graph in graphs),
    }


def quality(stored) -> dict[str, float]:
    """Word error rate of the best paths and of the best of all paths, where the corpus knows the true words."""
    import numpy as np

    errors, oracle, words = np.sum([stored.counts(name)[2:] for name in stored] or [[0, 0, 0]], axis=0)
    if not words:
        return {}
    return {"wer": round(100 * float(errors) / words, 3), "oracle_wer": round(100 * float(oracle) / words, 3)}


if __name__ == "__main__":
    run_script(main)
