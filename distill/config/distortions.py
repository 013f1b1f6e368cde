"""Settings of distortions: a waveform goes through steps, each of which draws one of its distortions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from distill.config.bounds import EachOnce, Folder, InOrder, Name, Snr, WithoutNulls
from distill.config.loading import Settings
from distill.config.names import hint, repeated

NOISES = ("gaussian", "coloured", "hum", "crackle")  # that are added; their functions: `distill.data.distortions`
CODECS = ("mu_law", "gsm", "vorbis", "opus", "mp3")
CHANGES = ("reverb", "room", "pitch", "band_reject", "narrowband", "clipping", *CODECS)
AUDIO_SUFFIXES = (".flac", ".wav")  # of recorded noise
CLEAN = "clean"  # in a step: it may leave the waveform as it is; as a label: no step has changed it


def noise_clips(folder: Path) -> Iterator[Path]:
    """The files of recorded noise below a folder, in any order; in linked folders, too."""
    seen = set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()  # a link led to it before, or leads in a circle
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files if name.lower().endswith(AUDIO_SUFFIXES))


class Distort(Settings):
    """Steps with the distortions that each draws from, uniformly; the defaults are the seen ones of papers/003 §4.1.

    A step such as [reverb] always does the same. In which order the paper's two steps are taken is not given, and the
    authors' code adds the noise first: with the noise last its ratio to the speech is the one drawn.
    """

    steps: Annotated[
        tuple[Annotated[tuple[Name, ...], EachOnce, Field(min_length=1)], ...], Field(min_length=1, max_length=8)
    ] = (("reverb", "pitch", "band_reject", CLEAN), ("coloured", "gaussian", CLEAN))
    snr: Annotated[tuple[Snr, Snr], InOrder] = (10.0, 20.0)  # dB
    # recorded ones: name -> folder of clips below the data dir; null takes one of a base away
    noises: Annotated[Mapping[Name, Folder], WithoutNulls] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The distortions in the order of the steps, then `clean`: what the labels of an utterance are of."""
        return (*(name for step in self.steps for name in step if name != CLEAN), CLEAN)

    @model_validator(mode="after")
    def _check(self) -> Distort:
        own, used = (*NOISES, *CHANGES, CLEAN), self.names
        for name in used:
            if name not in (*own, *self.noises):
                raise ValueError(f"steps: no distortion {name!r}{hint(name, (*own, *self.noises))}")
        wrong: Mapping[str, Iterable[str]] = {
            "steps: in two of them, where one is enough": repeated(used),
            "noises: the name of another distortion": self.noises.keys() & {*own},
            "noises: in no step (null takes one of a base away)": self.noises.keys() - {*used},
            "noises: no folder is given": {name for name, folder in self.noises.items() if not folder},
        }
        if problems := [f"{what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names]:
            raise ValueError("; ".join(problems))
        return self
