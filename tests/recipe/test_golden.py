"""The losses of the first 20 updates of every recipe's trainings are those that are committed.

They guard every refactoring: a change that moves one on purpose writes them anew, `DISTILL_GOLDEN=write pytest
tests/recipe/test_golden.py`, and gives the reason in its commit. All recipes train on the rehearsal's corpus, the
labelled part alone, as numerators of lattices would depend on the machine, and at a low rate: at the recipes' own ones
rounding grows tenfold every few updates (AVX2 against AVX-512: 8 % after 13), at this one processors differ by 1e-5.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.text import read_lines
from distill.train import loop
from distill.train.distributed import Ranks
from distill.train.language_model import build_lm_trainer
from distill.train.loop import Trainer
from distill.train.setup import Folders, build_trainer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
UPDATES = 20
CHAIN = ("teacher", "sn", "ss")
SETTINGS = (
    f"optim.updates={UPDATES}",
    "optim.lr=2e-4",
    "data.train=[labelled]",
    "data.valid_utterances=4",
    "data.workers=0",
)
REHEARSAL = ("data.max_duration=12",)
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "librispeech-mini": ("egs/librispeech/conf/mini", ()),
    "librispeech-rehearsal": ("egs/librispeech/conf/mini", REHEARSAL),
    "spoken_commands": ("egs/spoken_commands/conf", ()),
}

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rehearsal's data, and in exp the teacher's random weights."""
    folder = tmp_path_factory.mktemp("golden")
    command = [ROOT / "egs/librispeech/run.sh", "--rehearse", "true", "--stop-stage", "5", "--nj", "1"]
    options = ["--data-dir", folder / "data", "--exp-dir", folder / "exp"]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=1200)
    return folder


class Losses:
    """Stands in for the monitor of a training and keeps the loss of each update."""

    curves = None

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, *_: Any) -> Losses:
        return self

    def update(self, step: int, values: dict[str, float], *_: float) -> None:
        self.values.append(values["loss"])

    def valid(self, *_: Any) -> None: ...

    def close(self) -> None: ...


def trainers(root: Path, exp: Path, conf: Path, overrides: tuple[str, ...]) -> Iterator[tuple[str, Trainer]]:
    ranks, device = Ranks(), torch.device("cpu")
    for name in CHAIN:
        experiment = Experiment.load(conf / f"{name}.yaml", [*SETTINGS, *overrides])
        folders = Folders(root / "data", root / "data/lang_phones", root / "data/graphs", exp)
        (exp / name).mkdir(parents=True)
        yield name, build_trainer(experiment, folders, exp / name, "native", ranks, device)
    lm = LanguageModel.load(conf / "lm.yaml", [f"optim.updates={UPDATES}"])
    (exp / "lm").mkdir()
    text = root / "data/text/lm.txt"
    yield "lm", build_lm_trainer(lm, text, list(read_lines(text))[:8], exp / "lm", ranks, device)


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_the_golden_ones(recipe: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf, overrides = RECIPES[recipe]
    (tmp_path / "teacher_init").symlink_to(data / "exp/teacher_init")
    columns = {}
    for name, trainer in trainers(data, tmp_path, ROOT / conf, overrides):
        losses = Losses()
        monkeypatch.setattr(loop, "Monitor", losses)
        trainer.run()
        columns[name] = losses.values
    path = GOLDEN / f"{recipe}.tsv"
    if os.environ.get("DISTILL_GOLDEN") == "write":
        rows = [
            ["update", *columns],
            *([n, *map("{:.6g}".format, row)] for n, row in enumerate(zip(*columns.values()), 1)),
        ]
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    head, *rows = (line.split("\t") for line in path.read_text().splitlines())
    golden = {name: [float(row[i]) for row in rows] for i, name in enumerate(head) if i}
    assert set(columns) == set(golden)
    for name, values in columns.items():
        assert values == pytest.approx(golden[name], rel=1e-4), name
