"""GigaSpeech: podcasts, YouTube and audio books, 250 hours of them labelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.corpora.corpus import Corpus, Options, Roles, first_file
from distill.corpora.listing import Listing, Source, Utterance

HOME = "https://github.com/SpeechColab/GigaSpeech"
PUNCTUATION = frozenset(("<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"))
GARBAGE = frozenset(("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"))
"""Tags of segments without speech, which GigaSpeech's authors ask to discard."""
BLOCK = 1 << 24
BETWEEN = re.compile(r"[\s,]*")


class GigaSpeech(Corpus):
    """GigaSpeech.json and the folder audio: S is labelled, XL without S unlabelled.

    The text corpus is lm.txt beside it, or the transcripts of S; the lexicon lexicon.txt beside it, or made.
    """

    roles = Roles(labelled=("S",), unlabelled=("XL",), dev=("DEV",), tests={"test-giga": ("TEST",)})
    layout = "gigaspeech"
    unlabelled_parts = ("XL", "L", "M", "XS")

    def __init__(self, root: Path, options: Options | None = None) -> None:
        super().__init__(root, options)
        self.table = root / "GigaSpeech.json"
        if not self.table.is_file():
            raise FileNotFoundError(
                f"no GigaSpeech.json in {root}: GigaSpeech is fetched with a password, which its authors send to those"
                f" who accept its terms ({HOME}#download); give the folder with GigaSpeech.json and audio as"
                " --corpus-dir; --rehearse true needs no corpus"
            )
        self.roles = replace(self.roles, unlabelled=self.options.unlabelled or self.roles.unlabelled)
        self.text = first_file(root, "lm.txt", "lm.txt.gz")
        self.lexicon = first_file(root, "lexicon.txt", "lexicon.txt.gz")
        self.inputs = (self.table,)

    def listing(self, part: str) -> Listing:
        """The segments of a subset, without punctuation; those of tags alone are left out, and those of S from XL."""
        listing, tag, held = Listing(), f"{{{part}}}", {f"{{{name}}}" for name in self.roles.labelled} - {f"{{{part}}}"}
        for audio in read_audios(self.table):
            try:
                if tag not in audio["subsets"]:
                    continue
                name, place = audio["aid"], f"{self.table.name}: {audio['aid']}"
                listing.sources[name] = Source(str(self.root / audio["path"]), place, seconds=audio["duration"])
                for segment in audio["segments"]:
                    if tag in segment["subsets"] and held.isdisjoint(segment["subsets"]):
                        self._add(listing, name, segment, place)
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.table}: audio {audio.get('aid', '?')}: no {error}; is it GigaSpeech's own file?"
                ) from None
        return listing

    def _add(self, listing: Listing, recording: str, segment: dict[str, Any], place: str) -> None:
        words = segment["text_tn"].split()
        if tags := GARBAGE.intersection(words):
            listing.left_out.append((segment["sid"], f"no speech: {' '.join(sorted(tags))} ({place})"))
            return
        text = " ".join(word for word in words if word not in PUNCTUATION)
        listing.utterances.append(
            Utterance(
                segment["sid"], recording, segment["begin_time"], segment["end_time"], text=text,
                speaker=None if segment["speaker"] == "N/A" else segment["speaker"], place=place,
                more={"language": "English"},
            )
        )  # fmt: skip


def read_audios(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of the list `audios`, one after the other: the file of all subsets is larger than most memories.

    Raises ValueError for a file without that list or one that is cut short.
    """
    decoder, buffer, position = json.JSONDecoder(), "", 0
    with path.open(encoding="utf-8") as file:
        while '"audios"' not in buffer or "[" not in buffer[buffer.index('"audios"') :]:
            if not (block := file.read(BLOCK)):
                raise ValueError(f'{path} has no list "audios"; is it GigaSpeech.json?')
            buffer += block
        position = buffer.index("[", buffer.index('"audios"')) + 1
        while True:
            position += len(BETWEEN.match(buffer, position)[0])  # type: ignore[index]
            if buffer.startswith("]", position):
                return
            try:
                audio, position = decoder.raw_decode(buffer, position)
            except ValueError:
                if not (block := file.read(BLOCK)):
                    raise ValueError(f"{path} is cut short after {file.tell()} bytes; fetch it again") from None
                buffer, position = buffer[position:] + block, 0
            else:
                yield audio
