"""Long recordings cut into utterances where a voice activity detector, silero-vad, finds speech."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.config.job import Job
from distill.corpora.listing import Listing, Source, Utterance
from distill.corpora.shards import stored
from distill.extras import needed
from distill.files import write_lines
from distill.text import read_lines

log = logging.getLogger(__name__)

LONGEST = 20.0
"""Seconds of the longest cut: stretches of speech are joined up to it, and longer ones split."""
GAP = 1.0
"""Seconds of silence over which stretches are not joined."""
BLOCK = 1800
"""Seconds examined at a time, which bounds the memory; speech over a border becomes two cuts."""
RATE = 16000
SHARD = 20
"""Recordings of a shard."""

Stretches = list[tuple[float, float]]


def segment(recordings: Mapping[str, str], path: Path, processes: int = 1, job: Job | None = None) -> None:
    """Writes a line `{"recording", "speech": [[begin, end], …]}` in seconds to `path` for each of the recordings.

    Audio that cannot be read gets no line. What is done is kept in shards beside; a job does its share of them alone.
    Raises ValueError where silero-vad is not installed.
    """
    with needed("the segmentation of long recordings"):
        import silero_vad  # noqa: F401
    log.info("%s: looking for speech in %d recordings", path.stem, len(recordings))
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(max(1, min(processes, len(recordings))), context) as pool:

        def find(names: Sequence[str]) -> Iterator[Stretches | None]:
            return pool.map(speech, [recordings[name] for name in names], chunksize=1)

        found = dict(stored(path.with_suffix(""), list(recordings), find, job, SHARD))
    found = {name: stretches for name, stretches in found.items() if stretches is not None}
    if job is None:
        write_lines(path, (json.dumps({"recording": name, "speech": speech}) for name, speech in found.items()))
    seconds = sum(end - begin for stretches in found.values() for begin, end in stretches)
    log.info("%s: %.2f h of speech in %d recordings", path.stem, seconds / 3600, len(found))


def read_segments(path: Path) -> dict[str, Stretches]:
    """Begin and end in seconds of the stretches of each recording."""
    rows = map(json.loads, read_lines(path) if path.is_file() else ())
    return {row["recording"]: [(begin, end) for begin, end in row["speech"]] for row in rows}


def speech(audio: str) -> Stretches | None:
    """Begin and end in seconds of speech in a file, joined; None for what is no audio."""
    import soundfile
    import torch
    from silero_vad import get_speech_timestamps
    from torchaudio.functional import resample

    torch.set_num_threads(1)
    found = []
    try:
        with soundfile.SoundFile(audio) as file:
            for number, block in enumerate(file.blocks(BLOCK * file.samplerate, dtype="float32", always_2d=True)):
                samples = resample(torch.from_numpy(block[:, 0].copy()), file.samplerate, RATE)
                stretches = get_speech_timestamps(samples, _detector(), max_speech_duration_s=LONGEST)
                found += [(number * BLOCK + s["start"] / RATE, number * BLOCK + s["end"] / RATE) for s in stretches]
    except (soundfile.LibsndfileError, RuntimeError):
        return None
    return joined(found)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from silero_vad import load_silero_vad

    return load_silero_vad()


def joined(stretches: Sequence[tuple[float, float]]) -> Stretches:
    """Neighbours that are less than `GAP` apart as one, up to `LONGEST` seconds."""
    cuts: Stretches = []
    for begin, end in stretches:
        if cuts and begin - cuts[-1][1] < GAP and end - cuts[-1][0] <= LONGEST:
            cuts[-1] = (cuts[-1][0], end)
        else:
            cuts.append((begin, end))
    return [(round(begin, 3), round(end, 3)) for begin, end in cuts]


def add_cuts(listing: Listing, name: str, source: Source, stretches: Stretches | None, speaker: str | None) -> None:
    """Adds a recording with an utterance for each stretch, `<name>-0000`…, or as a whole where none were looked for."""
    listing.sources[name] = source
    if stretches is None:
        listing.utterances.append(Utterance(name, name, speaker=speaker))
    elif not stretches:
        listing.left_out.append((name, f"no speech found: {source.value}"))
    for number, (begin, end) in enumerate(stretches or ()):
        listing.utterances.append(Utterance(f"{name}-{number:04d}", name, begin, end, speaker=speaker))
