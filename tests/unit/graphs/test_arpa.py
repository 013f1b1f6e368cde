"""ARPA files and the grammar made of them: read back, against kaldilm and by enumeration, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path

import kaldifst
import kaldilm
import pytest

from distill.graphs.arpa import ArpaLm, read_arpa
from distill.graphs.grammar_fst import grammar_fst
from tests.support.lang import trained_lm

SENTENCES = ["GO TO NINE", "GO TO NINE", "GO TO ANNA", "TWO AN NINE", "A GO", "ANNA", "GO TO NINE TOO TOO TOO"]
SYMBOLS = ["<eps>", *sorted({*" ".join(SENTENCES).split(), "ZEBRA"}), "#0", "<s>", "</s>"]
WORDS = {symbol: number for number, symbol in enumerate(SYMBOLS)}


def trained(order: int, folder: Path) -> tuple[ArpaLm, Path]:
    return trained_lm(folder, SENTENCES, order, ["ZEBRA"]), folder / "lm.arpa"


def some_sentences(seed: int = 0, count: int = 12) -> list[list[str]]:
    """Half of them from the text, half of any words."""
    rng = random.Random(seed)
    free = [rng.choices(SYMBOLS[1:-3], k=rng.randint(1, 5)) for _ in range(count)]
    return [*free, *(sentence.split() for sentence in SENTENCES)]


def path_costs(grammar: kaldifst.StdVectorFst, sentence: Sequence[str]) -> list[float]:
    """Costs of all paths that say a sentence, #0 taking no word, dearest last."""
    ids, found, stack = [WORDS[word] for word in sentence], [], [(grammar.start, 0, 0.0)]
    while stack:
        state, place, cost = stack.pop()
        if place == len(ids) and math.isfinite(grammar.final(state).value):
            found.append(cost + grammar.final(state).value)
        for arc in kaldifst.ArcIterator(grammar, state):
            if arc.ilabel == WORDS["#0"]:
                assert arc.olabel == 0
                stack.append((arc.nextstate, place, cost + arc.weight.value))
            elif place < len(ids) and arc.ilabel == ids[place]:
                stack.append((arc.nextstate, place + 1, cost + arc.weight.value))
    return sorted(found)


def kaldilm_grammar(arpa: Path, folder: Path) -> kaldifst.StdVectorFst:
    table = folder / "words.txt"
    table.write_text("".join(f"{symbol} {number}\n" for symbol, number in WORDS.items()), encoding="utf-8")
    text = kaldilm.arpa2fst(
        input_arpa=str(arpa), output_fst="", disambig_symbol="#0", read_symbol_table=str(table), max_order=4
    )
    return kaldifst.compile(text, acceptor=False)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_grammar_has_the_paths_and_costs_of_kaldilms(order: int, tmp_path: Path) -> None:
    _, path = trained(order, tmp_path)
    ours, theirs = grammar_fst(path, WORDS), kaldilm_grammar(path, tmp_path)
    for sentence in some_sentences():
        assert path_costs(ours, sentence) == pytest.approx(path_costs(theirs, sentence), rel=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_grammar_scores_as_the_model(order: int, tmp_path: Path) -> None:
    """The path that backs off only where it must carries the model's probability, so the best is no worse."""
    lm, path = trained(order, tmp_path)
    grammar = grammar_fst(path, WORDS)
    for sentence in some_sentences(1):
        cost = math.log(lm.perplexity([" ".join(sentence)])) * (len(sentence) + 1)
        costs = path_costs(grammar, sentence)
        assert min(abs(cost - other) for other in costs) < 1e-4
        assert costs[0] <= cost + 1e-4


BACK_OFF = """
\\data\\
ngram 1=4
ngram 2=2
ngram 3=1

\\1-grams:
-99 <s> -0.5
-1 GO -0.25
-0.7 TO -0.125
-0.6 </s>

\\2-grams:
-0.3 <s> GO -2
-0.4 GO TO -3

\\3-grams:
-0.1 <s> GO TO

\\end\\
"""


def test_histories_that_nothing_continues_are_passed_through(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(BACK_OFF, encoding="utf-8")
    grammar, ten = grammar_fst(path, WORDS), math.log(10)
    assert grammar.num_states == 4  # (), <s>, GO, <s> GO: no n-gram begins with TO or GO TO
    # "GO TO" from the trigram, which leads to the history GO TO, that backs off twice to the end
    expected = ten * (0.3 + 0.1 + 3 + 0.125 + 0.6)
    assert any(cost == pytest.approx(expected, rel=1e-6) for cost in path_costs(grammar, ["GO", "TO"]))
    assert read_arpa(path).score(("<s>", "GO", "TO"), "</s>") == pytest.approx(-3 - 0.125 - 0.6)


def test_ngrams_of_unknown_words_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = BACK_OFF.replace("ngram 1=4", "ngram 1=5").replace("-1 GO", "-2 <unk> -1\n-1 GO")
    path = tmp_path / "lm.arpa"
    path.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert grammar_fst(path, WORDS).num_states == 4
    assert "1 n-grams with <UNK> or <unk> are left out" in caplog.text


def test_words_without_an_id_are_named(tmp_path: Path) -> None:
    _, path = trained(3, tmp_path)
    words = {word: number for word, number in WORDS.items() if word not in ("ZEBRA", "NINE")}
    with pytest.raises(ValueError, match=r"2 words that the lexicon lacks, such as \['NINE', 'ZEBRA'\]"):
        grammar_fst(path, words)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_files_are_read_back_plain_and_gzipped(order: int, tmp_path: Path) -> None:
    lm, path = trained(order, tmp_path)
    packed = tmp_path / "lm.arpa.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for again in (read_arpa(path), read_arpa(packed)):
        assert again.order == order
        assert again.perplexity(SENTENCES) == pytest.approx(lm.perplexity(SENTENCES), rel=1e-4)
        assert all(gram in again.probability for gram in again.backoff)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text("\n")
    with pytest.raises(ValueError, match=r"lm.arpa: it is empty, expected an ARPA header .*make the n-gram again"):
        read_arpa(tmp_path / "lm.arpa")


BROKEN = {
    "no header": ("\\data\\", "", None),
    "no counts": ("ngram 1=4\nngram 2=2\nngram 3=1\n", "", r"arpa:\d: no 'ngram 1=COUNT'"),
    "not a count": ("ngram 2=2", "ngram 2=many", r"arpa:4: expected 'ngram 2=COUNT', got 'ngram 2=many'"),
    "an order left out": ("ngram 2=2\n", "", r"arpa:4: expected 'ngram 2=COUNT', got 'ngram 3=1'"),
    "too few": ("ngram 2=2", "ngram 2=3", r"arpa:17: the header promises 3 2-grams, the file holds 2: it is cut short"),
    "too many": ("ngram 1=4", "ngram 1=3", r"arpa:13: the header promises 3 1-grams, the file holds 4"),
    "a section too few": ("ngram 3=1\n", "", r"arpa:16: expected the section \\3-grams: of the header's"),
    "sections swapped": ("\\2-grams", "\\4-grams", r"arpa:13: expected the section \\2-grams:"),
    "cut short": ("-0.4 GO TO -3\n\n\\3-grams:\n-0.1 <s> GO TO\n\n\\end\\\n", "", r"lm.arpa: no \\end\\"),
    "cut within a line": ("-0.1 <s> GO TO\n\n\\end\\\n", "-0.1 <s> G", r"arpa:18: expected 'probability w1 … w3"),
    "end too early": ("\\3-grams:\n-0.1 <s> GO TO\n", "", r"the header promises|expected the section|no .end"),
    "too many fields": ("-1 GO -0.25", "-1 GO -0.25 7", r"arpa:9: expected 'probability w1 … w1 \[backoff\]'"),
    "no number": ("-1 GO -0.25", "one GO -0.25", r"arpa:9: expected 'probability"),
    "a probability above one": ("-1 GO -0.25", "1 GO -0.25", r"arpa:9: expected a log10-probability .*, got '1 GO"),
    "not a number": ("-1 GO -0.25", "nan GO -0.25", r"arpa:9: expected a log10-probability .*, got 'nan GO"),
    "a start inside": ("-0.4 GO TO -3", "-0.4 GO <s> -3", r"arpa:15: <s> may only begin"),
    "not a number behind": ("-1 GO -0.25", "-1 GO nan", r"arpa:9: .* got '-1 GO nan"),
    "an infinite weight": ("-1 GO -0.25", "-1 GO inf", r"arpa:9: .* got '-1 GO inf"),
    "a weight beyond floats": ("-1 GO -0.25", "-1 GO 1e300", r"arpa:9: .* got '-1 GO 1e300"),
    "an infinite probability": ("-1 GO -0.25", "inf GO -0.25", r"arpa:9: .* got 'inf GO"),
    "the back-off as a word": ("-1 GO -0.25", "-1 #0 -0.25", r"arpa:9: .*#0 and <eps> are no words, got '-1 #0"),
    "silence as a word": ("-0.7 TO", "-0.7 <eps>", r"arpa:10: .*#0 and <eps> are no words"),
    "a count beyond integers": ("ngram 1=4", f"ngram 1={'9' * 5000}", r"arpa:3: expected 'ngram 1=COUNT'"),
    "a count of other digits": ("ngram 1=4", "ngram 1=²", r"arpa:3: expected 'ngram 1=COUNT'"),
    "words in the header": ("ngram 2=2", "ngram 2=2\nGO", r"arpa:5: expected 'ngram 3=COUNT' or"),
    "a header in a section": ("\\2-grams:", "\\2-grams:\n\\data\\", r"arpa:14: the header promises 2 2-grams"),
    "a hole": ("-0.1 <s> GO TO", "-0.1 <s> TO GO", r"arpa:18: the file holds '<s> TO GO' but not its history '<s> TO'"),
    "a double": ("-0.4 GO TO -3", "-0.4 <s> GO -3", r"arpa:15: '<s> GO' stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name: str, tmp_path: Path) -> None:
    old, new, message = BROKEN[name]
    path = tmp_path / "lm.arpa"
    assert old in BACK_OFF
    path.write_text(BACK_OFF.replace(old, new), encoding="utf-8")
    for read in (read_arpa, lambda arpa: grammar_fst(arpa, WORDS)):
        if message is None:  # \data\ itself says nothing
            read(path)
            continue
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize(("old", "new"), [("-0.4 GO TO -3", "-0.4 GO LEFT"), ("-0.1 <s> GO TO", "-0.1 <s> GO LEFT")])
def test_an_ngram_of_a_word_without_a_1gram_is_named(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(BACK_OFF.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"arpa:\d+: '.*LEFT' holds a word that has no 1-gram"):
        grammar_fst(path, WORDS)


@pytest.mark.parametrize("end", ["TO", "</s>"])
def test_an_ngram_of_the_highest_order_that_stands_twice(end: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    ngrams = f"-0.1 <s> GO TO\n-0.2 <s> GO </s>\n-0.3 <s> GO {end}\n"
    path.write_text(BACK_OFF.replace("3=1", "3=3").replace("-0.1 <s> GO TO\n", ngrams), encoding="utf-8")
    for read in (read_arpa, lambda arpa: grammar_fst(arpa, WORDS)):
        with pytest.raises(ValueError, match=rf"arpa:\d+: '<s> GO {end}' stands twice in the file"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty, expected an ARPA header"),
        (b"\nGO -1\n", r"arpa:2: got 'GO -1', expected an ARPA header"),
        (b"\\data\\\n-1 \xe9\n", r"arpa:2: not UTF-8"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_arpa(path)


def test_a_long_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text("\\data\\\n" + "".join(f"ngram {n}=1\n" for n in range(1, 5000)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"arpa:12: n-grams of more than 10 words are not read"):
        read_arpa(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_preamble_tabs_and_line_ends_make_no_difference(end: str, tmp_path: Path) -> None:
    text = "made by a tool\n\\version 2\nngrams of order 3\n" + BACK_OFF.replace(" ", "\t").replace("ngram\t", "ngram ")
    (tmp_path / "plain.arpa").write_text(BACK_OFF, encoding="utf-8")
    (tmp_path / "other.arpa").write_bytes(text.replace("\n", end).encode("utf-8-sig"))
    assert read_arpa(tmp_path / "other.arpa") == read_arpa(tmp_path / "plain.arpa")


def test_what_stands_behind_the_end_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lm.arpa").write_text(BACK_OFF + BACK_OFF, encoding="utf-8")
    assert read_arpa(tmp_path / "lm.arpa").size == 7
    assert "15 lines behind \\end\\ are not read" in caplog.text


@pytest.mark.parametrize("zero", ["-inf", "-99", "-1e30", "-1e308"])
def test_paths_of_probability_zero_do_not_exist(zero: str, tmp_path: Path) -> None:
    path, ten = tmp_path / "lm.arpa", math.log(10)
    path.write_text(BACK_OFF.replace("-0.7 TO -0.125", f"{zero} TO -0.125"), encoding="utf-8")
    grammar = grammar_fst(path, WORDS)
    assert path_costs(grammar, ["TO"]) == []
    assert path_costs(grammar, ["GO", "TO"])[0] == pytest.approx(ten * (0.3 + 0.1 + 3 + 0.125 + 0.6), rel=1e-6)
    path.write_text(BACK_OFF.replace("-1 GO -0.25", f"-1 GO {zero}"), encoding="utf-8")
    grammar = grammar_fst(path, WORDS)
    assert path_costs(grammar, ["GO", "GO", "GO"]) == path_costs(grammar, ["GO", "GO"]) == []
    assert path_costs(grammar, ["TO", "TO"]) and path_costs(grammar, ["GO", "TO"])


@pytest.mark.parametrize("old", ["-0.6 </s>\n", "-0.6 </s>"])
def test_a_model_without_a_sentence_is_named(old: str, tmp_path: Path) -> None:
    new = "-inf </s>" if "\n" not in old else ""
    text = BACK_OFF.replace(old, new)
    (tmp_path / "lm.arpa").write_text(text if new else text.replace("1=4", "1=3"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lm\.arpa: no sentence has a probability above zero"):
        grammar_fst(tmp_path / "lm.arpa", WORDS)


def test_sums_of_a_grammars_paths(tmp_path: Path) -> None:
    """With interpolated weights no path is better than the one that backs off only where it must."""
    lm, path = trained(3, tmp_path)
    grammar = grammar_fst(path, WORDS)
    for sentence in itertools.product(("GO", "TO", "NINE"), repeat=3):
        best = path_costs(grammar, sentence)[0]
        assert best == pytest.approx(-math.log(10) * sum(scores(lm, sentence)), abs=1e-4)


def scores(lm: ArpaLm, sentence: Sequence[str]) -> list[float]:
    padded = ("<s>", *sentence, "</s>")
    return [lm.score(padded[:i], padded[i]) for i in range(1, len(padded))]
