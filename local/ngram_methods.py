"""Part of stage 10: methods of decoding that list sentences or put another n-gram in: decoding.methods."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.stages import Recipe, Stage, run_stage

log = logging.getLogger("decode")
RESCORING = ("nbest-rescoring", "whole-lattice-rescoring")
METHODS = ("nbest", *RESCORING, "nbest-oracle")
SMALLER = "3gram"  # that HLG is made of


def choose_weights(recipe: Recipe, experiment: Experiment, mode: str, run: Callable[[str], Mapping]) -> None:
    """weights.json in <experiment>/rescoring_<mode>: what leaves the fewest errors on the validation cuts.

    run: gives what `run_model` says of a cut set.
    """
    valid = experiment.data.valid
    needed = {recipe.exp(experiment.name): experiment.stage, recipe.graphs: 4, recipe.lm: 3}
    needed[recipe.cuts / f"{valid}.jsonl.gz"] = 0
    settings = {"decoding": experiment.resolved()["decoding"]}

    def work(out: Path) -> None:
        from distill.decode.rescoring import tune

        decoding, computed = experiment.decoding, run(valid)
        lists = sentence_lists(recipe, experiment, computed, exchange=True)
        scales, scores = decoding.rescoring_scales, decoding.rescoring_word_scores
        tuning = tune(lists, computed["references"], (1.0,), scales, scores)
        content = {"set": valid, "mode": mode, **tuning.fields()}
        (out / "weights.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        log.info("%s: %d errors on %s, before %d, with %s", experiment.name, tuning.errors, valid, tuning.before,
                 tuning.weights)  # fmt: skip

    run_stage(Stage(10, weights_folder(recipe, experiment, mode), settings, needed), work)


def weights_folder(recipe: Recipe, experiment: Experiment, mode: str) -> Path:
    return recipe.exp(experiment.name) / f"rescoring_{mode}"


def sentence_lists(recipe: Recipe, experiment: Experiment, computed: Mapping, exchange: bool) -> dict[str, Any]:
    """n-best lists by utterance; exchange: with what the larger n-gram gives instead of the graph's."""
    from distill.decode.lattice import decode_all
    from distill.decode.rescoring import candidates, score_all

    decoder, decoding = graph_decoder(recipe, experiment), experiment.decoding

    def work(_: str, lattice: Any) -> Any:
        return candidates(decoder, lattice, decoding.nbest, decoding.lattice_beam)

    lists = dict(decode_all(decoder, work, computed["scores"].items()))
    return score_all(lists, models(recipe, experiment, decoder.lang)) if exchange else lists


def whole_lattices(recipe: Recipe, experiment: Experiment, computed: Mapping, weights: Any) -> dict[str, tuple]:
    """The words of each utterance, its whole lattice rescored."""
    from distill.decode.lattice import decode_all
    from distill.decode.ngram_rescoring import rescored

    decoder, beam = graph_decoder(recipe, experiment), experiment.decoding.lattice_beam
    exchange = models(recipe, experiment, decoder.lang)

    def work(name: str, lattice: Any) -> tuple[str, ...]:
        if not lattice.num_states:
            log.warning("%s: no path was found, so nothing can be rescored; no word counts", name)
            return ()
        return rescored(decoder.word_lattice(lattice, beam), decoder.words, exchange, weights)

    return dict(decode_all(decoder, work, computed["scores"].items()))


def graph_decoder(recipe: Recipe, experiment: Experiment) -> Any:
    from distill.decode.lattice import GraphDecoder
    from distill.fsa import Search, build_engine
    from distill.graphs.lexicon import Lang

    decoding, lang = experiment.decoding, Lang.load(recipe.lang)
    search = Search(decoding.beam, decoding.lattice_beam, decoding.max_active)
    hlg = recipe.graphs / "HLG.fst"
    return GraphDecoder(build_engine(recipe.engine), hlg, lang, search, decoding.acoustic_scale)


def models(recipe: Recipe, experiment: Experiment, lang: Any) -> Any:
    """The exchange of n-grams; raises FileNotFoundError naming stage 3, ValueError for words that one lacks."""
    from distill.decode.ngram_rescoring import ArpaWalk, Exchange
    from distill.graphs.arpa import read_arpa

    files = []
    for name in (experiment.decoding.rescoring_lm, SMALLER):
        path = recipe.lm / f"words.{name}.arpa"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; stage 3 writes it (run.sh --stage 3 --stop-stage 3)")
        files.append(read_arpa(path))
    words = [word for word in lang.lexicon.words if (word,) in files[1].probability]  # those of HLG
    return Exchange(*(ArpaWalk(lm, words) for lm in files))


def over_method(
    recipe: Recipe, experiment: Experiment, mode: str, method: str, computed: Mapping, folder: Path
) -> tuple[list, dict]:
    """Scored utterances, and facts for wer.json; n-best lists into nbest.json."""
    from distill.decode.ngram_rescoring import as_plain
    from distill.decode.rescoring import UNCHANGED, Weights, error_counts
    from distill.decode.wer import score

    references, facts, weights = computed["references"], {"lm": SMALLER}, UNCHANGED
    if method in RESCORING:
        chosen = json.loads((weights_folder(recipe, experiment, mode) / "weights.json").read_text(encoding="utf-8"))
        weights = Weights(**chosen["weights"])
        facts = {"lm": experiment.decoding.rescoring_lm, "weights": chosen["weights"]}
    if method == "whole-lattice-rescoring":
        found = whole_lattices(recipe, experiment, computed, weights)
    else:
        lists = sentence_lists(recipe, experiment, computed, method in RESCORING)
        (folder / "nbest.json").write_text(json.dumps(as_plain(lists)) + "\n", encoding="utf-8")
        if method == "nbest-oracle":
            found = {n: each.words[error_counts(each, references[n]).argmin()] for n, each in lists.items()}
        else:
            found = {name: each.best(weights) for name, each in lists.items()}
    return [score(name, references[name], words) for name, words in found.items()], facts
