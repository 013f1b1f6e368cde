"""Stage 10: decode every experiment on every test set: over HLG (1best), and without words (greedy).

With --runtime onnx or int8 it is what stage 12 exported that runs, over HLG only: modes such as streaming-int8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from distill.config.experiment import Experiment
from distill.config.names import names_of
from distill.recipe import ngram_rescoring, parallel
from distill.recipe import search as graph_search
from distill.recipe.emissions import exported_modes, modes, run_model, test_sets
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, relaunched, run_stage

log = logging.getLogger("decode")


class Run(NamedTuple):
    """A decoding: an experiment over a test set in one of its modes, by torch or what was exported."""

    experiment: Experiment
    test_set: str
    mode: str
    runtime: str = "torch"

    @property
    def label(self) -> str:
        """The mode as results name it."""
        return self.mode if self.runtime == "torch" else f"{self.mode}-{self.runtime}"


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--sets", default="", help="cut sets, comma-separated; empty: all test-*")
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnx", "int8"), help="what runs the model")
    args = parser.parse_args()
    recipe = recipe_from(args)
    yamls = [recipe.experiment_yaml(name) for name in recipe.names]
    experiments = [Experiment.load(path, recipe.overrides, recipe.suffix) for path in yamls]
    sets = names_of("--sets", args.sets) or test_sets(recipe)
    runs = list(all_runs(experiments, sets, args.runtime))
    rescored = [each for each in experiments if {*each.decoding.methods} & {*ngram_rescoring.RESCORING}]
    tuned = rescored if args.runtime == "torch" else []
    choices = [(each, [ngram_rescoring.weights_stage(recipe, each)]) for each in tuned]
    decodings = [(run, list(stages(recipe, run).values())) for run in runs]
    if recipe.launcher and relaunched(recipe, parallel.stages_of(choices, decodings)):
        return
    ranks, recipe = parallel.join(recipe)
    weights, unfinished = map(parallel.unfinished, (choices, decodings))
    parallel.each(recipe, ranks, (ngram_rescoring.choose_weights, weights), (decode, unfinished))


def all_runs(experiments: Sequence[Experiment], sets: Sequence[str], runtime: str) -> Iterator[Run]:
    """What is to be decoded, the slow ones first."""
    found = [
        Run(experiment, test_set, mode, runtime)
        for experiment in experiments
        for test_set in sets
        for mode in (modes(experiment) if runtime == "torch" else exported_modes(experiment))
    ]
    yield from sorted(found, key=lambda run: run.mode == "offline")


def stages(recipe: Recipe, run: Run) -> dict[str, Stage]:
    """The folder of each method of a run."""
    experiment, folder = run.experiment, recipe.exp(run.experiment.name)
    settings = {"decoding": ngram_rescoring.search_settings(experiment)}
    needed = {folder: experiment.stage, recipe.graphs: 4, recipe.cuts / f"{run.test_set}.jsonl.gz": 0}
    if run.runtime != "torch":
        needed[folder / "export"] = 12
    found: dict[str, Stage] = {}
    for method in experiment.decoding.methods if run.runtime == "torch" else ("1best",):
        inputs = dict(needed)
        if method in ngram_rescoring.RESCORING:
            inputs |= {recipe.lm: 3, ngram_rescoring.weights_folder(recipe, experiment): 10}
        out = folder / f"decode_{run.test_set}_{run.label}_{method}"
        found[method] = Stage(10, out, {**settings, "method": method}, inputs)
    return found


def decode(recipe: Recipe, run: Run) -> None:
    """One folder per method; the model runs once for all methods that are not up to date."""
    computed: dict = {}

    def work(out: Path, method: str) -> None:
        if not computed:
            computed.update(run_model(recipe, run.experiment, run.test_set, run.mode, run.runtime))
        write(recipe, run.experiment, run.test_set, run.label, method, computed, out)

    for method, stage in stages(recipe, run).items():
        run_stage(stage, partial(work, method=method))


def write(
    recipe: Recipe, experiment: Experiment, test_set: str, mode: str, method: str, computed: dict, folder: Path
) -> None:
    """recogs-, errs-, wer-summary-, wer.json, utt2spk and errors.html of one method; of 1best words.ctm and more."""
    from distill.graphs.lexicon import Lang
    from distill.scoring.wer import write_results

    lang = Lang.load(recipe.lang)
    graph_search.check_outputs(recipe, experiment, lang, computed["units"])
    facts = {**computed["facts"], "method": method, "lm": "3gram" if method == "1best" else None}
    if method == "1best":
        scored = over_words(recipe, experiment, computed, folder)
    elif method in ngram_rescoring.METHODS:
        scored, more = ngram_rescoring.over_method(recipe, experiment, method, computed, folder)
        facts.update(more)
    else:
        scored = over_units(recipe, lang, computed)
    write_results(folder, test_set, f"{mode}-{method}", scored, facts)
    write_errors(folder, scored, {**facts, "set": test_set}, computed["cuts"])
    log.info("%s %s %s %s: %s", experiment.name, test_set, mode, method, headline(folder))


def write_errors(folder: Path, scored: list, facts: Mapping, cuts: Mapping) -> None:
    """Who spoke, and the page of errors."""
    from distill.report.errors_page import clips
    from distill.report.errors_page.page import Audio, write_page
    from distill.scoring.compare import write_speakers

    speakers = clips.speakers(cuts.values())
    if speakers:
        write_speakers(folder, speakers)
    links = {name: address for name, cut in cuts.items() if (address := clips.link(cut, folder)) is not None}
    write_page(folder, scored, facts, speakers, Audio(lambda name: clips.flac(cuts[name]), links))


def over_words(recipe: Recipe, experiment: Experiment, computed: dict, folder: Path) -> list:
    """Words of the best path over HLG; their times and confidences into words.ctm and words.json.

    The n-best lists that other methods rank come from the same search and stay in `computed`.
    """
    from distill.decode import confidence
    from distill.decode.recognise import recognise
    from distill.scoring.wer import score

    decoder, decoding = graph_search.graph_decoder(recipe, experiment), experiment.decoding
    chunk = computed["chunk"] if recipe.engine == "native" else 0
    nbest = 0 if decoding.blank_skip or not {*decoding.methods} & {*ngram_rescoring.METHODS} else decoding.nbest
    scores, frame = computed["scores"].items(), computed["frame"]
    found = dict(recognise(decoder, scores, frame, chunk, decoding.blank_skip, nbest))
    if nbest:
        computed["lists"] = {name: each.candidates for name, each in found.items()}
    scored = [score(name, computed["references"][name], each.best.words) for name, each in found.items()]
    words = {name: each.words for name, each in found.items()}
    confidence.write_words(folder, words)
    if judged := confidence.judged(scored, words):
        confidence.write_calibration(folder, confidence.calibration(judged))
    return scored


def over_units(recipe: Recipe, lang, computed: Mapping) -> list:
    """Units of the best path of the denominator's posteriors, against the closest pronunciations."""
    from distill.decode.denominator_path import best_units, closest_pronunciation
    from distill.fsa.k2_format import load_fsa
    from distill.lfmmi import build_engine
    from distill.scoring.wer import score

    denominator = lang.topology.compose(load_fsa(recipe.graphs / "denominator.pt"))
    engine, names, scored = build_engine(recipe.engine), list(computed["scores"]), []
    for start in range(0, len(names), 32):
        some = names[start : start + 32]
        frames = [computed["scores"][name] for name in some]
        for name, units in zip(some, best_units(engine, denominator, lang.topology, frames)):
            spoken = [unit for unit in units if unit != lang.silence]
            words = computed["references"][name]
            reference = closest_pronunciation(spoken, [lang.pronunciation_ids(word, name) for word in words])
            scored.append(score(name, [lang.units[u] for u in reference], [lang.units[u] for u in spoken]))
    return scored


def headline(folder: Path) -> str:
    """The first line of the errs file."""
    return next(folder.glob("errs-*.txt")).read_text(encoding="utf-8").splitlines()[0]


if __name__ == "__main__":
    run_script(main)
