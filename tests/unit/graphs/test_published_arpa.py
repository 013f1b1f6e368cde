"""Word n-grams that are published with a corpus take the place of those that stage 3 would estimate."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.config.graphs import Graphs
from distill.corpora import LibriSpeech
from distill.fsa.lattice import DecodingGraph
from distill.graphs.arpa import normalise_arpa, read_arpa
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang

LOCAL = Path(__file__).parents[3] / "local"
NAMES = {3: "3-gram.pruned.1e-7.arpa", 4: "4-gram.arpa"}
ARPA = """\\data\\
ngram 1=5
ngram 2=2
ngram 3=1

\\1-grams:
-1.0 <UNK>
-99 <s> -0.3
-0.9 </s>
-0.5 A -0.2
-0.6 B

\\2-grams:
-0.2 <s> A -0.1
-0.3 A B

\\3-grams:
-0.1 <s> A B

\\end\\
"""


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(LOCAL))
    import prepare_corpus
    import train_ngrams

    yield SimpleNamespace(corpus=prepare_corpus, lm=train_ngrams)
    for name in ("prepare_corpus", "train_ngrams"):
        sys.modules.pop(name, None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus folder with its text and lexicon, and the 3-gram in its `lm` folder."""
    (tmp_path / "corpus/lm").mkdir(parents=True)
    (tmp_path / "corpus/lm/librispeech-lm-norm.txt.gz").write_bytes(gzip.compress(b"A B\nB A\nA\nC A\n"))
    (tmp_path / "corpus/lm/librispeech-lexicon.txt").write_text("A AH0\nB B IY1\nC S IY1\n", encoding="utf-8")
    (tmp_path / "corpus/lm" / f"{NAMES[3]}.gz").write_bytes(gzip.compress(ARPA.encode()))
    return tmp_path / "corpus"


def prepared(stages: SimpleNamespace, root: Path) -> Any:
    """Stage 0's text folder and stage 2's lang folder, as a recipe has them."""
    recipe = SimpleNamespace(text=root.parent / "text", lang=root.parent / "lang", corpus="librispeech")
    for folder in (recipe.text, recipe.lang):
        folder.mkdir()
    (root / "dev-clean").mkdir()
    stages.corpus.text(LibriSpeech(root), recipe.text)
    write_lang(Lexicon.read(recipe.text / "lexicon.txt"), recipe.lang)
    return recipe


def test_what_is_published_is_taken_and_the_rest_estimated(
    stages: SimpleNamespace, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = prepared(stages, corpus)
    (tmp_path / "lm").mkdir()
    with caplog.at_level(logging.WARNING):
        stages.lm.write(recipe, Graphs(), tmp_path / "lm")
    assert (tmp_path / "lm/words.3gram.arpa").read_text(encoding="utf-8") == ARPA
    summary = json.loads((tmp_path / "lm/summary.json").read_text(encoding="utf-8"))
    # "A B", "B A" and "A", ends counted; logs by the file: the trigram, its back-offs, the bigram
    logs = [(-0.2 - 0.1 - 0.9), (-0.3 - 0.6 - 0.5 - 0.2 - 0.9), (-0.2 - 0.1 - 0.2 - 0.9)]
    assert summary["words.3gram"] == {
        "entries": 8, "perplexity": pytest.approx(10 ** (-sum(logs) / 8), abs=1e-3), "published": True,
    }  # fmt: skip
    assert "lacks words of 1 of 4 sentences" in caplog.text
    assert "published" not in summary["words.4gram"] and summary["words.4gram"]["entries"] > 8
    assert "4gram" in {path.name.split(".")[1] for path in (tmp_path / "lm").glob("words.*.arpa")}


def test_the_decoding_graph_is_made_of_it(stages: SimpleNamespace, corpus: Path, tmp_path: Path) -> None:
    recipe = prepared(stages, corpus)
    lang = Lang.load(recipe.lang)
    stages.lm.install(stages.lm.published(recipe, 3), tmp_path / "words.arpa")
    facts = stages.lm.measured(tmp_path / "words.arpa", [*stages.lm.known(recipe.text / "lm.txt", lang)])
    build_hlg(lang, tmp_path / "words.arpa").write(str(tmp_path / "HLG.fst"))
    words = set(DecodingGraph.read(tmp_path / "HLG.fst").word.tolist())
    assert facts["entries"] == 8 and words == {0, lang.words["A"], lang.words["B"]}


def test_a_word_that_the_lexicon_lacks_is_named(stages: SimpleNamespace, corpus: Path, tmp_path: Path) -> None:
    foreign = ARPA.replace("ngram 1=5", "ngram 1=6").replace("-0.6 B\n", "-0.6 B\n-2.0 ZEBRA\n")
    (corpus / NAMES[4]).write_text(foreign, encoding="utf-8")  # plain, and beside the corpus' folders
    recipe = prepared(stages, corpus)
    lang, target = Lang.load(recipe.lang), tmp_path / "words.4gram.arpa"
    stages.lm.install(stages.lm.published(recipe, 4), target)
    with pytest.raises(ValueError, match=r"1 words that the lexicon lacks, such as \['ZEBRA'\]; .* add their pronunc"):
        build_hlg(lang, target)


def test_words_of_an_ngram_are_spelt_as_text_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign = ARPA.replace(" A", " don’t").replace(" B", " cafe\u0301").replace("1=5", "1=7").replace("<UNK>", "<unk>")
    foreign = foreign.replace("-0.5 don’t", "-0.7 e-mail -0.2\n-0.8 --\n-0.5 don’t").replace("2=2", "2=3")
    foreign = foreign.replace("-0.3 don’t", "-0.4 e-mail don’t\n-0.3 don’t")
    (tmp_path / "in.arpa").write_text(foreign, encoding="utf-8")
    assert normalise_arpa(tmp_path / "in.arpa", tmp_path / "out.arpa")
    found, (first, last) = read_arpa(tmp_path / "out.arpa"), ("DON'T", "CAFÉ")
    assert set(found.probability) == {
        ("<unk>",), ("<s>",), ("</s>",), (first,), (last,), ("<s>", first), (first, last), ("<s>", first, last),
    }  # fmt: skip
    assert found.probability["<s>", first, last] == -0.1 and found.backoff[(first,)] == -0.2
    listed = (tmp_path / "out.arpa.skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert listed == ["e-mail\ttext is spelt 'E MAIL'", "--\tno letter is left in text"]
    assert "2 of 4 occur in no text" in caplog.text and not (tmp_path / "out.arpa.body").exists()


def test_two_words_of_an_ngram_that_are_one_to_text(tmp_path: Path) -> None:
    (tmp_path / "in.arpa").write_text(ARPA.replace("-0.6 B", "-0.6 a"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"in\.arpa:11: 'a' and 'A' \(line 10\) are one word to text, A"):
        normalise_arpa(tmp_path / "in.arpa", tmp_path / "out.arpa")
