"""Part of stage 12: how late words are shown, against a forced alignment by the experiment's teacher."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.recipe.options import Recipe

log = logging.getLogger("export")
SECONDS = 60.0  # of audio, utterance after utterance


def aligning(experiment: Experiment) -> str:
    """The experiment that aligns: the teacher, itself for a teacher."""
    return experiment.teacher.experiment if experiment.teacher else experiment.name


def rows(recipe: Recipe, experiment: Experiment, out: Path) -> list[dict[str, Any]]:
    """A row for what was exported to `out`, in each runtime, over some utterances of the first test set."""
    from distill.decode.graph_decoder import GraphDecoder
    from distill.decode.online import OnlineDecoder
    from distill.fsa.lattice import Search
    from distill.graphs.lexicon import Lang
    from distill.lfmmi import NativeEngine
    from distill.runtime.session import SAMPLE_RATE, open_session
    from distill.runtime.word_latency import measure, summary

    options = experiment.decoding
    search = Search(options.beam, options.lattice_beam, options.max_active)
    graph = GraphDecoder(NativeEngine(), recipe.graphs / "HLG.fst", Lang.load(recipe.lang), search,
                         options.acoustic_scale)  # fmt: skip
    test_set, spoken = utterances(recipe, aligning(experiment), graph)
    found = []
    for runtime in ("onnx", "int8"):
        session = open_session(out, runtime)
        decoder = OnlineDecoder.over(graph, session.facts.hop / SAMPLE_RATE)
        row = summary(measure(session, decoder, each) for each in spoken)
        mode = "streaming" if session.facts.chunk else "offline"
        log.info("%s %s %s: last word shown after %s ms", experiment.name, mode, runtime, row["last_mean_ms"])
        found.append({"mode": mode, "runtime": runtime, "set": test_set, "aligned_by": aligning(experiment), **row})
    return found


def utterances(recipe: Recipe, teacher: str, graph) -> tuple[str, list]:
    """The first test set's name, and its first utterances whose words the lexicon has, aligned."""
    from distill.data.loader import load_cuts

    path = min(recipe.cuts.glob("test-*.jsonl.gz"))
    test_set = path.name.removesuffix(".jsonl.gz")
    return test_set, list(aligned(recipe, teacher, graph, load_cuts(recipe.cuts, [test_set])))


def aligned(recipe: Recipe, teacher: str, graph, cuts) -> Iterator[Any]:
    """Utterances with the times of their words, up to SECONDS of audio."""
    from distill.data.numerators import text_of
    from distill.decode.alignment import align
    from distill.decode.word_times import WordTimes
    from distill.runtime.session import SAMPLE_RATE, open_session
    from distill.runtime.word_latency import Utterance

    session, seconds = open_session(recipe.exp(teacher), "torch", "offline"), 0.0
    times = WordTimes(graph, session.facts.hop / SAMPLE_RATE)
    for cut in cuts:
        if seconds >= SECONDS:
            return
        words = (text_of(cut) or "").split()
        if not all(word in graph.lang.lexicon.pronunciations for word in words):
            log.info("%s is not aligned: it has words outside the lexicon", cut.id)
            continue
        audio = cut.load_audio()[0]
        spans = align(times, words, session.whole(audio))
        if spans:
            seconds += len(audio) / SAMPLE_RATE
            yield Utterance(audio, tuple(words), tuple(spans))
