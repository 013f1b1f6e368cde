"""Rescoring with a larger n-gram than HLG's: n-best lists or whole lattices, with weights chosen on the dev set."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment
from distill.files import write_json
from distill.recipe.emissions import Emissions, Run, compute, main_mode
from distill.recipe.options import Recipe
from distill.recipe.search import graph_decoder
from distill.recipe.stage import Stage, run_stage

if TYPE_CHECKING:
    from distill.decode.graph_decoder import GraphDecoder
    from distill.decode.nbest import Candidates, ScoreWeights
    from distill.decode.ngram_rescoring import Exchange
    from distill.fsa.lattice import Lattice
    from distill.graphs.arpa import ArpaLm

log = logging.getLogger("decode")
RESCORING = ("nbest-rescoring", "whole-lattice-rescoring")
FURTHER = ("methods", "chunks", "conditions", "condition_sets", "offline")  # settings of further decodings
SMALLER = "3gram"  # the n-gram of the recipe's own HLG
IN_MEMORY = 1 << 28  # bytes of an ARPA file up to which all of it is read; of a larger one the n-grams of the lists


def search_settings(experiment: Experiment) -> dict[str, Any]:
    """The decoding settings that a result depends on: all but those of further decodings."""
    return {key: value for key, value in experiment.decoding.identity().items() if key not in FURTHER}


def lm_of_graph(recipe: Recipe) -> str:
    """The language model of the decoding graph, as wer.json names it; that of a graph of --hlg is not known."""
    return "hlg" if recipe.hlg else SMALLER


def nbest_lists(decoder: GraphDecoder, emissions: Emissions, count: int, beam: float) -> dict[str, Candidates]:
    """Up to `count` word sequences of each utterance within `beam` of the best."""
    from distill.decode.nbest import candidate_lists

    return candidate_lists(decoder, emissions.scores.items(), count, beam)


# Weights


def weights_folder(recipe: Recipe, experiment: Experiment) -> Path:
    return recipe.exp(experiment.name) / f"rescoring_{experiment.decoding.rescoring_lm}"


def weights_stage(recipe: Recipe, experiment: Experiment) -> Stage:
    """The stage that writes weights.json into `weights_folder`."""
    inputs = {recipe.exp(experiment.name): experiment.stage, recipe.decoding_graphs: 4, recipe.lm: 3}
    inputs[recipe.cut_set(experiment.data.valid)] = 0
    settings = {"decoding": search_settings(experiment)}
    return Stage(10, weights_folder(recipe, experiment), settings, inputs)


def choose_weights(recipe: Recipe, experiment: Experiment) -> None:
    """Write the weights with the fewest errors on the validation cuts, in the main mode."""

    def work(folder: Path) -> None:
        settings, run = experiment.decoding, Run(experiment, experiment.data.valid, main_mode(experiment))
        emissions = compute(recipe, run)
        decoder = graph_decoder(recipe, experiment, emissions.units)
        lists = nbest_lists(decoder, emissions, settings.nbest, settings.lattice_beam)
        grid = (1.0,), settings.rescoring_scales, settings.rescoring_word_scores
        tune_weights(folder, run, with_larger_ngram(recipe, experiment, lists), emissions, grid)

    run_stage(weights_stage(recipe, experiment), work, job=recipe.job)


def tune_weights(
    folder: Path, run: Run, lists: Mapping[str, Candidates], emissions: Emissions,
    grid: tuple[Sequence[float], Sequence[float], Sequence[float]],
) -> None:  # fmt: skip
    """weights.json: the point of the grid (graph, lm, word) with the fewest errors, and all points."""
    from distill.decode.nbest import tune

    tuning = tune(lists, emissions.references, *grid, run.experiment.decoding.unscored_words)
    write_json(folder / "weights.json", {"set": run.cut_set, "mode": run.label, **tuning.fields()})
    log.info("%s: %d errors on %s, before %d, with %s", run.experiment.name, tuning.errors, run.cut_set,
             tuning.before, tuning.weights)  # fmt: skip


def read_weights(
    folder: Path, lists: Mapping[str, Candidates], emissions: Emissions, count: int, unscored: Collection[str]
) -> tuple[ScoreWeights, dict[str, Any]]:
    """The weights of weights.json, and fields of wer.json: how they were chosen, the fewest errors of any choice."""
    from distill.decode.nbest import ScoreWeights, error_counts

    tuning = json.loads((folder / "weights.json").read_text(encoding="utf-8"))
    oracle = sum(int(error_counts(each, emissions.references[name], unscored).min()) for name, each in lists.items())
    chosen_by = {key: value for key, value in tuning.items() if key not in ("weights", "tried")}
    info = {"weights": tuning["weights"], "tuning": chosen_by, "nbest": count, "oracle_errors": oracle}
    return ScoreWeights(**tuning["weights"]), info


def chosen_weights(
    recipe: Recipe, experiment: Experiment, lists: Mapping[str, Candidates], emissions: Emissions
) -> tuple[ScoreWeights, dict[str, Any]]:
    """`read_weights` of the larger n-gram."""
    folder, settings = weights_folder(recipe, experiment), experiment.decoding
    weights, info = read_weights(folder, lists, emissions, settings.nbest, settings.unscored_words)
    return weights, {"lm": settings.rescoring_lm, **info}


# The larger n-gram


def with_larger_ngram(recipe: Recipe, experiment: Experiment, lists: Mapping[str, Candidates]) -> dict[str, Candidates]:
    """The lists with the log-probability that each sequence gains by the larger n-gram."""
    from distill.decode.nbest import score_all

    sentences = {" ".join(words) for each in lists.values() for words in each.words}
    return score_all(lists, exchange(recipe, experiment, sentences))


def rescored_lattices(
    recipe: Recipe, experiment: Experiment, decoder: GraphDecoder, emissions: Emissions, weights: ScoreWeights
) -> dict[str, tuple[str, ...]]:
    """The words of each utterance, its whole lattice rescored."""
    from distill.decode.graph_decoder import decode_all
    from distill.decode.ngram_rescoring import rescored
    from distill.search.determinise import determinised

    models = exchange(recipe, experiment)

    def work(name: str, lattice: Lattice) -> tuple[str, ...]:
        if not lattice.num_states:
            log.warning("%s: the search found no path, so nothing can be rescored; counted as no words", name)
            return ()
        lattice_of_words = determinised(lattice, None, experiment.decoding.lattice_beam)
        return rescored(lattice_of_words, decoder.words, models, weights)

    return dict(decode_all(decoder, work, emissions.scores.items()))


def exchange(recipe: Recipe, experiment: Experiment, sentences: Collection[str] | None = None) -> Exchange:
    """Both n-grams; of large files only the n-grams of these sentences, where they are given.

    Raises FileNotFoundError naming stage 3, ValueError for words that one lacks.
    """
    from distill.decode.ngram_rescoring import ArpaWalk, Exchange
    from distill.graphs.arpa import read_arpa
    from distill.graphs.lexicon import Lang

    words, models = Lang.load(recipe.lang).lexicon.words, []
    for name in (experiment.decoding.rescoring_lm, SMALLER):
        path = path_of(recipe, name)
        whole = sentences is None or path.stat().st_size <= IN_MEMORY
        models.append(_arpa(path) if whole else read_arpa(path, [*(sentences or ()), *words]))
    larger, smaller = models
    in_graph = [word for word in words if (word,) in smaller.probability]
    return Exchange(ArpaWalk(larger, in_graph), ArpaWalk(smaller, in_graph))


def smaller(recipe: Recipe) -> ArpaLm:
    """The n-gram of the recipe's own graph; raises FileNotFoundError naming stage 3."""
    return _arpa(path_of(recipe, SMALLER))


def path_of(recipe: Recipe, name: str) -> Path:
    """An n-gram's ARPA file; raises FileNotFoundError naming stage 3."""
    path = recipe.lm / f"words.{name}.arpa"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; stage 3 writes it (run.sh --stage 3 --stop-stage 3)")
    return path


@cache
def _arpa(path: Path) -> ArpaLm:
    """A whole ARPA file, read once per process."""
    from distill.graphs.arpa import read_arpa

    return read_arpa(path)
