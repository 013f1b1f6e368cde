"""Part of stage 10: methods of decoding that list sentences or put another n-gram in: decoding.methods."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.files import replacing, write_json
from distill.recipe.emissions import main_mode, run_model
from distill.recipe.options import Recipe
from distill.recipe.search import graph_decoder
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger("decode")
RESCORING = ("nbest-rescoring", "whole-lattice-rescoring")
METHODS = ("nbest", *RESCORING, "nbest-oracle")
SMALLER = "3gram"  # that HLG is made of
WHOLE = 1 << 28  # bytes of an ARPA file up to which it is kept in memory; of a larger one what each list needs


def search_settings(experiment: Experiment) -> dict[str, Any]:
    """What a decoding's result depends on, whatever other decodings were asked for."""
    decoding = experiment.resolved()["decoding"]
    return {key: value for key, value in decoding.items() if key not in ("methods", "chunks")}


def weights_stage(recipe: Recipe, experiment: Experiment) -> Stage:
    """The stage that writes weights.json into `weights_folder`."""
    needed = {recipe.exp(experiment.name): experiment.stage, recipe.graphs: 4, recipe.lm: 3}
    needed[recipe.cuts / f"{experiment.data.valid}.jsonl.gz"] = 0
    settings = {"decoding": search_settings(experiment)}
    return Stage(10, weights_folder(recipe, experiment), settings, needed)


def choose_weights(recipe: Recipe, experiment: Experiment) -> None:
    """weights.json in `weights_folder`: what leaves the fewest errors on the validation cuts, in the main mode."""

    def work(out: Path) -> None:
        from distill.decode.nbest import tune

        decoding, valid = experiment.decoding, experiment.data.valid
        computed = run_model(recipe, experiment, valid, main_mode(experiment))
        lists = sentence_lists(recipe, experiment, computed, exchange=True)
        scales, scores = decoding.rescoring_scales, decoding.rescoring_word_scores
        tuning = tune(lists, computed["references"], (1.0,), scales, scores)
        write_json(out / "weights.json", {"set": valid, "mode": computed["facts"]["mode"], **tuning.fields()})
        log.info("%s: %d errors on %s, before %d, with %s", experiment.name, tuning.errors, valid, tuning.before,
                 tuning.weights)  # fmt: skip

    run_stage(weights_stage(recipe, experiment), work)


def weights_folder(recipe: Recipe, experiment: Experiment) -> Path:
    return recipe.exp(experiment.name) / f"rescoring_{experiment.decoding.rescoring_lm}"


def sentence_lists(recipe: Recipe, experiment: Experiment, computed: dict, exchange: bool) -> dict[str, Any]:
    """n-best lists by utterance; exchange: with what the larger n-gram gives instead of the graph's.

    The lists stay in `computed`: all methods rank the same ones.
    """
    from distill.decode.nbest import candidate_lists, score_all

    decoder, decoding = graph_decoder(recipe, experiment), experiment.decoding
    if "lists" not in computed:
        pairs = computed["scores"].items()
        computed["lists"] = candidate_lists(decoder, pairs, decoding.nbest, decoding.lattice_beam)
    lists = computed["lists"]
    if not exchange:
        return lists
    said = {" ".join(words) for each in lists.values() for words in each.words}
    return score_all(lists, models(recipe, experiment, decoder.lang, said))


def whole_lattices(recipe: Recipe, experiment: Experiment, computed: Mapping, weights: Any) -> dict[str, tuple]:
    """The words of each utterance, its whole lattice rescored."""
    from distill.decode.graph_decoder import decode_all
    from distill.decode.ngram_rescoring import rescored

    decoder, beam = graph_decoder(recipe, experiment), experiment.decoding.lattice_beam
    exchange = models(recipe, experiment, decoder.lang)

    def work(name: str, lattice: Any) -> tuple[str, ...]:
        if not lattice.num_states:
            log.warning("%s: no path was found, so nothing can be rescored; no word counts", name)
            return ()
        return rescored(decoder.word_lattice(lattice, beam), decoder.words, exchange, weights)

    return dict(decode_all(decoder, work, computed["scores"].items()))


def models(recipe: Recipe, experiment: Experiment, lang: Any, sentences: Iterable[str] | None = None) -> Any:
    """The exchange of n-grams; of large ones only what scores these sentences, where such are given.

    Raises FileNotFoundError naming stage 3, ValueError for words that one lacks.
    """
    from distill.decode.ngram_rescoring import ArpaWalk, Exchange
    from distill.graphs.arpa import read_arpa

    files = []
    for name in (experiment.decoding.rescoring_lm, SMALLER):
        path = recipe.lm / f"words.{name}.arpa"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; stage 3 writes it (run.sh --stage 3 --stop-stage 3)")
        if sentences is None or path.stat().st_size <= WHOLE:
            files.append(_whole(path))
        else:
            files.append(read_arpa(path, [*sentences, *lang.lexicon.words]))
    words = [word for word in lang.lexicon.words if (word,) in files[1].probability]  # those of HLG
    return Exchange(*(ArpaWalk(lm, words) for lm in files))


@cache
def _whole(path: Path) -> Any:
    from distill.graphs.arpa import read_arpa

    return read_arpa(path)


def over_method(recipe: Recipe, experiment: Experiment, method: str, computed: dict, folder: Path) -> tuple[list, dict]:
    """Scored utterances, and facts for wer.json; n-best lists into nbest.json."""
    from distill.decode.nbest import UNCHANGED, Weights, error_counts
    from distill.decode.ngram_rescoring import as_plain
    from distill.scoring.wer import score

    references, facts, weights = computed["references"], {"lm": SMALLER}, UNCHANGED
    lists = sentence_lists(recipe, experiment, computed, method in RESCORING)
    if method in RESCORING:
        tuning = json.loads((weights_folder(recipe, experiment) / "weights.json").read_text(encoding="utf-8"))
        weights = Weights(**tuning["weights"])
        facts = {"lm": experiment.decoding.rescoring_lm}
        facts |= rescoring_facts(tuning, lists, references, experiment.decoding.nbest)
    if method == "whole-lattice-rescoring":
        found = whole_lattices(recipe, experiment, computed, weights)
    else:
        with replacing(folder / "nbest.json") as temporary:
            temporary.write_text(json.dumps(as_plain(lists)) + "\n", encoding="utf-8")
        if method == "nbest-oracle":
            found = {n: each.words[error_counts(each, references[n]).argmin()] for n, each in lists.items()}
        else:
            found = {name: each.best(weights) for name, each in lists.items()}
    return [score(name, references[name], words) for name, words in found.items()], facts


def rescoring_facts(tuning: Mapping, lists: Mapping, references: Mapping, nbest: int) -> dict[str, Any]:
    """What wer.json holds of a rescoring: the weights, how dev chose them, and the fewest errors the lists allow."""
    from distill.decode.nbest import error_counts

    oracle = sum(int(error_counts(each, references[name]).min()) for name, each in lists.items())
    chosen = {key: value for key, value in tuning.items() if key not in ("weights", "tried")}
    return {"weights": tuning["weights"], "tuning": chosen, "nbest": nbest, "oracle_errors": oracle}
