"""Stage 11 chooses weights on dev alone, and the test sets only ever get what was chosen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.decode.nbest import Candidates

LOCAL = Path(__file__).parents[3] / "local"
# on dev the language model knows better than the search, on test-clean it is the other way round
REFERENCES = {"dev": "RIGHT", "test-clean": "WRONG"}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(LOCAL))
    import rescore

    asked: list[str] = []

    def found(recipe: Any, settings: Any, experiment: Any, part: str, mode: str) -> tuple[dict, dict]:
        asked.append(part)
        each = Candidates((("WRONG",), ("RIGHT",)), np.array([-1.0, -2.0]), np.zeros(2), np.array([-9.0, -1.0]))
        facts = {"experiment": experiment.name, "mode": mode}
        return {"u": each}, {"references": {"u": [REFERENCES[part]]}, "facts": facts, "cuts": {}}

    monkeypatch.setattr(rescore, "found", found)
    monkeypatch.setattr(rescore, "write_errors", lambda *_: None)
    yield SimpleNamespace(choose=rescore.choose, write=rescore.write, asked=asked)
    for name in ("rescore", "decode"):
        sys.modules.pop(name, None)


def test_test_sets_get_what_dev_chose(stage: Any, tmp_path: Path) -> None:
    recipe = SimpleNamespace(exp=lambda name: tmp_path / name)
    settings = LanguageModel.model_validate({"name": "lm", "optim": {"updates": 1}})
    values = {"name": "sn", "stage": 6, "objective": {"alpha": 1, "beta": 1}, "optim": {"updates": 1}}
    experiment = Experiment.parse(values, "test")
    chosen, out = tmp_path / "sn/rescoring", tmp_path / "sn/decode_test-clean_offline_transformer-lm"
    chosen.mkdir(parents=True)
    out.mkdir()
    stage.choose(recipe, settings, experiment, "offline", chosen)
    assert stage.asked == ["dev"]
    before = (chosen / "weights.json").read_bytes()
    weights = json.loads(before)
    assert (weights["set"], weights["errors"], weights["before"]) == ("dev", 0, 1) and weights["weights"]["lm"] > 0
    stage.write(recipe, settings, experiment, "test-clean", "offline", out)
    assert stage.asked == ["dev", "test-clean"]
    assert (chosen / "weights.json").read_bytes() == before
    wer = json.loads((out / "wer.json").read_text())
    assert wer["weights"] == weights["weights"] and wer["wer"] == 100.0, "other weights would suit this set better"
    assert wer["tuning"]["set"] == "dev" and wer["tuning"]["errors"] == 0
    assert (wer["method"], wer["lm"], wer["oracle_errors"]) == ("transformer-lm", "transformer", 0)
