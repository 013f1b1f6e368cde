"""Stage 0: the corpus (located, or synthesised with --mini true), manifests, cut sets, text and lexicon."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distill.config.names import names_of
from distill.data import layout
from distill.data.layout import Roles
from distill.files import link
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

REPOSITORY = Path(__file__).resolve().parents[1]
SEED = 42
REHEARSAL_SCALE = 0.025
PUBLISHED = {3: "3-gram.pruned.1e-7.arpa", 4: "4-gram.arpa"}  # at https://www.openslr.org/11, gzipped


@dataclass(frozen=True)
class Corpus:
    """What the stages need to know of a corpus; `watched` files make them run again when they change."""

    root: Path
    roles: Roles
    text: Path
    lexicon: Path
    watched: tuple[Path, ...]
    arpas: tuple[tuple[int, Path], ...] = ()  # word n-grams that are published with it, by their order


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--unlabelled", default="", help="LibriSpeech parts used as unlabelled audio, comma-separated")
    args = parser.parse_args()
    recipe = recipe_from(args)
    corpus = locate(recipe, names_of("--unlabelled", args.unlabelled))
    watched = dict.fromkeys(corpus.watched)
    roles = {"roles": asdict(corpus.roles), "root": corpus.root.resolve()}
    asked = {name: True for name in ("allow_commands", "resample") if getattr(recipe, name)}
    if recipe.corpus == "spoken_commands":
        audio = Stage(0, recipe.data_dir / "audio", {"root": roles["root"]}, watched, resumable=True)
        run_stage(audio, lambda folder: render(corpus, folder))
    run_stage(Stage(0, recipe.manifests, roles | asked, watched), lambda folder: manifests(recipe, corpus, folder))
    settings = {"roles": roles["roles"], "seed": SEED}
    run_stage(Stage(0, recipe.cuts, settings, {recipe.manifests: 0}), lambda folder: cuts(recipe, corpus, folder))
    texts = dict.fromkeys((corpus.text, corpus.lexicon, *(path for _, path in corpus.arpas)))
    run_stage(Stage(0, recipe.text, {"seed": SEED}, texts), lambda folder: text(recipe, corpus, folder))


def locate(recipe: Recipe, unlabelled: tuple[str, ...] = ()) -> Corpus:
    """Where the corpus of a recipe lies; the embedded one is synthesised if it is not there."""
    if recipe.corpus == "librispeech":
        corpus = locate_librispeech(recipe, unlabelled)
    elif recipe.corpus == "spoken_commands":
        corpus = locate_spoken_commands(recipe)
    else:
        corpus = locate_own(recipe)
    return replace(corpus, roles=replace(corpus.roles, limits=layout.REHEARSAL)) if recipe.rehearse else corpus


def locate_librispeech(recipe: Recipe, unlabelled: tuple[str, ...]) -> Corpus:
    if recipe.mini or (recipe.rehearse and recipe.corpus_dir is None):
        root = embedded(recipe)
    else:
        root = recipe.corpus_dir or recipe.data_dir / "corpus"
    libri = layout.librispeech_root(root)
    hint = "download it from https://www.openslr.org/11"
    text = layout.find_resource(root, ("librispeech-lm-norm.txt.gz", "librispeech-lm-norm.txt"), hint)
    lexicon = layout.find_resource(root, ("librispeech-lexicon.txt", "librispeech-lexicon.txt.gz"), hint)
    roles = replace(layout.LIBRISPEECH, unlabelled=unlabelled or layout.LIBRISPEECH.unlabelled)
    transcripts = (path for part in roles.parts for path in sorted((libri / part).glob("*/*/*.trans.txt")))
    watched = (*(path for path in (libri / "SPEAKERS.TXT",) if path.is_file()), *transcripts)
    return Corpus(root, roles, text, lexicon, watched, tuple(published(root)))


def published(root: Path) -> Iterator[tuple[int, Path]]:
    """The word n-grams that lie beside a corpus, plain or gzipped."""
    for order, name in PUBLISHED.items():
        try:
            yield order, layout.find_resource(root, (name, f"{name}.gz"), "")
        except FileNotFoundError:
            continue  # stage 3 estimates one


def embedded(recipe: Recipe) -> Path:
    """The folder of the embedded corpus, synthesised where it is missing or unfinished."""
    from distill.data.synthetic.speech import generate_corpus

    root = recipe.corpus_dir or recipe.data_dir / "corpus"
    scale = REHEARSAL_SCALE if recipe.rehearse else 1.0
    source = REPOSITORY / "egs/librispeech/mini"
    return generate_corpus(root, source, scale=scale, seed=SEED, processes=recipe.nj)


def locate_spoken_commands(recipe: Recipe) -> Corpus:
    root = recipe.corpus_dir or recipe.data_dir / "corpus"
    tables = layout.spoken_commands_tables(root)
    ours = REPOSITORY / "egs/spoken_commands"
    return Corpus(root, layout.SPOKEN_COMMANDS, ours / "orders.txt", ours / "lexicon.txt", tuple(tables.values()))


def locate_own(recipe: Recipe) -> Corpus:
    root = recipe.corpus_dir or recipe.data_dir / "corpus"
    roles = layout.own_roles(root)
    text = layout.find_resource(root, ("lm.txt", "lm.txt.gz"), "one sentence a line, for language models")
    lexicon = layout.find_resource(root, ("lexicon.txt", "lexicon.txt.gz"), "expected lines 'WORD P1 P2 …'")
    return Corpus(root, roles, text, lexicon, layout.files_of_own(root, roles))


def render(corpus: Corpus, folder: Path) -> None:
    from distill.data.corpora import render_digit_strings

    render_digit_strings(corpus.root, folder)


def manifests(recipe: Recipe, corpus: Corpus, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lhotse's bars would mix with the log
    from distill.data import corpora
    from distill.data.cuts import write_manifests
    from distill.data.manifests import Skipped

    skipped = Skipped()
    if recipe.corpus == "librispeech":
        parts = corpora.prepare_librispeech(corpus.root, skipped, corpus.roles.parts, recipe.nj)
    elif recipe.corpus == "spoken_commands":
        parts = corpora.prepare_spoken_commands(corpus.root, recipe.data_dir / "audio", skipped, recipe.nj)
    else:
        parts = corpora.prepare_own(corpus.root, allow_commands=recipe.allow_commands, jobs=recipe.nj)
    write_manifests(parts, corpus.roles, folder, recipe.corpus, skipped, recipe.nj, recipe.resample)


def cuts(recipe: Recipe, corpus: Corpus, folder: Path) -> None:
    from distill.data.cuts import write_cut_sets

    write_cut_sets(recipe.manifests, recipe.corpus, corpus.roles, folder, SEED)


def text(recipe: Recipe, corpus: Corpus, folder: Path) -> None:
    from distill.data import corpus_text

    sentences: Iterable[str]
    if recipe.corpus == "spoken_commands":
        sentences = corpus_text.spoken_commands_text(corpus.root, corpus.text, SEED)
    else:
        sentences = corpus_text.read_sentences(corpus.text)
    corpus_text.write_text(sentences, folder / "lm.txt")
    corpus_text.write_lexicon(corpus.lexicon, folder / "lexicon.txt")
    for order, path in corpus.arpas:
        link(path, folder / f"words.{order}gram.arpa{'.gz' if path.suffix == '.gz' else ''}")


if __name__ == "__main__":
    run_script(main)
