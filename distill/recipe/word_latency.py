"""Stage 12: latency of recognised words, against a forced alignment by the experiment's teacher or itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment, maker_of
from distill.config.model import SAMPLE_RATE
from distill.recipe.emissions import cut_set, test_sets
from distill.recipe.options import Recipe
from distill.recipe.search import graph_decoder

if TYPE_CHECKING:
    from distill.decode.graph_decoder import GraphDecoder
    from distill.runtime.word_latency import Utterance

log = logging.getLogger("export")
SECONDS = 60.0  # of audio, utterance after utterance


def aligner(recipe: Recipe, experiment: Experiment) -> str:
    """The experiment whose main output aligns: the teacher, or itself; empty if none was trained."""
    taught_by = experiment.teacher.experiment if experiment.teacher else ""
    teacher = maker_of(recipe.conf_dir, taught_by, recipe.suffix)
    if taught_by and (teacher is None or teacher.recognises):
        return taught_by
    return experiment.name if experiment.recognises else ""


def rows(recipe: Recipe, experiment: Experiment, exported: Path) -> list[dict[str, Any]]:
    """One row per exported runtime, over the first utterances of the first test set; none without an aligner."""
    from distill.decode.online import OnlineDecoder, OnlineSearch
    from distill.runtime.open import open_session
    from distill.runtime.transcriber import open_search
    from distill.runtime.word_latency import measure, summary

    if not (by := aligner(recipe, experiment)):
        log.info(
            "%s: no word latency, as neither it nor a teacher has a main output that aligns words", experiment.name
        )
        return []
    sessions = {runtime: open_session(exported, runtime) for runtime in ("onnx", "int8")}
    graph = graph_decoder(recipe, experiment, sessions["onnx"].info.outputs)
    utterances, rows = list(aligned(recipe, by, graph)), []
    for runtime, session in sessions.items():
        if session.output == "transducer":
            new_search = open_search(exported, session.runner)
        else:
            new_search = partial(OnlineSearch, OnlineDecoder(graph, session.info.hop / SAMPLE_RATE))
        row = summary(measure(session, new_search, each) for each in utterances)
        mode = "streaming" if session.info.chunk_frames else "offline"
        log.info("%s %s %s: last word shown after %s ms", experiment.name, mode, runtime, row["last_mean_ms"])
        labels = {"mode": mode, "runtime": runtime, "set": test_sets(recipe)[0], "aligned_by": by}
        rows.append({**labels, **row})
    return rows


def aligned(recipe: Recipe, aligner: str, graph: GraphDecoder) -> Iterator[Utterance]:
    """Utterances of the first test set with the times of their words, up to SECONDS of audio.

    aligner: the experiment whose main output aligns.
    """
    from distill.data.audio import read_audio
    from distill.data.numerators import text_of
    from distill.decode.alignment import align
    from distill.decode.word_times import WordTimes
    from distill.runtime.open import open_session
    from distill.runtime.word_latency import Utterance

    session, seconds = open_session(recipe.exp(aligner), "torch", "offline", "main"), 0.0
    times = WordTimes(graph, session.info.hop / SAMPLE_RATE)
    for cut in cut_set(recipe.cuts, test_sets(recipe)[0]):
        if seconds >= SECONDS:
            return
        words = (text_of(cut) or "").split()
        if not all(word in graph.lang.lexicon.pronunciations for word in words):
            log.info("%s is not aligned: it has words outside the lexicon", cut.id)
            continue
        audio = read_audio(cut)
        if spans := align(times, words, session.whole(audio)):
            seconds += len(audio) / SAMPLE_RATE
            yield Utterance(audio, tuple(words), tuple(spans))
