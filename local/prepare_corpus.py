"""Stage 0: the corpus (located, downloaded, or synthesised with --mini true), manifests, cut sets, text and lexicon."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from distill.corpora import Corpus, Options, kind_of, open_corpus
from distill.files import link
from distill.recipe.locks import locked
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger(__name__)
FORMAT = "blocks/1"  # of cut sets (`distill.corpora.cut_sets`)
RECIPES = Path(__file__).resolve().parents[1] / "egs"


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    synthetic = recipe.rehearse or kind_of(recipe.corpus).synthetic
    options = Options(
        RECIPES / recipe.corpus, recipe.data_dir / "audio", recipe.mini or (synthetic and not recipe.corpus_dir),
        recipe.rehearse, recipe.allow_commands, recipe.nj, unlabelled=recipe.unlabelled,
        download=recipe.download and recipe.job is None,
    )  # fmt: skip
    root = recipe.corpus_dir or recipe.data_dir / "corpus"
    if not recipe.corpus_dir:
        root.mkdir(parents=True, exist_ok=True)  # a folder that is given is not made: its name may be a slip
    with locked(root, wait=True) if recipe.job and options.embedded else contextlib.nullcontext():
        corpus = open_corpus(recipe.corpus, root, options)
    prepare(recipe, corpus)


def prepare(recipe: Recipe, corpus: Corpus) -> None:
    """All stages of a corpus that is there; of a job its share of the first one that is unfinished."""
    options = corpus.options
    inputs, roles, root = dict.fromkeys(corpus.inputs), asdict(corpus.roles), {"root": corpus.root}
    if corpus.renders:
        audio = Stage(0, options.audio_dir, root, dict.fromkeys(corpus.rendered), resumable=True, narrowed=True)
        if run_stage(audio, partial(corpus.render, job=recipe.job), job=recipe.job) and recipe.job:
            log.info("the manifests need the audio of all jobs; the same call without --job completes it")
            return
    chosen = {name: True for name in ("allow_commands", "resample") if getattr(recipe, name)}
    settings: dict[str, Any] = {"roles": roles, **root, **chosen}
    made = Stage(0, recipe.manifests, settings, inputs)
    checked = Stage(0, recipe.checked, settings, inputs, resumable=True)
    checked.contents = made.contents  # the same files, read once
    if recipe.job:
        share(recipe, corpus, made, checked)
        return
    run_stage(made, lambda folder: manifests(recipe, corpus, checked, folder))
    checked.discard()
    cut_sets = Stage(0, recipe.cuts, {"roles": roles, "seed": options.seed, "format": FORMAT}, {recipe.manifests: 0})
    run_stage(cut_sets, lambda folder: cuts(recipe, corpus, folder))
    spelt = not corpus.lexicon and recipe.units in ("chars", "bpe", "letters")
    settings = {"seed": options.seed, **({"spelt": True} if spelt else {})}
    run_stage(Stage(0, recipe.text, settings, dict.fromkeys(corpus.texts)), lambda folder: text(corpus, folder, spelt))


def share(recipe: Recipe, corpus: Corpus, made: Stage, checked: Stage) -> None:
    """A job's share of the checked recordings that the manifests are made of."""
    from distill.corpora.manifests import Checks, check_share

    if made.up_to_date():
        log.info("stage 0: up to date (%s)", made.out)
        return
    checks = partial(Checks, recipe.nj, recipe.resample, job=recipe.job)
    run_stage(checked, lambda shards: check_share(corpus, checks(shards=shards)), job=recipe.job)


def manifests(recipe: Recipe, corpus: Corpus, checked: Stage, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lhotse's bars would mix with the log
    from distill.corpora.manifests import Checks, write_manifests

    try:
        with checked.writing() as shards:
            write_manifests(corpus, folder, recipe.corpus, Checks(recipe.nj, recipe.resample, shards))
    except ValueError as error:
        checked.discard()  # the audio is looked at again once it has been mended
        if not (folder / "skipped.tsv").is_file():
            raise
        kept = recipe.data_dir / "skipped.tsv"  # `folder` goes with the error
        os.replace(folder / "skipped.tsv", kept)
        raise ValueError(f"{error}; {kept} lists all that is left out") from None
    corpus.write_notes(folder)


def cuts(recipe: Recipe, corpus: Corpus, folder: Path) -> None:
    from distill.corpora.manifests import write_cut_sets

    write_cut_sets(recipe.manifests, recipe.corpus, corpus.roles, folder, corpus.options.seed)


def text(corpus: Corpus, folder: Path, spelt: bool = False) -> None:
    """lm.txt, lexicon.txt and links to published n-grams; spelt: a missing lexicon is made of letters."""
    from distill.corpora.corpus_text import words_of, write_lexicon, write_text

    write_text(corpus.sentences(), folder / "lm.txt")
    lexicon = corpus.lexicon
    if lexicon is None:
        from distill.corpora.pronunciations import make_lexicon, spell_lexicon

        words = words_of(folder / "lm.txt", corpus.transcripts(*corpus.roles.dev))
        lexicon = spell_lexicon(words, folder) if spelt else make_lexicon(words, folder)
    write_lexicon(lexicon, folder / "lexicon.txt")
    for order, path in corpus.arpas.items():
        link(path, folder / f"words.{order}gram.arpa{'.gz' if path.suffix == '.gz' else ''}")


if __name__ == "__main__":
    run_script(main)
