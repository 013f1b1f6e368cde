"""Synthesised corpora: speech by espeak-ng, or by hibari-tts, in the layout of LibriSpeech; nothing is fetched.

Same seed, same bytes, for any number of processes: espeak-ng carries state from call to call, even over
its own termination, so every speaker is synthesised in a fresh process with seeded random numbers.
espeakng-loader (which brings the GPLv3 library) is needed for generating only: extra `synth`; hibari-tts: `natural`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.signal import lfilter, resample_poly

from distill.files import as_flac, replacing
from distill.synthetic.espeak import Espeak, load_espeak, voice_variant
from distill.synthetic.hibari import Hibari, load_hibari
from distill.synthetic.noise import COLOURS, add_noise, coloured_noise, rms
from distill.synthetic.plans import NATURAL, Drawn, Plan

log = logging.getLogger(__name__)

SAMPLING_RATE = 16000
VERSION = 1
"""Raise it when the audio or the texts change for the same settings: an older corpus is then made again."""
PARTIAL = "partial"
"""Folder of a corpus in which speakers are made that are not complete."""
WRITTEN = ("LibriSpeech", "librispeech-lm-norm.txt.gz", "librispeech-lexicon.txt", PARTIAL)
SPEAKERS_HEADER = """\
; Speakers of the embedded corpus: synthetic voices, laid out as in LibriSpeech
;
; The meaning of the fields in left-to-right order is as follows:
;
; ID      the number of the speaker
; SEX     'F' for female, 'M' for male
; SUBSET  the part of the corpus that holds the speaker
; MINUTES total speech of the speaker, in minutes
; NAME    the synthesiser and its accent
;
;ID  |SEX| SUBSET           |MINUTES| NAME
"""


@dataclass(frozen=True)
class Speaker:
    """One voice and its sentences."""

    number: int
    part: str
    sex: str
    accent: str
    snr: tuple[float, float]
    colours: tuple[str, ...]
    seed: int
    texts: tuple[str, ...]

    @property
    def natural(self) -> bool:
        """Whether hibari-tts speaks, and not espeak-ng."""
        return self.accent == NATURAL

    @property
    def chapter(self) -> str:
        """Name of the only chapter, `<speaker>-<chapter>`."""
        return f"{self.number}-{self.number}01"


def generate_corpus(
    corpus_dir: Path | str,
    source_dir: Path | str,
    *,
    scale: float = 1.0,
    seed: int = 42,
    processes: int = 2,
    kind: type[Plan] = Drawn,
) -> Path:
    """Writes `corpus_dir`/LibriSpeech, librispeech-lm-norm.txt.gz and librispeech-lexicon.txt.

    `source_dir` has the files of the plan's kind and lexicon.txt; `scale` multiplies the number of sentences. Finished
    speakers are kept, so a killed call continues; other settings start again. Returns `corpus_dir`.
    Raises ValueError without the synthesiser's package, and for a folder of another origin.
    """
    corpus_dir, source_dir = Path(corpus_dir), Path(source_dir)
    plan = kind(source_dir, seed)
    settings = _settings(plan, source_dir, scale, seed)
    with _locked(corpus_dir):
        if _claim(corpus_dir, settings):
            return corpus_dir
        speakers = plan_speakers(plan, scale, seed)
        for load in {load_hibari if speaker.natural else load_espeak for speaker in speakers}:
            load()
        _synthesise_all(speakers, corpus_dir, processes)
        spoken = {text for speaker in speakers for text in speaker.texts}
        data = gzip.compress(("\n".join(plan.further(spoken, scale)) + "\n").encode(), mtime=0)
        _write(corpus_dir / "librispeech-lm-norm.txt.gz", data)
        shutil.copyfile(source_dir / "lexicon.txt", corpus_dir / "librispeech-lexicon.txt")
        _write_speakers(corpus_dir / "LibriSpeech", speakers)
        _write(corpus_dir / "embedded.json", json.dumps(settings | {"complete": True}, indent=1))
    return corpus_dir


def plan_speakers(plan: Plan, scale: float = 1.0, seed: int = 42) -> list[Speaker]:
    """Every speaker of every part, with sex, accent and sentences; the same for the same seed."""
    if scale <= 0:
        raise ValueError(f"scale of the embedded corpus: expected a number > 0, got {scale}")
    speakers: list[Speaker] = []
    for part in plan.parts:
        sentences = max(4, round(part.sentences * scale))
        people = max(2, min(part.speakers, sentences // 4)) if scale < 1 else part.speakers
        for index in range(people):
            count = (index + 1) * sentences // people - index * sentences // people
            texts = plan.sentences(part, index, count)
            accent, sex = part.accents[index % len(part.accents)], "MF"[index % 2]
            speakers.append(Speaker(101 + len(speakers), part.name, sex, accent, part.snr, part.colours, seed, texts))
    return speakers


def _settings(plan: Plan, source_dir: Path, scale: float, seed: int) -> dict[str, Any]:
    files = [source_dir / name for name in (*plan.files, "lexicon.txt")]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    parts = json.loads(json.dumps([asdict(part) for part in plan.parts]))
    return {"version": VERSION, "scale": scale, "seed": seed, "source": digest[:16], "parts": parts}


@contextlib.contextmanager
def _locked(corpus_dir: Path) -> Iterator[None]:
    """One call at a time in a folder; the children share the lock, so it outlasts a killed parent."""
    corpus_dir.mkdir(parents=True, exist_ok=True)
    with (corpus_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is synthesising in %s; waiting for it", corpus_dir)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _claim(corpus_dir: Path, settings: dict[str, Any]) -> bool:
    """Makes the folder ready for these settings; True if the corpus is complete already."""
    stamp = corpus_dir / "embedded.json"
    try:
        before = json.loads(stamp.read_text()) if stamp.is_file() else None
    except ValueError:
        raise ValueError(f"{stamp} is cut short; remove it and {corpus_dir}/LibriSpeech, or choose another") from None
    for name in WRITTEN if before is None else ():
        if (corpus_dir / name).exists():
            raise ValueError(f"{corpus_dir}/{name} exists and is not an embedded corpus; choose another --corpus-dir")
    complete = bool(before and before.pop("complete", False))
    if before is not None and before != settings:
        changed = [key for key in settings if before.get(key) != settings[key]]
        log.info("embedded corpus in %s: made again, changed: %s", corpus_dir, ", ".join(changed))
        shutil.rmtree(corpus_dir / "LibriSpeech", ignore_errors=True)
        complete = False
    if not complete:
        _write(stamp, json.dumps(settings, indent=1))
    return complete


def _synthesise_all(speakers: Sequence[Speaker], corpus_dir: Path, processes: int) -> None:
    """Synthesises the speakers that are missing, each in a fresh process."""
    root, partial = corpus_dir / "LibriSpeech", corpus_dir / PARTIAL
    pending = [s for s in reversed(speakers) if not _speaker_dir(root, s).is_dir()]
    log.info("synthesising %d sentences of %d speakers", sum(len(s.texts) for s in pending), len(pending))
    if len(pending) < len(speakers):
        log.info("%d speakers are complete already", len(speakers) - len(pending))
    shutil.rmtree(partial, ignore_errors=True)
    # fork, not spawn: a new interpreter would import everything again for each of 144 speakers.
    context = multiprocessing.get_context("fork")
    running: dict[Any, tuple[Any, Speaker]] = {}
    try:
        while pending or running:
            while pending and len(running) < max(1, processes):
                speaker, (here, there) = pending.pop(), context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(speaker, root, partial, there), daemon=True)
                child.start()
                there.close()  # so that the end of the child is the end of the pipe
                running[here] = (child, speaker)
            for pipe in wait(list(running)):
                child, speaker = running.pop(pipe)
                _check(child, pipe, speaker)
    finally:
        for child, _ in running.values():
            child.terminate()
            child.join()
        shutil.rmtree(partial, ignore_errors=True)  # also of a failed call: a full disk gets its room back


def _child(speaker: Speaker, root: Path, partial: Path, pipe: Any) -> None:
    """Synthesises a speaker; sends None, or the error that the parent raises, through the pipe."""
    try:
        _synthesise_speaker(speaker, root, partial)
    except (OSError, ValueError, RuntimeError) as error:
        pipe.send(str(error))
    else:
        pipe.send(None)


def _check(child: Any, pipe: Any, speaker: Speaker) -> None:
    """Raises RuntimeError where a child has failed or was killed."""
    try:
        reason = pipe.recv()
    except EOFError:
        child.join()
        reason = f"its process ended with exit code {child.exitcode}"
    child.join()
    if reason:
        raise RuntimeError(f"speaker {speaker.number} of the embedded corpus: {reason}")


def _speaker_dir(root: Path, speaker: Speaker) -> Path:
    return root / speaker.part / str(speaker.number)


def _synthesise_speaker(speaker: Speaker, root: Path, partial: Path) -> None:
    """Writes one speaker's folder, complete or not at all; meant for a process of its own."""
    work = partial / f"{speaker.number}-{os.getpid()}"
    chapter = work / f"{speaker.number}01"
    chapter.mkdir(parents=True)
    lines = []
    for index, (text, samples) in enumerate(zip(speaker.texts, _speak(speaker), strict=True)):
        name = f"{speaker.chapter}-{index:04d}"
        _write(chapter / f"{name}.flac", as_flac(samples, SAMPLING_RATE))
        lines.append(f"{name} {text}\n")
    _write(chapter / f"{speaker.chapter}.trans.txt", "".join(lines))
    target = _speaker_dir(root, speaker)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(work, target)


def _speak(speaker: Speaker) -> Iterator[np.ndarray]:
    rng = random.Random(f"{speaker.seed}/voice/{speaker.number}")
    for index, (speech, tilt) in enumerate((_hibari if speaker.natural else _espeak)(speaker, rng)):
        yield _record(speech, tilt, speaker, np.random.default_rng([speaker.seed, speaker.number, index]))


def _espeak(speaker: Speaker, rng: random.Random) -> Iterator[tuple[np.ndarray, float]]:
    """Speech at 16 kHz and the tilt of the microphone."""
    variant = voice_variant(rng, speaker.sex)
    tilt, words_a_minute = rng.uniform(-0.45, 0.45), rng.randint(125, 180)
    with tempfile.TemporaryDirectory(prefix="voice-") as folder:
        espeak = Espeak(Path(folder), speaker.accent, variant)
        for index, text in enumerate(speaker.texts):
            clean = espeak.synthesise(
                text,
                seed=speaker.number * 10_000 + index,
                rate=words_a_minute + rng.randint(-12, 12),
                pitch=50 + rng.randint(-6, 6),
                pitch_range=rng.randint(35, 70),
            )
            yield resample_poly(clean, 320, 441), tilt


def _hibari(speaker: Speaker, rng: random.Random) -> Iterator[tuple[np.ndarray, float]]:
    """The same."""
    voice, tilt = Hibari(rng, speaker.sex), rng.uniform(-0.45, 0.45)
    for index, text in enumerate(speaker.texts):
        clean = voice.synthesise(text, seed=speaker.number * 10_000 + index, pace=rng.uniform(0.93, 1.07))
        yield resample_poly(clean, 2, 3), tilt


def _record(speech: np.ndarray, tilt: float, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """A recording of speech at 16 kHz: microphone tilt, edges of silence, level, noise."""
    speech = lfilter([1.0, -tilt], [1.0], speech.astype(np.float32)).astype(np.float32)
    speech *= np.float32(0.06 * 10 ** rng.uniform(-0.2, 0.2) / (rms(speech) + 1e-9))
    before, after = rng.integers(1600, 4800, size=2)
    speech = np.pad(speech, (int(before), int(after)))
    colour = COLOURS[speaker.colours[rng.integers(len(speaker.colours))]]
    noisy = add_noise(speech, coloured_noise(len(speech), colour, rng), rng.uniform(*speaker.snr))
    return np.clip(noisy, -0.99, 0.99)


def _write_speakers(root: Path, speakers: Sequence[Speaker]) -> None:
    lines = [SPEAKERS_HEADER]
    for s in speakers:
        files = sorted(_speaker_dir(root, s).rglob("*.flac"))
        minutes = sum(soundfile.info(path).duration for path in files) / 60
        name = "hibari-tts" if s.natural else f"espeak-ng {s.accent}"
        lines.append(f"{s.number:<5}| {s.sex} | {s.part:<17}| {minutes:<5.2f} | {name}\n")
    _write(root / "SPEAKERS.TXT", "".join(lines))


def _write(path: Path, content: str | bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
