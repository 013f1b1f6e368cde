"""The table of decoding methods, words that are not scored, and a transducer's methods beside the others."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
import yaml

from distill.config.decoding import Method
from distill.config.experiment import Experiment
from distill.models import checkpoint
from distill.models.recogniser import Recogniser
from distill.recipe import decoding
from distill.recipe.decoding import DECODERS
from distill.recipe.options import Recipe
from distill.report.recognition import sections
from distill.report.runs import read_runs
from distill.scoring.wer import score, scored_without
from tests.support.models import CHUNK
from tests.support.results import training
from tests.support.tiny_recipe import Tiny


def test_every_method_of_the_settings_has_a_decoder() -> None:
    assert tuple(DECODERS) == get_args(Method)


def test_fillers_are_taken_out_of_both_sides() -> None:
    whole = score("u1", ["UH", "I", "SEE", "UM"], ["I", "UH", "SAW"])
    without = scored_without(whole, {"UH", "UM"})
    assert (whole.errors, without.errors, without.sub) == (3, 1, 1)
    assert without.reference == ("I", "SEE") and without.hypothesis == ("I", "SAW")


TRANSDUCER = {"dim": 8, "joiner_dim": 8}
METHODS = ["1best", "transducer_greedy", "transducer_beam"]


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    """`other`, which streams, with a transducer; `teacher` without."""
    path, folder = tiny.conf / "other.yaml", tiny.exp / "other"
    values = yaml.safe_load(path.read_text())
    values["model"]["transducer"], values["objective"]["transducer"] = TRANSDUCER, {}
    values["decoding"] = {"methods": METHODS, "conditions": {"two": {}}}
    path.write_text(yaml.safe_dump(values))
    experiment, content = Experiment.load(path), checkpoint.load(folder / "epoch-1.pt")
    torch.manual_seed(0)
    model = Recogniser(experiment.model, len(content["units"]))
    with torch.no_grad():
        model.transducer.output.weight.mul_(8)
    weights = {**model.state_dict(), **content["model"]}
    checkpoint.save(folder / "epoch-1.pt", {**content, "model": weights, "experiment": experiment.resolved()})
    folders = (tiny.conf, tiny.data, tiny.exp)
    return Recipe("tiny", *folders, None, 1, "cpu", "native", "phones", "ctc", False, False, (), ("other",))


def test_a_transducer_is_decoded_beside_the_main_output(recipe: Recipe) -> None:
    runs = decoding.runs(recipe.experiments(), ["test-other"], "torch")
    found = sorted((run.output, run.mode, run.condition) for run in runs)
    assert found == sorted(
        (output, mode, condition)
        for output in ("main", "transducer")
        for mode, condition in (("offline", ""), ("streaming", ""), ("streaming", "two"))
    )
    assert {run.output for run in decoding.runs(recipe.experiments(), ["test-other"], "int8")} == {"main"}
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
