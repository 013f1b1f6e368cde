"""The denominator of the labelled transcripts: a folder of its own, on which only trainings that ask for it depend."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from distill.corpora.cut_sets import load_cuts, write_cuts
from distill.fsa.k2_format import load_fsa
from distill.graphs.denominator import build_denominator
from distill.graphs.lexicon import Lang
from distill.recipe import training
from distill.recipe.emissions import modes
from distill.recipe.options import Recipe
from tests.support.tiny_recipe import Tiny, with_own_graphs

LABELLED = "data.denominator=labelled"


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    """The tiny recipe with a labelled part, and n-grams to compile graphs from."""
    made = with_own_graphs(tiny, "cuts")
    write_cuts(load_cuts(made.cuts, ["dev"]), made.cuts / "labelled.jsonl.gz")
    return made


def test_it_is_of_the_transcripts_alone(tiny: Tiny, recipe: Recipe) -> None:
    asking = replace(recipe, settings=(LABELLED,))
    plain, asked = recipe.experiment("teacher"), asking.experiment("teacher")
    assert plain.identity() != asked.identity() and "denominator" not in plain.identity()["data"]
    folder = recipe.training_graphs(asked)
    assert recipe.training_graphs(plain) == recipe.graphs != folder
    tiny.run("compile_graphs.py")
    assert not folder.exists()
    logged = tiny.run("compile_graphs.py", "--set", LABELLED)
    assert re.search(r"unit_lm of 3 labelled transcripts, 0 left out", logged)
    sentences = [cut.supervisions[0].text for cut in load_cuts(recipe.cuts, ["dev"])]
    expected, _ = build_denominator(sentences, Lang.load(recipe.lang), recipe.graph_settings())
    ours, theirs = load_fsa(folder / "denominator.pt"), load_fsa(recipe.graphs / "denominator.pt")
    np.testing.assert_allclose(ours.weight, expected.weight, rtol=1e-6)  # stored in float32
    assert ours.weight.shape != theirs.weight.shape or not np.array_equal(ours.weight, theirs.weight)
    assert folder in training.training_stage(recipe, asked).inputs
    assert recipe.graphs in training.training_stage(recipe, plain).inputs
    assert "up to date" in tiny.run("compile_graphs.py", "--set", LABELLED)


def test_streaming_models_can_be_decoded_without_full_context(recipe: Recipe) -> None:
    streams, without = (
        replace(recipe, settings=settings).experiment("other") for settings in ((), ("decoding.offline=false",))
    )
    assert modes(streams) == ["offline", "streaming"] and modes(without) == ["streaming"]
    assert modes(replace(recipe, settings=("decoding.offline=false",)).experiment("teacher")) == ["offline"]
