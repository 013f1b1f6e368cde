"""Clauses of novels, synthesised in the layout of LibriSpeech (egs/tables)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distill.corpora.corpus import Options
from distill.corpora.download import Published
from distill.corpora.librispeech import LibriSpeech


class Novels(LibriSpeech):
    """4 h labelled, 10 h unlabelled, and an hour each of test-clean and test-other, which are of other novels."""

    roles = replace(LibriSpeech.roles, unlabelled=("train-clean-360",))
    published_arpas: Mapping[int, str] = {}
    unlabelled_parts = ()
    has_mini, synthetic, natural = False, True, False

    @classmethod
    def synthesise(cls, root: Path, options: Options) -> None:
        """Made where it is missing or unfinished."""
        from distill.synthetic import layouts, plans
        from distill.synthetic.speech import generate_corpus

        scale, source = layouts.SCALE if options.rehearse else 1.0, options.recipe_dir.parent / "tables/source"
        kind = plans.ReadNaturally if cls.natural else plans.Read
        generate_corpus(root, source, scale=scale, seed=options.seed, processes=options.jobs, kind=kind)

    @classmethod
    def wanted(cls, options: Options) -> tuple[Published, ...]:
        """Nothing: it is nowhere to be fetched."""
        return ()


class NaturalNovels(Novels):
    """The same clauses by a natural synthesiser (egs/tables_natural)."""

    natural = True
