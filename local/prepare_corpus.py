"""Stage 0: the corpus (located, downloaded, or synthesised with --mini true), manifests, cut sets, text and lexicon."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from distill.corpora import Corpus, Options, open_corpus
from distill.files import link
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

RECIPES = Path(__file__).resolve().parents[1] / "egs"


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    options = Options(
        RECIPES / recipe.corpus, recipe.data_dir / "audio", recipe.mini or (recipe.rehearse and not recipe.corpus_dir),
        recipe.rehearse, recipe.allow_commands, recipe.nj, download=recipe.download, unlabelled=recipe.unlabelled,
    )  # fmt: skip
    own = recipe.data_dir / "corpus"
    if not recipe.corpus_dir:
        own.mkdir(parents=True, exist_ok=True)  # a folder that is given is not made: its name may be a slip
    corpus = open_corpus(recipe.corpus, recipe.corpus_dir or own, options)
    inputs, roles, root = dict.fromkeys(corpus.inputs), asdict(corpus.roles), {"root": corpus.root}
    if corpus.renders:
        run_stage(Stage(0, options.audio_dir, root, inputs, resumable=True), corpus.render)
    chosen = {name: True for name in ("allow_commands", "resample") if getattr(recipe, name)}
    checked = Stage(0, recipe.manifests, {"roles": roles, **root, **chosen}, inputs)
    run_stage(checked, lambda folder: manifests(recipe, corpus, folder))
    cut_sets = Stage(0, recipe.cuts, {"roles": roles, "seed": options.seed}, {recipe.manifests: 0})
    run_stage(cut_sets, lambda folder: cuts(recipe, corpus, folder))
    spelt = not corpus.lexicon and recipe.units in ("chars", "bpe", "letters")
    settings = {"seed": options.seed, **({"spelt": True} if spelt else {})}
    run_stage(Stage(0, recipe.text, settings, dict.fromkeys(corpus.texts)), lambda folder: text(corpus, folder, spelt))


def manifests(recipe: Recipe, corpus: Corpus, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lhotse's bars would mix with the log
    from distill.corpora.manifests import write_manifests

    write_manifests(corpus, folder, recipe.corpus, recipe.nj, recipe.resample)
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
