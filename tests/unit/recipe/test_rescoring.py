"""Stage 11 chooses weights on dev alone; the test sets get these weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.data.loader import SpeechDataset
from distill.decode.nbest import Candidates
from distill.recipe import rescoring
from distill.recipe.emissions import Emissions, Run
from distill.recipe.options import Recipe
from distill.recipe.stage import Stage

# on dev the language model is right and the search wrong, on test-clean it is the other way round
COUNTS = ("epoch", "avg", "seed")
READING = SpeechDataset(None, None, 0, False, False)
REFERENCES = {"dev": "RIGHT", "test-clean": "WRONG"}


@pytest.fixture
def scored_sets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cut sets that stage 11 asks lists of; its stages run without inputs."""
    asked: list[str] = []

    def scored_lists(recipe: Recipe, settings: LanguageModel, run: Run) -> tuple[dict[str, Candidates], Emissions]:
        asked.append(run.cut_set)
        each = Candidates((("WRONG",), ("RIGHT",)), np.array([-1.0, -2.0]), np.zeros(2), np.array([-9.0, -1.0]))
        info = {"experiment": run.experiment.name, "mode": run.label, "corpus": "own", "commit": "x"}
        info |= dict.fromkeys(("chunk_ms", "lookahead_mean_ms", "lookahead_max_ms")) | dict.fromkeys(COUNTS, 1)
        return {"u": each}, Emissions({}, {"u": [REFERENCES[run.cut_set]]}, {}, 0.02, 0, (), info, READING)

    def run_stage(stage: Stage, work: Callable[[Path], None]) -> None:
        stage.out.mkdir(parents=True)
        work(stage.out)

    monkeypatch.setattr(rescoring, "scored_lists", scored_lists)
    monkeypatch.setattr(rescoring, "run_stage", run_stage)
    monkeypatch.setattr("distill.report.errors_page.page.write_page", lambda *_: None)  # there is no audio
    return asked


def test_test_sets_get_the_weights_chosen_on_dev(scored_sets: list[str], tmp_path: Path) -> None:
    folders = (tmp_path / name for name in ("conf", "data", "exp"))
    recipe = Recipe("own", *folders, None, 1, "cpu", "native", "phones", "ctc", False, False, ())
    settings = LanguageModel.model_validate({"name": "lm", "optim": {"updates": 1}})
    values = {"name": "sn", "stage": 6, "objective": {"alpha": 1, "beta": 1}, "optim": {"updates": 1}}
    experiment = Experiment.parse(values, "test")
    rescoring.choose_weights(recipe, experiment, settings)
    assert scored_sets == ["dev"]
    before = (tmp_path / "exp/sn/rescoring/weights.json").read_bytes()
    weights = json.loads(before)
    assert (weights["set"], weights["errors"], weights["before"]) == ("dev", 0, 1) and weights["weights"]["lm"] > 0
    rescoring.rescore(recipe, (experiment, "test-clean"), settings)
    assert scored_sets == ["dev", "test-clean"]
    assert (tmp_path / "exp/sn/rescoring/weights.json").read_bytes() == before
    wer = json.loads((tmp_path / "exp/sn/decode_test-clean_offline_transformer-lm/wer.json").read_text())
    assert wer["weights"] == weights["weights"] and wer["wer"] == 100.0, "other weights would suit this set better"
    assert wer["tuning"]["set"] == "dev" and wer["tuning"]["errors"] == 0
    assert (wer["method"], wer["lm"], wer["oracle_errors"]) == ("transformer-lm", "transformer", 0)
