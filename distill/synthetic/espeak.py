"""espeak-ng with voices of ours, drawn at random."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path
from typing import Any

import numpy as np

from distill.extras import needed


def load_espeak() -> Any:
    """The module espeakng_loader; ValueError with the command that installs it."""
    with needed("the synthesis of the embedded corpus"):
        import espeakng_loader
    return espeakng_loader


def voice_variant(rng: random.Random, sex: str) -> str:
    """The text of a random espeak-ng voice variant file: formants, pitch, tone, breath, flutter."""
    male = sex == "M"
    size = rng.uniform(0.90, 1.02) if male else rng.uniform(1.08, 1.26)
    pitch = rng.randint(70, 115) if male else rng.randint(140, 205)
    lines = ["language variant", "name speaker", f"gender {'male' if male else 'female'}"]
    lines.append(f"pitch {pitch} {int(pitch * rng.uniform(1.35, 1.75))}")
    for formant in range(9):
        # Formant 0 is the voice bar and moves less with the length of the vocal tract.
        shift = size * (1 + rng.uniform(-0.04, 0.04)) if formant else 1 + (size - 1) * 0.4
        lines.append(f"formant {formant} {int(100 * shift)} {rng.randint(75, 120)} {rng.randint(85, 150)}")
    lines += [f"flutter {rng.randint(0, 8)}", f"roughness {rng.randint(0, 4)}"]
    lines.append(f"consonants {rng.randint(80, 120)} {rng.randint(80, 120)}")
    tones = ((600, 130, 200), (1200, 90, 150), (2000, 70, 130), (3000, 50, 110))
    lines.append("tone " + " ".join(f"{hertz} {rng.randint(low, high)}" for hertz, low, high in tones))
    if not male and rng.random() < 0.6:
        lines.append("breath 0 " + " ".join(str(rng.randint(2, 4)) for _ in range(7)))
    return "\n".join(lines) + "\n"


class Espeak:
    """The espeak-ng library with one voice of ours; once per process, as its state outlives it."""

    RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER of speak_lib.h
    SYNCHRONOUS, DONT_EXIT, UTF8 = 2, 0x8000, 1

    def __init__(self, folder: Path, accent: str, variant: str):
        """Lays out voice data with `variant` in `folder`, loads the library, selects the voice."""
        loader = load_espeak()
        _lay_out_voice(folder, Path(loader.get_data_path()), variant)
        self.library = ctypes.CDLL(loader.get_library_path())
        if self.library.espeak_Initialize(self.SYNCHRONOUS, 200, str(folder).encode(), self.DONT_EXIT) < 0:
            raise RuntimeError(f"espeak-ng does not start with the voice data in {folder}")
        self._chunks: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._collect)  # kept: the library keeps a bare pointer to it
        self.library.espeak_SetSynthCallback(self._callback)
        if self.library.espeak_SetVoiceByName(f"{accent}+speaker".encode()):
            raise RuntimeError(f"espeak-ng has no voice {accent!r}")

    def _collect(self, wav: Any, samples: int, _events: Any) -> int:
        if wav and samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wav, shape=(samples,)).copy())
        return 0

    def synthesise(self, text: str, seed: int, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speech (N,) float32 in ±1 at 22,050 Hz; rate in words a minute, pitch and range 0 to 99."""
        settings = ((self.RATE, rate), (self.VOLUME, 100), (self.PITCH, pitch), (self.RANGE, pitch_range))
        for parameter, value in settings:
            self.library.espeak_SetParameter(parameter, value, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks = []
        data = text.lower().encode() + b"\0"
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        if not self._chunks:
            raise RuntimeError(f"espeak-ng gave no sound for {text!r}")
        return np.concatenate(self._chunks).astype(np.float32) / 32768


def _lay_out_voice(folder: Path, data: Path, variant: str) -> None:
    """espeak-ng looks for variants inside its data folder only: a folder of links with our one."""
    home = folder / "espeak-ng-data"
    if len(str(home)) > 120:  # N_PATH_HOME is 160 in speech.h, and file names follow
        raise ValueError(f"espeak-ng cannot take a path as long as {home}; set TMPDIR to a shorter one")
    (home / "voices" / "!v").mkdir(parents=True)
    for name in ("en_dict", "phondata", "phonindex", "phontab", "intonations", "lang"):
        (home / name).symlink_to(data / name)
    (home / "voices" / "!v" / "speaker").write_text(variant)
