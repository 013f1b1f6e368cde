"""Stage 10: decode every experiment on every test set: over HLG (1best), and without words (greedy).

With --runtime onnx or int8 it is what stage 12 exported that runs, over HLG only: modes such as streaming-int8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import graph_search
import ngram_methods
import side_by_side

from distill.config.experiment import Experiment
from distill.stages import Recipe, Stage, names_of, recipe_from, recipe_parser, run_script, run_stage

log = logging.getLogger("decode")


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--sets", default="", help="cut sets, comma-separated; empty: all test-*")
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnx", "int8"), help="what runs the model")
    args = parser.parse_args()
    recipe = recipe_from(args)
    sets = names_of("--sets", args.sets) or test_sets(recipe)
    side_by_side.each(recipe, partial(decode_experiment, sets=sets, runtime=args.runtime))


def decode_experiment(recipe: Recipe, name: str, sets: Sequence[str], runtime: str) -> None:
    experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
    for test_set in sets:
        for mode in modes(experiment) if runtime == "torch" else exported_modes(experiment):
            decode(recipe, experiment, test_set, mode, runtime)


def modes(experiment: Experiment) -> list[str]:
    """offline; streaming at the model's chunk; streaming-N at chunks of N frames that `decoding.chunks` asks for."""
    if not experiment.model.streaming.chunk_frames:
        return ["offline"]
    return ["offline", "streaming", *(f"streaming-{chunk}" for chunk in experiment.decoding.chunks)]


def main_mode(experiment: Experiment) -> str:
    """The mode whose rates stand for the model, and in which weights are chosen: streaming, where it streams."""
    return "streaming" if "streaming" in modes(experiment) else "offline"


def exported_modes(experiment: Experiment) -> list[str]:
    """How stage 12's graphs run: in chunks where the model streams."""
    return ["streaming" if experiment.model.streaming.chunk_frames else "offline"]


def test_sets(recipe: Recipe) -> list[str]:
    """Names of the test sets that stage 0 made."""
    found = sorted(path.name.removesuffix(".jsonl.gz") for path in recipe.cuts.glob("test-*.jsonl.gz"))
    if not found:
        raise FileNotFoundError(f"no test-* cut set in {recipe.cuts}; stage 0 makes them (run.sh --stage 0)")
    return found


def decode(recipe: Recipe, experiment: Experiment, test_set: str, mode: str, runtime: str = "torch") -> None:
    """One folder per method; the model runs once for all methods that are not up to date."""
    folder = recipe.exp(experiment.name)
    settings = {"decoding": ngram_methods.search_settings(experiment)}
    needed = {folder: experiment.stage, recipe.graphs: 4, recipe.cuts / f"{test_set}.jsonl.gz": 0}
    computed: dict = {}
    if runtime != "torch":
        needed[folder / "export"] = 12
    label = mode if runtime == "torch" else f"{mode}-{runtime}"
    for method in experiment.decoding.methods if runtime == "torch" else ("1best",):
        inputs = dict(needed)
        if method in ngram_methods.RESCORING:
            inputs |= {recipe.lm: 3, ngram_methods.weights_folder(recipe, experiment): 10}
            ngram_methods.choose_weights(
                recipe, experiment, lambda part: run_model(recipe, experiment, part, main_mode(experiment))
            )
        stage = Stage(10, folder / f"decode_{test_set}_{label}_{method}", {**settings, "method": method}, inputs)

        def work(out: Path, method: str = method) -> None:
            if not computed:
                computed.update(run_model(recipe, experiment, test_set, mode, runtime))
            write(recipe, experiment, test_set, label, method, computed, out)

        run_stage(stage, work)


def run_model(recipe: Recipe, experiment: Experiment, test_set: str, mode: str, runtime: str = "torch") -> dict:
    """Log-probabilities (T, V), reference words and cuts by cut id, and the model's facts."""
    import torch
    from tqdm import tqdm

    from distill.batch import SAMPLE_RATE
    from distill.data.loader import SpeechDataset, in_order, load_cuts
    from distill.data.numerators import text_of
    from distill.decode import log_probs
    from distill.models.checkpoint import load_recogniser
    from distill.models.latency import latency
    from distill.train.monitor import commit

    torch.set_num_threads(max(1, recipe.nj))
    model, trained, units, epoch = load_recogniser(recipe.exp(experiment.name), avg=experiment.decoding.avg)
    cuts = load_cuts(recipe.cuts, [test_set])
    batches = in_order(cuts, SpeechDataset(None, None, 0, False, False), 4 * experiment.data.max_duration)
    batches = (batch.to(recipe.device) for batch in batches)
    model = model.to(recipe.device)
    streaming, _, other_chunk = mode.partition("-")
    if other_chunk:
        model = model.run_at(int(other_chunk), trained.model.streaming.history_frames)
    if runtime != "torch":
        pairs = over_sessions(recipe.exp(experiment.name), cuts, mode, runtime)
    elif streaming == "streaming":
        step = model.settings.streaming.chunk_frames * model.settings.front_end.hop
        pairs = log_probs.streaming(model, batches, step)
    else:
        pairs = log_probs.offline(model, batches)
    delay = latency(model.settings)
    facts = {
        "experiment": experiment.name, "corpus": recipe.corpus, "lm": None,
        "mode": mode if runtime == "torch" else f"{mode}-{runtime}",
        "chunk_ms": delay.chunk, "lookahead_mean_ms": delay.mean, "lookahead_max_ms": delay.max,
        "epoch": epoch, "avg": experiment.decoding.avg, "seed": trained.seed, "commit": commit(),
    }  # fmt: skip
    scores = dict(tqdm(pairs, desc=f"{experiment.name} {test_set} {mode}", total=len(cuts), disable=None))
    references = {cut.id: (text_of(cut) or "").split() for cut in cuts}
    by_id = {cut.id: cut for cut in cuts}
    return {
        "scores": scores, "references": references, "facts": facts, "units": units, "cuts": by_id,
        "frame": model.settings.front_end.hop / SAMPLE_RATE,
        "chunk": model.settings.streaming.chunk_frames if streaming == "streaming" else 0,
    }  # fmt: skip


def over_sessions(folder: Path, cuts: Iterable, mode: str, runtime: str) -> Iterator[tuple]:
    """Pairs of cut id and log-probabilities (T, V) from what stage 12 exported."""
    from distill.deploy.session import open_session

    session = open_session(folder, runtime, mode)
    for cut in cuts:
        yield cut.id, session.whole(cut.load_audio()[0])


def write(
    recipe: Recipe, experiment: Experiment, test_set: str, mode: str, method: str, computed: dict, folder: Path
) -> None:
    """recogs-, errs-, wer-summary-, wer.json, utt2spk and errors.html of one method; of 1best words.ctm and more."""
    from distill.decode.wer import write_results
    from distill.graphs.lexicon import Lang

    lang = Lang.load(recipe.lang)
    graph_search.check_outputs(recipe, experiment, lang, computed["units"])
    facts = {**computed["facts"], "method": method, "lm": "3gram" if method == "1best" else None}
    if method == "1best":
        scored = over_words(recipe, experiment, computed, folder)
    elif method in ngram_methods.METHODS:
        scored, more = ngram_methods.over_method(recipe, experiment, method, computed, folder)
        facts.update(more)
    else:
        scored = over_units(recipe, lang, computed)
    write_results(folder, test_set, f"{mode}-{method}", scored, facts)
    write_errors(folder, scored, {**facts, "set": test_set}, computed["cuts"])
    log.info("%s %s %s %s: %s", experiment.name, test_set, mode, method, headline(folder))


def write_errors(folder: Path, scored: list, facts: Mapping, cuts: Mapping) -> None:
    """Who spoke, and the page of errors."""
    from distill.data import clips
    from distill.decode.compare import write_speakers
    from distill.decode.page import Audio, write_page

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
    from distill.decode.wer import score

    decoder, decoding = graph_search.graph_decoder(recipe, experiment), experiment.decoding
    chunk = computed["chunk"] if recipe.engine == "native" else 0
    nbest = 0 if decoding.blank_skip or not {*decoding.methods} & {*ngram_methods.METHODS} else decoding.nbest
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
    from distill.decode.greedy import best_units, closest_pronunciation
    from distill.decode.wer import score
    from distill.fsa import build_engine
    from distill.fsa.formats import load_fsa

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
