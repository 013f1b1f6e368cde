"""The sentences of the embedded corpus in the layouts of other corpora, for rehearsals."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from distill.files import as_flac, link, replacing, write_json, write_text
from distill.synthetic.plans import PARTS
from distill.synthetic.speech import generate_corpus
from distill.text import read_lines

RATE = 16000
PAUSE = 1.5
"""Seconds between the utterances of a long recording: more than within one."""
SCALE = 0.025
"""Share of the embedded corpus' sentences that a rehearsal has."""
ARRANGED = "arranged.json"


class Sentence(NamedTuple):
    """A sentence of the embedded corpus and its audio file."""

    name: str
    speaker: str
    text: str
    audio: Path


Sentences = Mapping[str, list[Sentence]]
"""Part of the embedded corpus -> its sentences."""


def rehearsal(layout: str, root: Path, source_dir: Path, seed: int, processes: int) -> None:
    """Synthesises a few sentences in `root`/embedded and writes them as `layout` into `root`, once.

    `source_dir` holds grammar.txt and lexicon.txt; a killed call continues.
    """
    if not (root / ARRANGED).is_file():
        generate_corpus(root / "embedded", source_dir, scale=SCALE, seed=seed, processes=processes)
        LAYOUTS[layout](sentences_of(root / "embedded"), root)
        write_json(root / ARRANGED, {"layout": layout})


def sentences_of(embedded: Path) -> Sentences:
    """The sentences of every part, by their speaker and name."""
    return {
        part.name: [
            Sentence(name, name.split("-")[0], text, path.parent / f"{name}.flac")
            for path in sorted((embedded / "LibriSpeech" / part.name).rglob("*.trans.txt"))
            for name, _, text in (line.partition(" ") for line in read_lines(path))
        ]
        for part in PARTS
    }


def mini_librispeech(sentences: Sentences, root: Path) -> None:
    """LibriSpeech/train-clean-5 and dev-clean-2, and LibriSpeech's lexicon."""
    _link(root / "embedded/librispeech-lexicon.txt", root / "librispeech-lexicon.txt")
    for part, source in (("train-clean-5", "train-clean-100"), ("dev-clean-2", "dev-clean")):
        for speaker, utterances in by_speaker(sentences[source]):
            folder = _folder(root / "LibriSpeech" / part / speaker / f"{speaker}01")
            for utterance in utterances:
                _link(utterance.audio, folder / f"{utterance.name}.flac")
            lines = (f"{utterance.name} {utterance.text}\n" for utterance in utterances)
            write_text(folder / f"{speaker}-{speaker}01.trans.txt", "".join(lines))


def libri_light(sentences: Sentences, root: Path) -> None:
    """small/SPEAKER/BOOK/CHAPTER.flac, a chapter of all of a speaker's sentences, with its JSON file beside it."""
    for speaker, utterances in by_speaker(sentences["train-clean-360"]):
        folder = _folder(root / "small" / speaker / "embedded_librivox_64kb_mp3")
        samples, stretches = recording(utterances)
        name = f"01_embedded_{speaker}_64kb"
        with replacing(folder / f"{name}.flac") as temporary:
            temporary.write_bytes(as_flac(samples, RATE))
        info = {"speaker": speaker, "book_meta": {"title": "Embedded", "genre": []}, "snr": 20.0}
        write_json(folder / f"{name}.json", {**info, "voice_activity": stretches})


def gigaspeech(sentences: Sentences, root: Path) -> None:
    """GigaSpeech.json and audio/SOURCE/P0000/AID.opus; tags for punctuation, and noise at the end of each recording."""
    _link(root / "embedded/librispeech-lm-norm.txt.gz", root / "lm.txt.gz")
    audios = []
    subsets = {
        "train-clean-100": ("XL", "L", "M", "S"), "train-clean-360": ("XL", "L"), "dev-clean": ("DEV",),
        "test-clean": ("TEST",), "test-other": ("TEST",),
    }  # fmt: skip
    for part, names in subsets.items():
        for speaker, utterances in by_speaker(sentences[part][:40]):
            aid = f"POD{int(speaker):010d}"
            path = f"audio/podcast/P0000/{aid}.opus"
            samples, stretches = recording(utterances)
            noise = np.random.default_rng(int(speaker)).normal(0, 0.05, RATE)  # a second of it
            with replacing(_folder((root / path).parent) / f"{aid}.opus") as temporary:
                soundfile.write(
                    temporary, np.append(samples, noise), RATE, format="OGG", subtype="OPUS", compression_level=1.0
                )
            texts = [_punctuated(utterance) for utterance in utterances] + ["<NOISE>"]
            seconds = len(samples) / RATE
            tags = [f"{{{name}}}" for name in names]
            segments = [
                {"sid": f"{aid}_S{n:07d}", "speaker": "N/A", "begin_time": begin, "end_time": end, "text_tn": text,
                 "subsets": tags}
                for n, ((begin, end), text) in enumerate(zip([*stretches, (seconds, seconds + 1)], texts, strict=True))
            ]  # fmt: skip
            audios.append({
                "title": "embedded", "url": "", "path": path, "aid": aid, "source": "podcast", "codec": "opus",
                "channels": 1, "md5": "", "duration": seconds + 1, "sample_rate": RATE, "category": "N/A",
                "subsets": tags, "segments": segments,
            })  # fmt: skip
    corpus = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    with replacing(root / "GigaSpeech.json") as temporary:
        temporary.write_text(json.dumps(corpus, indent=2), encoding="utf-8")


def custom(sentences: Sentences, root: Path) -> None:
    """labelled/SPEAKER/NAME.flac with NAME.txt beside, unlabelled/meeting-N.flac of many, lm.txt.gz."""
    _link(root / "embedded/librispeech-lm-norm.txt.gz", root / "lm.txt.gz")
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        for speaker, utterances in by_speaker(sentences[part]):
            folder = _folder(root / "labelled" / speaker)
            for utterance in utterances:
                _link(utterance.audio, folder / f"{utterance.name}.flac")
                write_text(folder / f"{utterance.name}.txt", f"{utterance.text.capitalize()}.\n")
    for number in range(2):
        samples, _ = recording(sentences["train-clean-360"][number::2])
        with replacing(_folder(root / "unlabelled") / f"meeting-{number}.flac") as temporary:
            temporary.write_bytes(as_flac(samples, RATE))


LAYOUTS: Mapping[str, Callable[[Sentences, Path], None]] = {
    "mini_librispeech": mini_librispeech,
    "gigaspeech": gigaspeech,
    "custom": custom,
}


def by_speaker(sentences: list[Sentence]) -> Iterator[tuple[str, list[Sentence]]]:
    """The sentences of each speaker of a part."""
    for speaker, spoken in groupby(sentences, lambda sentence: sentence.speaker):
        yield speaker, list(spoken)


def recording(sentences: list[Sentence]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The samples (N,) of sentences with a pause after each, and where each begins and ends, in seconds."""
    pieces: list[np.ndarray] = []
    stretches, position = [], 0
    for sentence in sentences:
        samples, _ = soundfile.read(sentence.audio, dtype="float32")
        stretches.append((position / RATE, (position + len(samples)) / RATE))
        pieces += [samples, np.zeros(round(PAUSE * RATE), np.float32)]
        position += len(samples) + len(pieces[-1])
    return np.concatenate(pieces), stretches


def _punctuated(sentence: Sentence) -> str:
    """The text with the tags that GigaSpeech has for punctuation."""
    words, rng = sentence.text.split(), random.Random(sentence.name)
    words.insert(rng.randint(1, len(words) - 1), "<COMMA>")
    return " ".join([*words, rng.choice(("<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"))])


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    link(source, target)
