"""A corpus as stage 0 reads it, and which part of it is used for what; the standard library alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distill.config.job import Job
from distill.corpora.download import Published, obtain
from distill.corpora.listing import Listing
from distill.text import read_lines

REHEARSAL = {"labelled": 24, "unlabelled": 40, "dev": 6, "test": 8}
"""Most utterances of each cut set in a rehearsal."""


@dataclass(frozen=True)
class Roles:
    """Which parts of a corpus are labelled, unlabelled, development and test sets."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    dev: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]
    hidden_share: float = 0.0
    """Share of the labelled utterances that are also used as unlabelled audio, their text hidden."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Most utterances of a cut set, for rehearsals; `test` stands for every test set."""
    speeds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Labelled parts that are trained on at other speeds too, beside their own: part -> factors."""

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """Name of each cut set -> the parts it is made of."""
        return {"labelled": self.labelled, "unlabelled": self.unlabelled, "dev": self.dev, **self.tests}

    def limit(self, name: str) -> int | None:
        """Most utterances of the cut set `name`, None without a limit."""
        return self.limits.get("test" if name in self.tests else name)

    @property
    def parts(self) -> list[str]:
        """Every part once, in order."""
        return list(dict.fromkeys(part for parts in self.by_name().values() for part in parts))


@dataclass(frozen=True)
class Options:
    """Options of a recipe that a corpus may need.

    recipe_dir: egs/<corpus>, with lexica and grammars that come with the recipe. audio_dir: where rendered audio lies.
    embedded: the corpus is synthesised, if the recipe has one to synthesise. jobs: processes. download: what is
    missing is fetched. unlabelled: parts of the corpus that take the place of its usual unlabelled part.
    """

    recipe_dir: Path = Path()
    audio_dir: Path = Path()
    embedded: bool = False
    rehearse: bool = False
    allow_commands: bool = False
    jobs: int = 2
    seed: int = 42
    download: bool = False
    unlabelled: tuple[str, ...] = ()


class Corpus(ABC):
    """A corpus in the folder `root`. Its constructor raises FileNotFoundError for what is missing, with the way out.

    text: sentences of the language models, None: those of the labelled parts. lexicon: pronunciations, None: to be
    made. arpas: published word n-grams by their order.
    inputs: files whose contents the manifests depend on. renders: `render` makes audio of it. rendered: files whose
    contents that audio depends on. has_mini: `synthesise` makes one, for --mini true. synthetic: there is no other, so
    that it is made where no folder is given. published: what can be fetched. layout: that of a rehearsal, in
    `distill.synthetic.layouts`. unlabelled_parts: what --unlabelled may name.
    """

    roles: Roles
    text: Path | None = None
    lexicon: Path | None = None
    inputs: tuple[Path, ...]
    arpas: Mapping[int, Path] = {}
    renders = False
    rendered: tuple[Path, ...] = ()
    has_mini = False
    synthetic = False
    published: tuple[Published, ...] = ()
    layout = ""
    unlabelled_parts: tuple[str, ...] = ()

    def __init__(self, root: Path, options: Options | None = None) -> None:
        self.root, self.options = root.resolve(), options or Options()

    @classmethod
    def obtain(cls, root: Path, options: Options) -> None:
        """Synthesises the corpus in the folder `root`, or fetches what is missing there; a folder is not made for that.

        Raises FileNotFoundError with files and pages for what is missing and cannot be fetched.
        """
        if options.embedded:
            cls.synthesise(root, options)
        elif root.is_dir():
            obtain([file for file in cls.wanted(options) if not is_there(root, file.gives)], root, options.download)

    @classmethod
    def synthesise(cls, root: Path, options: Options) -> None:
        """A few synthesised sentences in the corpus' own layout, where there is a `layout` for it."""
        if cls.layout:
            from distill.synthetic.layouts import rehearsal

            source = options.recipe_dir.parent / "librispeech/mini"
            rehearsal(cls.layout, root, source, options.seed, options.jobs)

    @classmethod
    def wanted(cls, options: Options) -> tuple[Published, ...]:
        """What of the published files the recipe uses."""
        return cls.published

    @abstractmethod
    def listing(self, part: str) -> Listing:
        """The utterances of a part; raises FileNotFoundError or ValueError for tables that cannot be read."""

    def sentences(self) -> Iterator[str]:
        """The text corpus, one sentence after the other; ValueError for another encoding than UTF-8."""
        return read_lines(self.text) if self.text else self.transcripts()

    def transcripts(self, *further: str) -> Iterator[str]:
        """The texts of the labelled parts and of further ones."""
        return (u.text for part in (*self.roles.labelled, *further) for u in self.listing(part).utterances if u.text)

    @property
    def texts(self) -> tuple[Path, ...]:
        """Files whose contents the text corpus, the lexicon and the n-grams depend on."""
        found = (self.text, self.lexicon, *self.arpas.values())
        transcripts = () if self.text and self.lexicon else self.inputs
        return (*(path for path in found if path), *transcripts)

    def render(self, folder: Path, job: Job | None = None) -> None:  # noqa: B027
        """Writes audio that the corpus has only in pieces, of a job its share; a killed call continues."""

    def write_notes(self, folder: Path) -> None:  # noqa: B027
        """Writes what else there is to know beside the manifests."""


def check_folder(folder: Path, way_out: str) -> Path:
    """The folder itself; FileNotFoundError with the way out if it does not exist."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no corpus folder at {folder}; {way_out}")
    return folder


def is_there(root: Path, name: str) -> bool:
    """Whether the corpus folder has a file, packed or not, or a folder, which may also lie in the folder itself."""
    path = Path(name)
    return any((root / each).is_dir() for each in (path, path.name)) or bool(
        first_file(root, path.name, path.name.removesuffix(".gz"))
    )


def first_file(root: Path, *names: str) -> Path | None:
    """The first of `names` in the corpus folder, its `lm` folder or its parent; None without one."""
    places = (folder / name for folder in (root, root / "lm", root.parent) for name in names)
    return next((path for path in places if path.is_file()), None)


def need_file(root: Path, *names: str, way_out: str) -> Path:
    """`first_file`, FileNotFoundError with the way out without one."""
    if path := first_file(root, *names):
        return path
    raise FileNotFoundError(f"no {' or '.join(names)} in {root} or {root / 'lm'}; {way_out}")
