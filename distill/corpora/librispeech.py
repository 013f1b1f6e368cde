"""LibriSpeech as https://www.openslr.org/12 unpacks it, or the corpus that is synthesised in its layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from distill.config.job import Job
from distill.corpora import libri_light
from distill.corpora.corpus import Corpus, Options, Roles, check_folder, first_file, need_file
from distill.corpora.download import Published
from distill.corpora.listing import Listing, Source, Utterance
from distill.corpora.tables import read_transcripts

HOME = "https://www.openslr.org/12"
TEXT_HOME = "https://www.openslr.org/11"
OPENSLR = "https://www.openslr.org/resources"
PARTS = {  # bytes and SHA-256 of the archives
    "train-clean-100": (6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    "dev-clean": (337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "test-clean": (346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
}
TEXT, LEXICON = "librispeech-lm-norm.txt.gz", "librispeech-lexicon.txt"


def text_file(name: str, size: int = 0, digest: str = "", needed: bool = True) -> Published:
    """A file of the text corpus, the lexicon and the n-grams of LibriSpeech."""
    return Published(TEXT_HOME, f"{OPENSLR}/11/{name}", size, digest, name, needed)


class LibriSpeech(Corpus):
    """The folder LibriSpeech with its parts, and beside it the text corpus, the lexicon and published n-grams."""

    roles = Roles(
        labelled=("train-clean-100",),
        unlabelled=("train-clean-360", "train-other-500"),
        dev=("dev-clean",),
        tests={"test-clean": ("test-clean",), "test-other": ("test-other",)},
    )
    published = (
        *(Published(HOME, f"{OPENSLR}/12/{part}.tar.gz", size, f"sha256:{digest}", f"LibriSpeech/{part}")
          for part, (size, digest) in PARTS.items()),
        text_file(TEXT, 1507274412, "md5:c83c64c726a1aedfe65f80aa311de402"),
        text_file(LEXICON),
        text_file("3-gram.pruned.1e-7.arpa.gz", 34094057, needed=False),
        text_file("4-gram.arpa.gz", 1355172078, needed=False),
        *libri_light.PUBLISHED,
    )  # fmt: skip
    unlabelled_parts = ("train-clean-360", "train-other-500", *libri_light.PARTS)
    published_arpas: Mapping[int, str] = {3: "3-gram.pruned.1e-7.arpa.gz", 4: "4-gram.arpa.gz"}

    has_mini = True

    @classmethod
    def synthesise(cls, root: Path, options: Options) -> None:
        """The embedded corpus, made where it is missing or unfinished."""
        if cls.layout:
            return super().synthesise(root, options)
        from distill.synthetic import layouts
        from distill.synthetic.speech import generate_corpus

        scale = layouts.SCALE if options.rehearse else 1.0
        generate_corpus(root, options.recipe_dir / "mini", scale=scale, seed=options.seed, processes=options.jobs)
        if "small" in options.unlabelled and not (root / "small").is_dir():
            layouts.libri_light(layouts.sentences_of(root), root)

    @classmethod
    def roles_of(cls, options: Options) -> Roles:
        """The roles with the unlabelled parts that are asked for; the embedded corpus has one."""
        unlabelled = options.unlabelled or (cls.roles.unlabelled[:1] if options.embedded else cls.roles.unlabelled)
        return replace(cls.roles, unlabelled=unlabelled)

    @classmethod
    def wanted(cls, options: Options) -> tuple[Published, ...]:
        """The parts that have a role, and the texts."""
        parts = cls.roles_of(options).parts
        return tuple(file for file in cls.published if file.page == TEXT_HOME or Path(file.gives).name in parts)

    def __init__(self, root: Path, options: Options | None = None) -> None:
        super().__init__(root, options)
        self.roles = self.roles_of(self.options)
        self.folder = librispeech_folder(root)
        way_out = f"download it from {TEXT_HOME}"
        if any(file.gives == TEXT for file in self.published):
            self.text = need_file(root, TEXT, TEXT.removesuffix(".gz"), way_out=way_out)
        self.lexicon = need_file(root, LEXICON, f"{LEXICON}.gz", way_out=way_out)
        found = {n: first_file(root, name.removesuffix(".gz"), name) for n, name in self.published_arpas.items()}
        self.arpas = {n: path for n, path in found.items() if path}
        speakers = self.folder / "SPEAKERS.TXT"
        parts = dict.fromkeys(self.folder / self.holder(part) for part in self.roles.parts)
        transcripts = [path for part in parts for path in sorted(part.glob("*/*/*.trans.txt"))]
        self.light = [part for part in self.roles.unlabelled if part in libri_light.PARTS]
        self.renders = bool(self.light)
        chapters = [path for part in self.light for path in sorted(libri_light.folder_of(root, part).rglob("*.json"))]
        self.inputs = (*([speakers] if speakers.is_file() else []), *transcripts, *chapters)
        self.rendered = tuple(chapters)

    def holder(self, part: str) -> str:
        """The folder that holds a part."""
        return part

    def render(self, folder: Path, job: Job | None = None) -> None:
        """Cuts the chapters of Libri-light into utterances."""
        for part in self.light:
            libri_light.cut_chapters(self.root, part, folder, self.options.jobs, job)

    def listing(self, part: str) -> Listing:
        """Transcripts without audio, audio without a transcript, and names of several files are left out."""
        if part in self.light:
            return libri_light.list_cuts_of(self.root, part, self.options.audio_dir)
        folder = check_folder(self.folder / self.holder(part), f"unpack {part}.tar.gz of {HOME} beside the others")
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
        f"no LibriSpeech in {root}: unpack {HOME} there, so that {root}/LibriSpeech/train-clean-100 exists, or give"
        " another --corpus-dir; what a folder lacks that exists is downloaded; --mini true needs no corpus"
    )


def _transcripts(folder: Path) -> Iterator[Utterance]:
    """The lines 'UTTERANCE TEXT' of a part's *.trans.txt; the speaker is the first number of an utterance's name."""
    for path in sorted(path for path in folder.rglob("*.trans.txt") if path.is_file()):
        for number, name, text in read_transcripts(path):
            yield Utterance(
                name, name, text=text, speaker=name.split("-")[0],
                place=f"{path.relative_to(folder.parent)}:{number}", more={"language": "English"},
            )  # fmt: skip
