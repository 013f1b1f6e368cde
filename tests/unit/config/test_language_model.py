"""Settings of a language model: those of the recipes, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.language_model import LanguageModel

EGS = Path(__file__).parents[3] / "egs"
CONF = sorted(EGS.glob("*/conf/**/lm.yaml"))


def test_every_recipe_has_one() -> None:
    experiments = {path.parent for path in EGS.glob("*/conf/**/*.yaml") if path.parent.name != "sets"}
    assert {path.parent for path in CONF} == experiments


@pytest.mark.parametrize("path", CONF, ids=lambda path: f"{path.parents[1].name}/{path.parent.name}")
def test_those_of_the_recipes_are_valid(path: Path) -> None:
    settings = LanguageModel.load(path)
    assert settings.name == "lm" and settings.description
    assert LanguageModel.model_validate(settings.resolved()) == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text.units=syllables", r"text\.units.*'bpe', 'chars' or 'words'"),
        ("model.dims=3", "unknown key 'dims'; did you mean 'dim'"),
        ("model.heads=5", r"dim 16 must be even and a multiple of heads 5"),
        ("rescoring.lm_weights=[0.5]", "must contain the decoding without a language model"),
        ("rescoring.nbest=0", r"rescoring\.nbest.*greater than or equal to 1"),
        ("optim.updates=0", "either optim.updates or optim.epochs"),
    ],
)
def test_wrong_settings_name_key_and_way_out(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.yaml"
    path.write_text("model: {dim: 16, heads: 2}\noptim: {updates: 3}\n")
    with pytest.raises(ValueError, match=message):
        LanguageModel.load(path, [override])


def test_a_recipe_without_one_gets_the_place_to_copy_it_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"at .*lm\.yaml; copy those of another recipe"):
        LanguageModel.load(tmp_path / "lm.yaml")
