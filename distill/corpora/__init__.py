"""The corpora: one file for each, one line in the table; the standard library alone, so a finished stage 0 is quick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.corpora.corpus import REHEARSAL, Corpus, Options
from distill.corpora.custom import Custom
from distill.corpora.gigaspeech import GigaSpeech
from distill.corpora.librispeech import LibriSpeech
from distill.corpora.mini_librispeech import MiniLibriSpeech
from distill.corpora.novels import NaturalNovels, Novels
from distill.corpora.spoken_commands import SpokenCommands

CORPORA: dict[str, type[Corpus]] = {
    "gigaspeech": GigaSpeech,
    "librispeech": LibriSpeech,
    "mini_librispeech": MiniLibriSpeech,
    "spoken_commands": SpokenCommands,
    "tables": Novels,
    "tables_natural": NaturalNovels,
}
"""Name of a recipe -> its corpus; recipes of other names read a corpus of one's own (`Custom`)."""


def kind_of(name: str) -> type[Corpus]:
    """The corpus of a recipe."""
    return CORPORA.get(name, Custom)


def open_corpus(name: str, root: Path, options: Options) -> Corpus:
    """The corpus of a recipe in the folder `root`; rehearsals use a few utterances of it."""
    kind = kind_of(name)
    if unknown := [part for part in options.unlabelled if part not in kind.unlabelled_parts]:
        known = ", ".join(kind.unlabelled_parts) or "none, the corpus folder decides"
        raise ValueError(f"--unlabelled {unknown[0]}: no such part of {name}; there are: {known}")
    kind.obtain(root, options)
    corpus = kind(root, options)
    if options.rehearse:
        corpus.roles = replace(corpus.roles, limits=REHEARSAL)
    return corpus
