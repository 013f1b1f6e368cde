"""Audio, addresses and speakers of cuts."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from distill.report.errors_page import clips


@pytest.fixture
def cut(tmp_path: Path) -> MonoCut:
    path = tmp_path / "corpus/a b#1?.wav"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(-32768, 32768, 16000).astype(np.int16)
    soundfile.write(path, noise, 16000, subtype="PCM_16")
    segment = SupervisionSegment("u", "r", 0.0, 1.0, speaker="anna")
    return MonoCut("u", 0.0, 1.0, 0, supervisions=[segment], recording=Recording.from_file(path, recording_id="r"))


def test_flac_has_the_samples(cut: MonoCut) -> None:
    samples, rate = soundfile.read(io.BytesIO(clips.flac(cut.load_audio()[0], 16000)), dtype="int16")
    original, _ = soundfile.read(cut.recording.sources[0].source, dtype="int16")
    assert rate == 16000
    assert np.array_equal(samples, original)
    loud = soundfile.read(io.BytesIO(clips.flac(np.array([-1.5, 0.5, 2.0]), 16000)), dtype="int16")[0]
    assert loud.tolist() == [-32768, 16384, 32767]


def test_a_link_leads_from_the_page_to_the_file(cut: MonoCut, tmp_path: Path) -> None:
    folder = tmp_path / "exp/ss/decode"
    folder.mkdir(parents=True)
    address = clips.link(cut, folder)
    assert address is not None
    assert not set("#?: ") & set(address)
    assert (folder / unquote(address)).resolve() == Path(cut.recording.sources[0].source).resolve()
    assert clips.link(cut.truncate(offset=0.25, duration=0.5), folder) == f"{address}#t=0.250,0.750"


def test_audio_in_no_file_has_no_link(cut: MonoCut, tmp_path: Path) -> None:
    assert clips.link(cut.move_to_memory(), tmp_path) is None
    assert clips.link(cut.append(cut), tmp_path) is None


def test_a_cut_without_speaker_is_its_own(cut: MonoCut) -> None:
    silent = cut.with_id("v").drop_supervisions()
    assert clips.speakers([cut, silent]) == {"u": "anna", "v": "v"}
    assert clips.speakers([silent]) == {}
