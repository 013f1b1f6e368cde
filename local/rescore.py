"""Stage 11: train the Transformer LM, and rescore with it what the graph search of every experiment found."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from decode import headline, write_errors

from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.files import write_json
from distill.recipe import parallel
from distill.recipe.emissions import main_mode, run_model, test_sets
from distill.recipe.ngram_rescoring import rescoring_facts, search_settings
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import command_line, run_script
from distill.recipe.search import check_outputs, graph_decoder
from distill.recipe.stage import Stage, relaunched, run_stage

log = logging.getLogger("rescore")
METHOD = "transformer-lm"
TRAIN_ONLY = "--train-only"
NOT_OF_TRAINING = ("description", "rescoring", "avg")


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument(TRAIN_ONLY, action="store_true", help="leave the rest to the process that started this one")
    args = parser.parse_args()
    recipe = recipe_from(args)
    settings = LanguageModel.load(recipe.lm_yaml, recipe.lm_overrides)
    yamls = [recipe.experiment_yaml(name) for name in recipe.names]
    experiments = [Experiment.load(path, recipe.overrides, recipe.suffix) for path in yamls]
    valid = recipe.cuts / f"{settings.text.valid}.jsonl.gz"
    identity = {key: value for key, value in settings.resolved().items() if key not in NOT_OF_TRAINING}
    folder = recipe.exp(settings.name)
    training = Stage(11, folder, identity, {recipe.text / "lm.txt": 0, valid: 0}, resumable=True)
    needed = {folder: 11, recipe.lm: 3, recipe.lang: 2, valid: 0}
    measured = Stage(11, folder / "perplexity", {"avg": settings.avg}, needed)
    pairs = [(experiment, test_set) for test_set in test_sets(recipe) for experiment in experiments]
    choices = [(each, [weights_stage(recipe, settings, each)]) for each in experiments]
    rescorings = [(pair, [rescoring_stage(recipe, settings, *pair)]) for pair in pairs]
    if recipe.launcher:
        if relaunched(recipe, [training, measured, *parallel.stages_of(choices, rescorings)]):
            return
    else:
        relaunched(recipe, [training], (TRAIN_ONLY,))  # the rest is done here, by processes that share no work
    ranks, recipe = parallel.join(recipe)
    run_stage(training, lambda out: train(recipe, settings, out), ranks)
    if args.train_only:
        return
    run_stage(measured, lambda out: measure(recipe, settings, out) if ranks.first else None, ranks)
    weights, unfinished = map(parallel.unfinished, (choices, rescorings))
    parallel.each(
        recipe,
        ranks,
        (partial(choose_weights, settings=settings), weights),
        (partial(rescore, settings=settings), unfinished),
    )


def transcripts(recipe: Recipe, part: str) -> list[str]:
    """Transcripts of a cut set that has words."""
    from distill.data.loader import load_cuts
    from distill.data.numerators import text_of

    return [text for cut in load_cuts(recipe.cuts, [part]) if (text := text_of(cut))]


def train(recipe: Recipe, settings: LanguageModel, folder: Path) -> None:
    """Train to the end and write result.json."""
    import torch

    from distill.recipe.provenance import commit, hardware
    from distill.train.distributed import join
    from distill.train.language_model import build_lm_trainer, remove_token_ids

    ranks, device = join(recipe.device)
    torch.set_num_threads(recipe.threads)
    valid = transcripts(recipe, settings.text.valid)
    trainer = build_lm_trainer(settings, recipe.text / "lm.txt", valid, folder, ranks, device)
    result = {
        **trainer.run(),
        "experiment": settings.name,
        "description": settings.description,
        "corpus": recipe.corpus,
        "commit": commit(),
        "config": settings.resolved(),
        "hardware": hardware(device),
        "ranks": ranks.world,
        "command": command_line(),
    }
    if ranks.first:
        write_json(folder / "result.json", result)
        remove_token_ids(folder)


def measure(recipe: Recipe, settings: LanguageModel, folder: Path) -> None:
    """summary.json: perplexity per word on the validation transcripts, of the n-grams and of the Transformer LM."""
    import torch

    from distill.graphs.arpa import read_arpa
    from distill.graphs.lexicon import Lang
    from distill.lm.scoring import load_lm, perplexity

    torch.set_num_threads(recipe.threads)
    known = Lang.load(recipe.lang).lexicon.pronunciations
    all_of_them = transcripts(recipe, settings.text.valid)
    sentences = [text for text in all_of_them if all(word in known for word in text.split())]
    models = {}
    for path in sorted(recipe.lm.glob("words.*gram.arpa")):
        lm = read_arpa(path, sentences)
        models[path.stem.removeprefix("words.")] = {"perplexity": round(lm.perplexity(sentences), 3)}
    scorer, *_ = load_lm(recipe.exp(settings.name), recipe.device)
    models["transformer"] = perplexity(scorer, sentences)
    left_out = len(all_of_them) - len(sentences)
    summary = {"set": settings.text.valid, "sentences": len(sentences), "left_out": left_out, "models": models}
    write_json(folder / "summary.json", summary)
    for name, facts in models.items():
        log.info("%s on %s: %s", name, settings.text.valid, facts)


def weights_stage(recipe: Recipe, settings: LanguageModel, experiment: Experiment) -> Stage:
    """The stage that chooses the weights on the validation cuts."""
    valid = recipe.cuts / f"{settings.text.valid}.jsonl.gz"
    needed = {**inputs(recipe, settings, experiment), valid: 0}
    return Stage(11, recipe.exp(experiment.name) / "rescoring", chosen(settings, experiment), needed)


def rescoring_stage(recipe: Recipe, settings: LanguageModel, experiment: Experiment, test_set: str) -> Stage:
    """The stage that rescores a test set with the weights."""
    folder = recipe.exp(experiment.name)
    needed = {folder / "rescoring": 11, recipe.cuts / f"{test_set}.jsonl.gz": 0}
    out = folder / f"decode_{test_set}_{main_mode(experiment)}_{METHOD}"
    facts = {**chosen(settings, experiment), "method": METHOD}
    return Stage(11, out, facts, {**inputs(recipe, settings, experiment), **needed})


def chosen(settings: LanguageModel, experiment: Experiment) -> dict[str, Any]:
    """The settings that weights and rescored results depend on."""
    rescoring = settings.resolved()["rescoring"]
    return {"decoding": search_settings(experiment), "avg": settings.avg, "rescoring": rescoring}


def inputs(recipe: Recipe, settings: LanguageModel, experiment: Experiment) -> dict[Path, int]:
    """What is read for them, whatever the cut set."""
    return {recipe.exp(experiment.name): experiment.stage, recipe.graphs: 4, recipe.exp(settings.name): 11}


def choose_weights(recipe: Recipe, experiment: Experiment, settings: LanguageModel) -> None:
    work = partial(choose, recipe, settings, experiment, main_mode(experiment))
    run_stage(weights_stage(recipe, settings, experiment), work)


def rescore(recipe: Recipe, pair: tuple[Experiment, str], settings: LanguageModel) -> None:
    experiment, test_set = pair
    work = partial(write, recipe, settings, experiment, test_set, main_mode(experiment))
    run_stage(rescoring_stage(recipe, settings, experiment, test_set), work)


def found(
    recipe: Recipe, settings: LanguageModel, experiment: Experiment, part: str, mode: str
) -> tuple[dict, Mapping]:
    """Scored candidates of every utterance by id, and what `run_model` says."""
    from distill.decode.nbest import candidate_lists, score_all
    from distill.lm.scoring import load_lm

    scorer, *_ = load_lm(recipe.exp(settings.name), recipe.device)
    computed, wanted = run_model(recipe, experiment, part, mode), settings.rescoring
    decoder = graph_decoder(recipe, experiment, wanted.beam)
    check_outputs(recipe, experiment, decoder.lang, computed["units"])
    lists = candidate_lists(decoder, computed["scores"].items(), wanted.nbest, wanted.beam)
    return score_all(lists, scorer), computed


def choose(recipe: Recipe, settings: LanguageModel, experiment: Experiment, mode: str, folder: Path) -> None:
    """weights.json: what leaves the fewest errors on the validation cuts, and all that was tried."""
    from distill.decode.nbest import tune

    lists, computed = found(recipe, settings, experiment, settings.text.valid, mode)
    grid = settings.rescoring
    tuning = tune(lists, computed["references"], grid.graph_weights, grid.lm_weights, grid.word_scores)
    content = {"set": settings.text.valid, "mode": mode, **tuning.fields()}
    write_json(folder / "weights.json", content)
    log.info(
        "%s: %d errors on %s instead of %d with %s", experiment.name, tuning.errors, settings.text.valid,
        tuning.before, tuning.weights,
    )  # fmt: skip


def write(
    recipe: Recipe, settings: LanguageModel, experiment: Experiment, test_set: str, mode: str, folder: Path
) -> None:
    """recogs-, errs-, wer-summary-, wer.json, utt2spk and errors.html of a test set at the weights chosen before."""
    from distill.decode.nbest import Weights
    from distill.scoring.wer import score, write_results

    tuning = json.loads((recipe.exp(experiment.name) / "rescoring/weights.json").read_text(encoding="utf-8"))
    weights = Weights(**tuning["weights"])
    lists, computed = found(recipe, settings, experiment, test_set, mode)
    references = computed["references"]
    scored = [score(name, references[name], each.best(weights)) for name, each in lists.items()]
    facts = {
        **computed["facts"], "method": METHOD, "lm": "transformer",
        **rescoring_facts(tuning, lists, references, settings.rescoring.nbest),
    }  # fmt: skip
    write_results(folder, test_set, f"{mode}-{METHOD}", scored, facts)
    write_errors(folder, scored, {**facts, "set": test_set}, computed["cuts"])
    log.info("%s %s %s %s: %s", experiment.name, test_set, mode, METHOD, headline(folder))


if __name__ == "__main__":
    run_script(main)
