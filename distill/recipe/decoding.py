"""Stage 10: decode every experiment on every test set, with each of its methods."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.decoding import OF_TRANSDUCER, OF_UNITS, Method
from distill.config.experiment import Experiment
from distill.config.names import hint
from distill.corpora.listing import first_few
from distill.files import write_text
from distill.recipe import ngram_rescoring
from distill.recipe.emissions import Emissions, Run, compute, main_mode, modes
from distill.recipe.exporting import export_stage
from distill.recipe.ngram_rescoring import RESCORING
from distill.recipe.options import Recipe
from distill.recipe.search import check_outputs, graph_decoder
from distill.recipe.stage import Stage, run_stage

if TYPE_CHECKING:
    from distill.decode.graph_decoder import GraphDecoder
    from distill.decode.nbest import Candidates
    from distill.decode.transducer import Network
    from distill.graphs.lexicon import Lang
    from distill.scoring.wer import Scored
    from distill.text import Word

log = logging.getLogger("decode")
UTTERANCES = 32  # per batch of the denominator's posteriors


def runs(experiments: Sequence[Experiment], sets: Sequence[str], runtime: str) -> list[Run]:
    """All combinations of experiment, output, test set and mode, the slow ones first; exported models have one mode.

    Conditions are decoded in the main mode.
    """
    combinations = [
        Run(experiment, test_set, mode, runtime, condition, output)
        for experiment in experiments
        for output in outputs_of(experiment)
        for test_set in sets
        for condition in ("", *(conditions(experiment, test_set) if runtime == "torch" else ()))
        for mode in (modes(experiment) if runtime == "torch" and not condition else [main_mode(experiment)])
    ]
    return sorted(combinations, key=lambda run: run.mode == "offline")


def conditions(experiment: Experiment, test_set: str) -> list[str]:
    """Names of the conditions under which an experiment's test set is decoded as well."""
    chosen = experiment.decoding.condition_sets
    return list(experiment.decoding.conditions) if not chosen or test_set in chosen else []


def check_condition_sets(experiments: Iterable[Experiment], known: Sequence[str]) -> None:
    """Raise ValueError for a set in `decoding.condition_sets` that is none of the known test sets."""
    for experiment in experiments:
        for name in experiment.decoding.condition_sets:
            if name not in known:
                raise ValueError(f"{experiment.name}: decoding.condition_sets: no test set {name!r}{hint(name, known)}")


def check_exports(recipe: Recipe, experiments: Iterable[Experiment]) -> None:
    """Raise ValueError for an exported model that is not of an experiment's checkpoint and settings as they are."""
    for experiment in experiments:
        stage = export_stage(recipe, experiment)
        if not stage.up_to_date():
            raise ValueError(f"{stage.out} is not there, or of other settings or weights; run stage 12 again")


def outputs_of(experiment: Experiment) -> list[str]:
    """Outputs that the experiment's methods decode."""
    outputs = {"transducer" if method in OF_TRANSDUCER else "main" for method in experiment.decoding.methods}
    return sorted(outputs) or ["main"]


def stages(recipe: Recipe, run: Run) -> dict[Method, Stage]:
    """The stage of each method of a run."""
    experiment, folder, of_transducer = run.experiment, recipe.exp(run.experiment.name), run.output == "transducer"
    graphs = {recipe.lang: 2, recipe.lm: 3} if of_transducer else {recipe.decoding_graphs: 4}
    inputs = {folder: experiment.stage, **graphs, recipe.cut_set(run.cut_set): 0}
    methods: list[Method] = [each for each in experiment.decoding.methods if (each in OF_TRANSDUCER) == of_transducer]
    of_words: list[Method] = ["transducer_beam" if of_transducer else "1best"]
    settings, place = {"decoding": ngram_rescoring.search_settings(experiment)}, [run.cut_set, run.label]
    if run.runtime != "torch":
        inputs[folder / "export"], methods = 12, of_words
    if run.condition:
        condition = experiment.decoding.conditions[run.condition]
        settings |= {"condition": condition.resolved(), **recipe.noise_files(condition.noises.values())}
        methods = of_words
        place.insert(1, run.condition)
    weights = {recipe.lm: 3, ngram_rescoring.weights_folder(recipe, experiment): 10}
    return {
        method: Stage(
            10,
            folder / "_".join(["decode", *place, method]),
            {**settings, "method": method},
            inputs | weights if method in RESCORING else inputs,
        )
        for method in methods
    }


def decode(recipe: Recipe, run: Run) -> None:
    """A folder of results for each method that is not up to date."""
    shared = Decoding(recipe, run)

    def work(folder: Path, method: Method) -> None:
        result = DECODERS[method](shared)
        write(folder, run, method, shared.emissions, result)

    for method, stage in stages(recipe, run).items():
        run_stage(stage, partial(work, method=method), job=recipe.job)


# Decoders


@dataclass(frozen=True, eq=False)
class Recognised:
    """A method's result for a cut set.

    scored: every utterance against its reference. info: fields of wer.json beside those of the emissions.
    words: with times and confidences, by utterance. nbest: lists of word sequences, by utterance.
    """

    scored: Sequence[Scored]
    info: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Sequence[Word]] | None = None
    nbest: Mapping[str, Candidates] | None = None


class Decoding:
    """The emissions of a run and its n-best lists, computed once for all methods that need them."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe, self.experiment, self.settings, self._run = recipe, run.experiment, run.experiment.decoding, run

    @cached_property
    def emissions(self) -> Emissions:
        return compute(self.recipe, self._run)

    @cached_property
    def network(self) -> Network:
        """A transducer's predictor and joiner, with the penalty of blanks that is set."""
        from distill.decode.transducer import with_penalty

        assert self.emissions.network is not None
        return with_penalty(self.emissions.network, self.settings.transducer_blank_penalty)

    @cached_property
    def graph(self) -> GraphDecoder:
        return graph_decoder(self.recipe, self.experiment, self.emissions.units)

    @cached_property
    def lists(self) -> dict[str, Candidates]:
        """The n-best list of each utterance; `best_paths` sets it where its search yields the lists as well."""
        return ngram_rescoring.nbest_lists(self.graph, self.emissions, self.settings.nbest, self.settings.lattice_beam)

    @cached_property
    def exchanged_lists(self) -> dict[str, Candidates]:
        """The same with the larger n-gram's scores."""
        return ngram_rescoring.with_larger_ngram(self.recipe, self.experiment, self.lists)

    def score(self, hypotheses: Mapping[str, Sequence[str]]) -> list[Scored]:
        from distill.scoring.wer import score

        return [score(name, self.emissions.references[name], words) for name, words in hypotheses.items()]


def best_paths(decoding: Decoding) -> Recognised:
    """Words of the best path over HLG, with times and confidences."""
    from distill.decode.recognise import recognise

    emissions, settings = decoding.emissions, decoding.settings
    lists_wanted = not settings.blank_skip and bool({*settings.methods} & {"nbest", "nbest-oracle", *RESCORING})
    results = dict(
        recognise(
            decoding.graph, emissions.scores.items(), emissions.frame_seconds,
            chunk_frames=emissions.chunk_frames if decoding.recipe.engine == "native" else 0,
            blank_skip=settings.blank_skip, nbest=settings.nbest if lists_wanted else 0,
        )
    )  # fmt: skip
    if lists_wanted:
        decoding.lists = {name: result.candidates for name, result in results.items() if result.candidates}
    scored = decoding.score({name: result.best.words for name, result in results.items()})
    words = {name: result.words for name, result in results.items()}
    return Recognised(scored, {"lm": ngram_rescoring.lm_of_graph(decoding.recipe)}, words=words)


def denominator_paths(decoding: Decoding) -> Recognised:
    """Units of the best path of the denominator's posteriors (`scored_units`)."""
    from distill.decode.denominator_path import DenominatorPath
    from distill.fsa.k2_format import load_fsa
    from distill.graphs.lexicon import Lang
    from distill.lfmmi import build_engine

    recipe, emissions, lang = decoding.recipe, decoding.emissions, Lang.load(decoding.recipe.lang)
    check_outputs(recipe, decoding.experiment, lang, emissions.units)
    denominator = lang.topology.compose(load_fsa(recipe.decoding_graphs / "denominator.pt"))
    decoder = DenominatorPath(build_engine(recipe.engine), denominator)

    def paths(names: Sequence[str]) -> Iterator[tuple[str, Sequence[int]]]:
        for start in range(0, len(names), UTTERANCES):
            batch = names[start : start + UTTERANCES]
            yield from zip(batch, decoder.units(lang.topology, [emissions.scores[name] for name in batch]))

    return scored_units(emissions, lang, "greedy", paths)


def scored_units(
    emissions: Emissions, lang: Lang, method: Method,
    found: Callable[[Sequence[str]], Iterable[tuple[str, Sequence[int]]]],
) -> Recognised:  # fmt: skip
    """Units of utterances against the closest pronunciations, silence left out; found: of those with these names.

    Utterances with words that have no pronunciation are left out, and logged.
    """
    from distill.decode.denominator_path import closest_pronunciation
    from distill.scoring.wer import score

    known = lang.lexicon.pronunciations.keys()
    names, scored = [name for name in emissions.scores if known >= set(emissions.references[name])], []
    if without := sorted(emissions.scores.keys() - set(names)):
        log.warning("%s: %d of %d utterances are not scored, as words of theirs have no pronunciation: %s",
                    method, len(without), len(emissions.scores), first_few(without))  # fmt: skip
    if not names:
        raise ValueError(
            f"{method}: every utterance has words without a pronunciation; add them to lexicon.txt and run stages 2 to"
            f" 4 again, or leave {method} out of decoding.methods"
        )
    for name, path in found(names):
        units = [unit for unit in path if unit != lang.silence]
        pronunciations = [lang.pronunciation_ids(word, name) for word in emissions.references[name]]
        reference = closest_pronunciation(units, pronunciations)
        scored.append(score(name, [lang.units[u] for u in reference], [lang.units[u] for u in units]))
    return Recognised(scored)


def nbest(decoding: Decoding) -> Recognised:
    """The first of each n-best list: what rescoring starts from."""
    from distill.decode.nbest import UNCHANGED

    best = {name: each.best(UNCHANGED) for name, each in decoding.lists.items()}
    return Recognised(decoding.score(best), {"lm": ngram_rescoring.lm_of_graph(decoding.recipe)}, nbest=decoding.lists)


def nbest_oracle(decoding: Decoding) -> Recognised:
    """The sequence of each list with the fewest errors: a bound on rescoring."""
    from distill.decode.nbest import error_counts

    references, unscored = decoding.emissions.references, decoding.experiment.decoding.unscored_words
    errors = {name: error_counts(each, references[name], unscored) for name, each in decoding.lists.items()}
    best = {name: each.words[errors[name].argmin()] for name, each in decoding.lists.items()}
    return Recognised(decoding.score(best), {"lm": ngram_rescoring.lm_of_graph(decoding.recipe)}, nbest=decoding.lists)


def nbest_rescoring(decoding: Decoding) -> Recognised:
    """Lists ranked again with the larger n-gram."""
    lists = decoding.exchanged_lists
    weights, info = ngram_rescoring.chosen_weights(decoding.recipe, decoding.experiment, lists, decoding.emissions)
    best = {name: each.best(weights) for name, each in lists.items()}
    return Recognised(decoding.score(best), info, nbest=lists)


def whole_lattice_rescoring(decoding: Decoding) -> Recognised:
    """Every path of the lattices scored again with the larger n-gram."""
    recipe, experiment, emissions = decoding.recipe, decoding.experiment, decoding.emissions
    weights, info = ngram_rescoring.chosen_weights(recipe, experiment, decoding.exchanged_lists, emissions)
    best = ngram_rescoring.rescored_lattices(recipe, experiment, decoding.graph, emissions, weights)
    return Recognised(decoding.score(best), info)


def transducer_greedy(decoding: Decoding) -> Recognised:
    """Units of the transducer, the best of each frame (`scored_units`)."""
    from distill.decode.transducer import Greedy
    from distill.graphs.lexicon import Lang

    emissions, lang = decoding.emissions, Lang.load(decoding.recipe.lang)
    check_outputs(decoding.recipe, decoding.experiment, lang, emissions.units)
    network = decoding.network

    def found(names: Sequence[str]) -> Iterator[tuple[str, Sequence[int]]]:
        for name in names:
            search = Greedy(network)
            search.feed(emissions.scores[name])
            yield name, search.units

    return scored_units(emissions, lang, "transducer_greedy", found)


def transducer_beam(decoding: Decoding) -> Recognised:
    """Words of the transducer's beam over the lexicon, with the graph's n-gram."""
    from distill.decode.transducer import Beam, LexiconTree
    from distill.graphs.lexicon import Lang

    recipe, emissions, settings = decoding.recipe, decoding.emissions, decoding.settings
    lang, words = Lang.load(recipe.lang), {}
    check_outputs(recipe, decoding.experiment, lang, emissions.units)
    tree = LexiconTree(lang, ngram_rescoring.smaller(recipe), settings.transducer_lm_scale)
    for name, frames in emissions.scores.items():
        search = Beam(decoding.network, tree, settings.transducer_beam)
        search.feed(frames)
        words[name] = search.words()
    return Recognised(decoding.score(words), {"lm": ngram_rescoring.SMALLER})


DECODERS: dict[Method, Callable[[Decoding], Recognised]] = {
    "1best": best_paths,
    "greedy": denominator_paths,
    "nbest": nbest,
    "nbest-rescoring": nbest_rescoring,
    "whole-lattice-rescoring": whole_lattice_rescoring,
    "nbest-oracle": nbest_oracle,
    "transducer_greedy": transducer_greedy,
    "transducer_beam": transducer_beam,
}


# Files


def write(folder: Path, run: Run, method: str, emissions: Emissions, result: Recognised) -> None:
    """recogs-, errs-, wer-summary-, wer.json, utt2spk, errors.html; words.ctm, words.json, nbest.json where known."""
    from distill.batch import SAMPLE_RATE
    from distill.decode.ngram_rescoring import as_plain
    from distill.decode.word_files import write_words
    from distill.report.calibration import write_calibration
    from distill.report.errors_page import clips
    from distill.report.errors_page.page import Audio, write_page
    from distill.report.results import WerResult
    from distill.scoring.calibration import calibration, scored_words
    from distill.scoring.compare import write_speakers
    from distill.scoring.wer import scored_without, write_results

    info = {**emissions.info, "method": method, **result.info}
    if result.words is not None:
        write_words(folder, result.words)
        if confidences := scored_words(result.scored, result.words):
            write_calibration(folder, calibration(confidences))
    if result.nbest is not None:
        write_text(folder / "nbest.json", json.dumps(as_plain(result.nbest)) + "\n")
    scored, unscored = result.scored, frozenset(run.experiment.decoding.unscored_words)
    if unscored and method not in OF_UNITS:  # whose symbols are units: UH and ER are phones, too
        scored = [scored_without(each, unscored) for each in scored]
    rate = write_results(folder, run.cut_set, f"{run.label}-{method}", scored)
    WerResult.model_validate({**info, "set": run.cut_set, **rate.fields()}).write(folder / "wer.json")
    if speakers := clips.speakers(emissions.cuts.values()):
        write_speakers(folder, speakers)
    links = {name: address for name, cut in emissions.cuts.items() if (address := clips.link(cut, folder)) is not None}
    audio = Audio(
        lambda name: clips.flac(emissions.reading[[emissions.cuts[name]]].wave[0].numpy(), SAMPLE_RATE),
        {} if run.condition else links,  # which lead to the audio before its distortion
    )
    shown = f"{run.cut_set}, {run.condition}" if run.condition else run.cut_set
    write_page(folder, scored, {**info, "set": shown}, speakers, audio)
    headline = next(folder.glob("errs-*.txt")).read_text(encoding="utf-8").splitlines()[0]
    log.info("%s %s %s %s: %s", run.experiment.name, shown, run.label, method, headline)
