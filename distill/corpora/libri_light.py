"""The unlabelled parts of Libri-light, chapters of audio books, as their archives unpack them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.config.job import Job
from distill.corpora.corpus import check_folder
from distill.corpora.download import Published
from distill.corpora.listing import Listing, Source
from distill.corpora.segmentation import add_cuts, read_segments, segment

HOME = "https://github.com/facebookresearch/libri-light/tree/main/data_preparation"
ARCHIVES = "https://dl.fbaipublicfiles.com/librilight/data"
PARTS = {  # hours, bytes (about), MD5 of the archive
    "small": (577, 35e9, "c49207eb86a8e8ac895561c37232041e"),
    "medium": (5193, 321e9, "c75e7ac62471bfbf2db77528d62a9b74"),
    "large": (51934, 3.05e12, "4dfbac018f50b99797ece101fc9f0c30"),
}
PUBLISHED = tuple(
    Published(HOME, f"{ARCHIVES}/{part}.tar", digest=f"md5:{digest}", gives=part, about=about)
    for part, (_, about, digest) in PARTS.items()
)


def folder_of(root: Path, part: str) -> Path:
    """The folder of a part; FileNotFoundError if there is none."""
    return check_folder(root / part, f"unpack {part}.tar of {HOME} there")


def chapters(root: Path, part: str) -> Iterator[tuple[str, Path]]:
    """Name `<speaker>-<book>-<chapter>` and path of every recording of a part."""
    folder = folder_of(root, part)
    for path in sorted(folder.rglob("*.flac")):
        yield "-".join(path.relative_to(folder).with_suffix("").parts), path


def cut_chapters(root: Path, part: str, audio_dir: Path, processes: int, job: Job | None = None) -> None:
    """Looks for speech in the recordings of a part; a killed call continues."""
    segment({name: str(path) for name, path in chapters(root, part)}, audio_dir / f"{part}.jsonl", processes, job)


def list_cuts_of(root: Path, part: str, audio_dir: Path) -> Listing:
    """The stretches of speech of a part, as `cut_chapters` found them; the speaker is the recording's first folder."""
    found, listing = read_segments(audio_dir / f"{part}.jsonl"), Listing()
    for name, path in chapters(root, part):
        add_cuts(listing, name, Source(str(path)), found.get(name), path.relative_to(folder_of(root, part)).parts[0])
    return listing
