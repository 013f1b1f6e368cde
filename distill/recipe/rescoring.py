"""Stage 11: train the Transformer language model, and rescore n-best lists of every experiment with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.files import write_json
from distill.recipe.decoding import Recognised, write
from distill.recipe.emissions import Emissions, Run, compute, main_mode
from distill.recipe.ngram_rescoring import nbest_lists, read_weights, search_settings, tune_weights
from distill.recipe.options import Recipe
from distill.recipe.script import log_to
from distill.recipe.search import graph_decoder
from distill.recipe.stage import Stage, run_stage
from distill.recipe.training import write_result

if TYPE_CHECKING:
    from distill.decode.nbest import Candidates

log = logging.getLogger("rescore")
METHOD = "transformer-lm"
NOT_OF_TRAINING = ("avg", "compute", "description", "rescoring")  # settings that do not change the weights


# The language model


def training_stage(recipe: Recipe, settings: LanguageModel) -> Stage:
    """The stage that trains the language model."""
    identity = {key: value for key, value in settings.resolved().items() if key not in NOT_OF_TRAINING}
    inputs = {recipe.text / "lm.txt": 0, recipe.cut_set(settings.text.valid): 0}
    return Stage(11, recipe.exp(settings.name), identity, inputs, resumable=True)


def train(recipe: Recipe, settings: LanguageModel, folder: Path) -> None:
    """Train to the end and write result.json."""
    import torch

    from distill.train.distributed import join
    from distill.train.language_model import build_lm_trainer, remove_token_ids

    ranks, device = join(recipe.device)
    torch.set_num_threads(recipe.threads)
    valid = transcripts(recipe, settings.text.valid)
    with log_to(folder):
        trainer = build_lm_trainer(settings, recipe.text / "lm.txt", valid, folder, ranks, device)
        write_result(recipe, settings, trainer.run(), ranks, device, folder)
    if ranks.first:
        remove_token_ids(folder)


def transcripts(recipe: Recipe, cut_set: str) -> list[str]:
    """The transcripts of a cut set that have words."""
    from distill.corpora.cut_sets import load_cuts
    from distill.data.numerators import text_of

    return [text for cut in load_cuts(recipe.cuts, [cut_set]) if (text := text_of(cut))]


def perplexity_stage(recipe: Recipe, settings: LanguageModel) -> Stage:
    """The stage that measures perplexities."""
    folder = recipe.exp(settings.name)
    inputs = {folder: 11, recipe.lm: 3, recipe.lang: 2, recipe.cut_set(settings.text.valid): 0}
    return Stage(11, folder / "perplexity", {"avg": settings.avg}, inputs)


def measure_perplexity(recipe: Recipe, settings: LanguageModel, folder: Path) -> None:
    """summary.json: perplexity per word on the validation transcripts, of the n-grams and of the Transformer LM."""
    import torch

    from distill.graphs.arpa import read_arpa
    from distill.graphs.lexicon import Lang
    from distill.lm.scoring import load_lm, perplexity

    torch.set_num_threads(recipe.threads)
    lexicon = Lang.load(recipe.lang).lexicon.pronunciations
    texts = transcripts(recipe, settings.text.valid)
    sentences = [text for text in texts if all(word in lexicon for word in text.split())]
    models: dict[str, Any] = {}
    for path in sorted(recipe.lm.glob("words.*gram.arpa")):
        value = read_arpa(path, sentences).perplexity(sentences)
        models[path.stem.removeprefix("words.")] = {"perplexity": round(value, 3)}
    scorer, *_ = load_lm(recipe.exp(settings.name), recipe.device)
    models["transformer"] = perplexity(scorer, sentences)
    counts = {"sentences": len(sentences), "left_out": len(texts) - len(sentences)}
    write_json(folder / "summary.json", {"set": settings.text.valid, **counts, "models": models})
    for name, figures in models.items():
        log.info("%s on %s: %s", name, settings.text.valid, figures)


# Rescoring


def weights_stage(recipe: Recipe, settings: LanguageModel, experiment: Experiment) -> Stage:
    """The stage that chooses the weights on the validation cuts."""
    return _stage(recipe, settings, experiment, "rescoring", {recipe.cut_set(settings.text.valid): 0}, {})


def rescoring_stage(recipe: Recipe, settings: LanguageModel, experiment: Experiment, test_set: str) -> Stage:
    """The stage that rescores a test set with the weights."""
    inputs = {recipe.exp(experiment.name) / "rescoring": 11, recipe.cut_set(test_set): 0}
    name = f"decode_{test_set}_{main_mode(experiment)}_{METHOD}"
    return _stage(recipe, settings, experiment, name, inputs, {"method": METHOD})


def _stage(
    recipe: Recipe, settings: LanguageModel, experiment: Experiment, name: str, inputs: Mapping[Path, int],
    further: Mapping[str, str],
) -> Stage:  # fmt: skip
    folder = recipe.exp(experiment.name)
    rescoring = {"avg": settings.avg, "rescoring": settings.resolved()["rescoring"]}
    identity = {"decoding": search_settings(experiment), **rescoring, **further}
    models = {folder: experiment.stage, recipe.decoding_graphs: 4, recipe.exp(settings.name): 11}
    return Stage(11, folder / name, identity, {**models, **inputs})


def choose_weights(recipe: Recipe, experiment: Experiment, settings: LanguageModel) -> None:
    """Write the weights with the fewest errors on the validation cuts."""

    def work(folder: Path) -> None:
        run, grid = Run(experiment, settings.text.valid, main_mode(experiment)), settings.rescoring
        lists, emissions = scored_lists(recipe, settings, run)
        tune_weights(folder, run, lists, emissions, (grid.graph_weights, grid.lm_weights, grid.word_scores))

    run_stage(weights_stage(recipe, settings, experiment), work)


def rescore(recipe: Recipe, pair: tuple[Experiment, str], settings: LanguageModel) -> None:
    """Results of an experiment on a test set, at the weights chosen before."""
    experiment, test_set = pair

    def work(folder: Path) -> None:
        run = Run(experiment, test_set, main_mode(experiment))
        lists, emissions = scored_lists(recipe, settings, run)
        write(folder, run, METHOD, emissions, rescored(recipe, settings, run, lists, emissions))

    run_stage(rescoring_stage(recipe, settings, experiment, test_set), work)


def scored_lists(recipe: Recipe, settings: LanguageModel, run: Run) -> tuple[dict[str, Candidates], Emissions]:
    """n-best lists of a run with the language model's scores, and the emissions that they come from."""
    from distill.decode.nbest import score_all
    from distill.lm.scoring import load_lm

    scorer, *_ = load_lm(recipe.exp(settings.name), recipe.device)
    emissions, rescoring = compute(recipe, run), settings.rescoring
    decoder = graph_decoder(recipe, run.experiment, emissions.units, rescoring.beam)
    return score_all(nbest_lists(decoder, emissions, rescoring.nbest, rescoring.beam), scorer), emissions


def rescored(
    recipe: Recipe, settings: LanguageModel, run: Run, lists: Mapping[str, Candidates], emissions: Emissions
) -> Recognised:
    """The best sequence of each list by the weights in the experiment's folder."""
    from distill.scoring.wer import score

    folder = recipe.exp(run.experiment.name) / "rescoring"
    unscored = run.experiment.decoding.unscored_words
    weights, info = read_weights(folder, lists, emissions, settings.rescoring.nbest, unscored)
    scored = [score(name, emissions.references[name], each.best(weights)) for name, each in lists.items()]
    return Recognised(scored, {"lm": "transformer", **info})
