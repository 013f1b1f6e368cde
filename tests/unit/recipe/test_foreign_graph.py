"""A decoding graph of --hlg: labels and trainings do not depend on it, and results name it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.recipe import decoding, exporting, labelling, training
from distill.recipe.emissions import Run
from distill.recipe.options import Recipe
from local import compile_graphs
from tests.support.tiny_recipe import Tiny, with_own_graphs


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    """The tiny recipe, whose folders of graphs and n-grams can be changed."""
    return with_own_graphs(tiny)


def with_methods(recipe: Recipe, *methods: str) -> Experiment:
    return Experiment.load(recipe.experiment_yaml("teacher"), [f"decoding.methods=[{','.join(methods)}]"])


def compile_with(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"conf": recipe.conf_dir, "data": recipe.data_dir, "exp": recipe.exp_dir}
    options = [part for kind, folder in folders.items() for part in (f"--{kind}-dir", str(folder))]
    monkeypatch.setattr("sys.argv", ["compile", "--corpus", "tiny", *options, "--hlg", str(recipe.hlg or "")])
    compile_graphs.main()


def test_trainings_and_labels_do_not_depend_on_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identities(recipe: Recipe) -> list[dict]:
        teacher = recipe.experiment("teacher")
        stages = training.training_stage(recipe, teacher), labelling.labelling_stage(recipe, teacher, ["unlabelled"])
        return [stage.identity() for stage in stages]

    shutil.copy(recipe.graphs / "HLG.fst", tmp_path / "theirs.fst")
    compile_with(recipe, monkeypatch)
    mark, before = (recipe.graphs / ".done").read_bytes(), identities(recipe)
    foreign = replace(recipe, hlg=tmp_path / "theirs.fst")
    compile_with(foreign, monkeypatch)
    assert (recipe.graphs / ".done").read_bytes() == mark and identities(foreign) == before
    assert before[0]["inputs"]["data/graphs"] == json.loads(mark)["hash"]
    assert foreign.graphs == recipe.graphs == recipe.decoding_graphs != foreign.decoding_graphs
    own, theirs = (json.loads((r.decoding_graphs / "summary.json").read_text()) for r in (recipe, foreign))
    assert theirs["foreign"] is True and theirs["hlg"]["perplexity"] is None
    assert "foreign" not in own and own["hlg"]["perplexity"] == 3.0
    exported = exporting.export_stage(foreign, foreign.experiment("teacher"))
    assert foreign.decoding_graphs in exported.inputs and foreign.graphs not in exported.inputs


def test_the_labelling_search_uses_the_recipes_own_graph(recipe: Recipe, tmp_path: Path) -> None:
    foreign = replace(recipe, hlg=tmp_path / "theirs.fst")
    assert not foreign.decoding_graphs.exists()
    assert labelling.Labeller(foreign, foreign.experiment("teacher")).decoder.lang.words


@pytest.mark.parametrize("method", ["1best", "nbest", "nbest-oracle"])
def test_results_name_it(recipe: Recipe, tmp_path: Path, method: str) -> None:
    foreign, run = replace(recipe, hlg=tmp_path / "theirs.fst"), Run(with_methods(recipe, method), "dev", "offline")
    recipe.graphs.rename(foreign.decoding_graphs)
    decoding.decode(foreign, run)
    wer = json.loads((recipe.exp("teacher") / f"decode_dev_offline_{method}/wer.json").read_text())
    assert wer["lm"] == "hlg"


def test_greedy_needs_no_decoding_graph(recipe: Recipe) -> None:
    (recipe.graphs / "HLG.fst").unlink()
    decoding.decode(recipe, Run(with_methods(recipe, "greedy"), "dev", "offline"))
    assert json.loads((recipe.exp("teacher") / "decode_dev_offline_greedy/wer.json").read_text())["lm"] is None


def test_greedy_refuses_outputs_of_another_lang(recipe: Recipe) -> None:
    lang = (recipe.data_dir / "lang_phones").resolve()
    (recipe.data_dir / "lang_phones").unlink()
    shutil.copytree(lang, recipe.data_dir / "lang_phones")
    tokens = recipe.lang / "tokens.txt"
    count = len(tokens.read_text(encoding="utf-8").splitlines())
    tokens.write_text(tokens.read_text(encoding="utf-8") + f"further {count}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"teacher was trained with other outputs than .*lang_phones; run stages 2"):
        decoding.decode(recipe, Run(with_methods(recipe, "greedy"), "dev", "offline"))
