"""Settings of units: their folder, their place in an experiment, and what goes with what."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.config.losses import Mmi
from distill.config.training import Data
from distill.config.units import Units

MINIMAL = "stage: 6\nobjective: {mmi: {}}\noptim: {updates: 10}\n"


def test_equal_settings_and_parts_have_one_folder() -> None:
    names = [Units().folder(Data()), Units(of="mfcc", clusters=100).folder(Data(max_duration=9.0))]
    assert names[0] == names[1] and names[0].startswith("mfcc-100-")
    others = [
        Units(seed=1).folder(Data()),
        Units(hours=1.0).folder(Data()),
        Units().folder(Data(train=("unlabelled",))),
        Units().folder(Data(valid="test-clean")),
        Units(of="t", layer=0).folder(Data()),
        Units(of="t", layer=6, clusters=500).folder(Data()),
    ]
    assert len({names[0], *others}) == 7 and others[-1].startswith("t-6-500-")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"of": "teacher"}, "layer: the block of teacher whose output is clustered is not given"),
        ({"layer": 6}, "layer: mfcc has no blocks"),
        ({"of": "fbank", "layer": 0}, "layer: fbank has no blocks"),
        ({"clusters": 1}, "clusters: must be greater than or equal to 2"),
        ({"clusters": 40_000}, "clusters: must be less than or equal to 32767"),
        ({"hours": 0.0}, "hours: must be greater than 0"),
        ({"of": "../x", "layer": 1}, "of: must be a name"),
    ],
)
def test_wrong_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Units.parse(values, "here")


def test_units_go_with_a_term_that_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hubert.yaml"
    path.write_text(MINIMAL)
    assert "units" not in Experiment.load(path).identity()
    with pytest.raises(ValueError, match="units are set, but no term of the objective needs them"):
        Experiment.load(path, ["units={of: mfcc}"])
    monkeypatch.setattr(Mmi, "units", True)
    with pytest.raises(ValueError, match=r"terms mmi need units of frames, but 'units' is not set; .* \{of: mfcc\}"):
        Experiment.load(path)
    experiment = Experiment.load(path, ["units={of: mfcc}"], suffix="_bpe")
    assert experiment.units == Units() and experiment.identity()["units"]["clusters"] == 100
    hubert2 = Experiment.load(path, ["units={of: hubert1, layer: 6}"], suffix="_bpe")
    assert hubert2.units is not None and hubert2.units.experiment == "hubert1_bpe"
