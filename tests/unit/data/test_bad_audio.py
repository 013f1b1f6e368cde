"""Audio that went bad after stage 0: left out of batches once, with its reason; everything else is trained on.

The recipe on a thousand bad utterances: tests/recipe/test_bad_recipe.py.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from lhotse import MonoCut

from distill.config.training import Data
from distill.corpora.cut_sets import CutBlocks, each_cut
from distill.data.audio import Unreadable, read_audio
from distill.data.loader import SpeechDataset, TrainLoader, in_order
from tests.support.bad_corpora import DIFFERS, LATER_FAULTS, LAYOUTS, audio_of, make, mend, spoil_later, stage_0

PARTS = ["labelled", "unlabelled"]
UNDECODED = {DIFFERS, "not a regular file"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_went_bad_is_left_out_once_and_the_rest_is_trained_on(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "corpus", layout, "later", faults=2, sound=20, broken=0)
    stage_0(made, tmp_path)
    cuts = list(each_cut(tmp_path / "cuts", PARTS))
    kinds = spoil_later(cuts, random.Random(layout), len(LATER_FAULTS))
    decoded: set[str] = set()
    original = MonoCut.load_audio
    monkeypatch.setattr(MonoCut, "load_audio", lambda cut, **more: decoded.add(cut.id) or original(cut, **more))
    settings = Data(train=PARTS, max_duration=2.0, workers=0)
    files = [CutBlocks(tmp_path / "cuts", part) for part in PARTS]
    loader = TrainLoader(files, SpeechDataset(None, None, 0, False, False), settings, 1, 0, 1)
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        used = Counter(name for batch in batches for name in batch.ids)
        left_out = [cut for batch in batches for cut in batch.left_out]
        assert {name: reason.removeprefix(f"cut {name}: ").split(":")[0] for name, reason in left_out} == kinds
        assert used == Counter({cut.id for cut in cuts} - kinds.keys()) and len(left_out) == len(kinds)
        assert all(str(audio_of(cut)) in dict(left_out)[cut.id] for cut in cuts if cut.id in kinds)
    assert not {cut_id for cut_id in decoded if kinds.get(cut_id) in UNDECODED}, "ten minutes or a pipe are not opened"
    for cut in cuts:
        mend(audio_of(cut))
    assert sorted(name for batch in loader.epoch(0) for name in batch.ids) == sorted(cut.id for cut in cuts)


def test_an_unreadable_file_of_a_test_set_is_named(tmp_path: Path) -> None:
    stage_0(make(tmp_path / "corpus", "cuts", "later", broken=0), tmp_path)
    cuts = list(each_cut(tmp_path / "cuts", ["test-a"]))
    audio_of(cuts[0]).write_bytes(b"no audio\n")
    with pytest.raises(ValueError, match=rf"^cut {cuts[0].id}: truncated.*{audio_of(cuts[0])}.*$"):
        list(in_order(cuts, SpeechDataset(None, None, 0, False, False), 2.0))


def test_audio_of_other_speeds_and_rates_is_compared_as_it_lies_on_disk(tmp_path: Path) -> None:
    stage_0(make(tmp_path / "corpus", "cuts", "later", broken=0), tmp_path)
    (cut, *_) = each_cut(tmp_path / "cuts", ["dev"])
    for factor in (0.9, 1.1):
        changed = cut.perturb_speed(factor).resample(8000).resample(16000)
        assert len(read_audio(changed)) == changed.num_samples
        longer = changed.recording.duration + 0.1
        changed.recording.duration = longer
        with pytest.raises(Unreadable, match="manifest and audio differ"):
            read_audio(changed)
