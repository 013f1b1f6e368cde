"""The table of decoding methods, words that are not scored, and a transducer's methods beside the others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

from distill.config.decoding import Method
from distill.recipe import decoding
from distill.recipe.decoding import DECODERS
from distill.recipe.exporting import export_stage
from distill.recipe.options import Recipe
from distill.recipe.stage import run_stage
from distill.report.recognition import sections
from distill.report.runs import read_runs
from distill.scoring.wer import score, scored_without
from tests.support.models import CHUNK
from tests.support.results import training
from tests.support.tiny_recipe import Tiny, add_transducer


def test_every_method_of_the_settings_has_a_decoder() -> None:
    assert tuple(DECODERS) == get_args(Method)


def test_fillers_are_taken_out_of_both_sides() -> None:
    whole = score("u1", ["UH", "I", "SEE", "UM"], ["I", "UH", "SAW"])
    without = scored_without(whole, {"UH", "UM"})
    assert (whole.errors, without.errors, without.sub) == (3, 1, 1)
    assert without.reference == ("I", "SEE") and without.hypothesis == ("I", "SAW")


METHODS = ["1best", "transducer_greedy", "transducer_beam"]


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    """`other`, which streams, with a transducer; `teacher` without."""
    return add_transducer(tiny, conditions={"two": {}})


def test_an_export_of_other_settings_is_not_decoded(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="other/export is not there, or of other settings or weights; run stage 12"):
        decoding.check_exports(recipe, [recipe.experiment("other")])
    stage = export_stage(recipe, recipe.experiment("other"))
    run_stage(stage, lambda folder: None)
    decoding.check_exports(recipe, [recipe.experiment("other")])
    other = replace(recipe, settings=("decoding.avg=2",))
    with pytest.raises(ValueError, match="run stage 12 again"):
        decoding.check_exports(other, [other.experiment("other")])


def test_a_transducer_is_decoded_beside_the_main_output(recipe: Recipe) -> None:
    runs = decoding.runs(recipe.experiments(), ["test-other"], "torch")
    found = sorted((run.output, run.mode, run.condition) for run in runs)
    assert found == sorted(
        (output, mode, condition)
        for output in ("main", "transducer")
        for mode, condition in (("offline", ""), ("streaming", ""), ("streaming", "two"))
    )
    exported = decoding.runs(recipe.experiments(), ["test-other"], "int8")
    found = {(run.output, method) for run in exported for method in decoding.stages(recipe, run)}
    assert found == {("main", "1best"), ("transducer", "transducer_beam")}
    by_method = [method for run in runs for method in decoding.stages(recipe, run)]
    assert {name: by_method.count(name) for name in METHODS} == {
        "1best": 3,
        "transducer_greedy": 2,
        "transducer_beam": 3,
    }
    for run in runs:
        decoding.decode(recipe, run)
    results = {
        path.parent.name: json.loads(path.read_text()) for path in (recipe.exp("other")).glob("decode_*/wer.json")
    }
    assert len(results) == 8
    for method in METHODS:
        offline, streaming = (results[f"decode_test-other_{mode}_{method}"] for mode in ("offline", "streaming"))
        assert offline["wer"] == streaming["wer"] and offline["lm"] == (None if "greedy" in method else "3gram")
    training(recipe.exp("other"), 6, CHUNK)
    titles = dict(sections(read_runs(recipe.exp_dir)))
    beam = next(table for title, table in titles.items() if title.startswith("Word error rate (%), transducer, beam"))
    assert any("streaming" in line and f"{results['decode_test-other_streaming_transducer_beam']['wer']:.2f}" in line
               for line in beam)  # fmt: skip
    assert any(title.startswith("Unit error rate (%), transducer, greedy") for title in titles)
