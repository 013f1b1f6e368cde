"""LibriSpeech as https://www.openslr.org/12 unpacks it, or the corpus that is synthesised in its layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.data.corpora.corpus import Corpus, Options, Roles, check_folder, first_file, need_file
from distill.data.listing import Listing, Source, Utterance
from distill.text import read_lines

HOME = "https://www.openslr.org/12"
PUBLISHED = {3: "3-gram.pruned.1e-7.arpa", 4: "4-gram.arpa"}
"""Word n-grams at https://www.openslr.org/11, plain or gzipped, by their order."""
WAY_OUT = "download it from https://www.openslr.org/11"
REHEARSAL_SCALE = 0.025


class LibriSpeech(Corpus):
    """The folder LibriSpeech with its parts, and beside it the text corpus, the lexicon and published n-grams."""

    roles = Roles(
        labelled=("train-clean-100",),
        unlabelled=("train-clean-360",),
        dev=("dev-clean",),
        tests={"test-clean": ("test-clean",), "test-other": ("test-other",)},
    )

    @classmethod
    def obtain(cls, root: Path, options: Options) -> None:
        """Synthesises the embedded corpus where it is missing or unfinished."""
        if options.embedded:
            from distill.data.synthetic.speech import generate_corpus

            scale = REHEARSAL_SCALE if options.rehearse else 1.0
            generate_corpus(root, options.recipe_dir / "mini", scale=scale, seed=options.seed, processes=options.jobs)

    def __init__(self, root: Path, options: Options | None = None) -> None:
        super().__init__(root, options)
        self.folder = librispeech_folder(root)
        self.text = need_file(root, "librispeech-lm-norm.txt.gz", "librispeech-lm-norm.txt", way_out=WAY_OUT)
        self.lexicon = need_file(root, "librispeech-lexicon.txt", "librispeech-lexicon.txt.gz", way_out=WAY_OUT)
        self.arpas = {n: path for n, name in PUBLISHED.items() if (path := first_file(root, name, f"{name}.gz"))}
        speakers = self.folder / "SPEAKERS.TXT"
        parts = [self.folder / part for part in self.roles.parts]
        transcripts = [path for part in parts for path in sorted(part.glob("*/*/*.trans.txt"))]
        self.inputs = (*([speakers] if speakers.is_file() else []), *transcripts)

    def listing(self, part: str) -> Listing:
        """Transcripts without audio, audio without a transcript, and names of several files are left out."""
        folder = check_folder(self.folder / part, f"unpack {part}.tar.gz of {HOME} beside the others")
        files: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*.flac")):
            files.setdefault(path.stem, []).append(path)
        listing = Listing({name: Source(str(paths[0])) for name, paths in files.items() if len(paths) == 1})
        transcribed = set()
        for utterance in _transcripts(folder):
            if utterance.name in listing.sources:
                listing.utterances.append(utterance)
            elif utterance.name not in files and utterance.name not in transcribed:
                listing.left_out.append((utterance.name, "transcript without audio"))
            transcribed.add(utterance.name)
        for name, paths in files.items():
            if name not in transcribed:
                listing.left_out.append((name, "no supervision"))
            if len(paths) > 1:
                places = " and ".join(str(path.relative_to(self.folder)) for path in paths)
                listing.left_out.append((name, f"duplicate id: {places}"))
        return listing


def librispeech_folder(root: Path) -> Path:
    """The folder `LibriSpeech` itself, given it or its parent; FileNotFoundError if there is none."""
    for folder in (root / "LibriSpeech", root):
        if any(folder.glob("*-clean*")):
            return folder.resolve()
    raise FileNotFoundError(
        f"no LibriSpeech in {root}: unpack {HOME} there, so that {root}/LibriSpeech/train-clean-100 "
        "exists, or give --corpus-dir; --mini true needs no corpus"
    )


def _transcripts(folder: Path) -> Iterator[Utterance]:
    """The lines 'UTTERANCE TEXT' of a part's *.trans.txt; the speaker is the first number of an utterance's name."""
    for path in sorted(path for path in folder.rglob("*.trans.txt") if path.is_file()):
        for number, line in enumerate(read_lines(path), 1):
            name, *text = line.removeprefix("\ufeff").split(maxsplit=1) or [""]
            if name:
                yield Utterance(
                    name, name, text="".join(text).strip(), speaker=name.split("-")[0],
                    place=f"{path.relative_to(folder.parent)}:{number}", more={"language": "English"},
                )  # fmt: skip
