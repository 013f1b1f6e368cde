"""Building the decoding graph: what it refuses, its lexicon, and that it is the same every time."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import kaldifst
import numpy as np
import pytest

from distill.fsa.k2_format import decoding_graph_to_k2_dict, save_dict
from distill.fsa.lattice import DecodingGraph
from distill.fsa.openfst import save_fst
from distill.graphs.decoding_graph import build_hlg, lexicon_fst, over_outputs, read_hlg
from distill.graphs.lexicon import Lang
from distill.graphs.topology import monophones
from distill.graphs.word_ngram import train_word_ngram

SENTENCES = ["GO TO NINE", "TWO AN A NINE", "ANNA GO TOO", "A TWO"]


def hlg(lang: Lang, folder: Path, words: list[str] | None = None) -> kaldifst.StdVectorFst:
    train_word_ngram(SENTENCES, 3, words or lang.lexicon.words, least=1).write(folder / "lm.arpa")
    return build_hlg(lang, folder / "lm.arpa")


def outputs(fst: kaldifst.StdVectorFst, inputs: list[int]) -> set[tuple[int, ...]]:
    """Output sequences of all paths with the given inputs."""
    kaldifst.arcsort(fst, sort_type="ilabel")
    paths = kaldifst.compose(kaldifst.make_linear_acceptor(inputs), fst)
    if paths.start < 0:
        return set()
    best = kaldifst.convert_nbest_to_vector(kaldifst.shortest_path(paths, n=1000))
    return {tuple(kaldifst.get_linear_symbol_sequence(path)[2]) for path in best}


def test_words_without_pronunciation_are_named(lang: Lang, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 words that the lexicon lacks.*'ZEBRA'.*stage 3"):
        hlg(lang, tmp_path, ["ZEBRA"])


def test_lexicon_separates_homophones_and_prefixes(lang: Lang) -> None:
    fst, marks = lexicon_fst(lang)
    assert len(marks) == 5  # #0, one each for TO, TOO and TWO, and the silence's
    ids, base = lang.tokens, marks[0]
    t, uw = ids["T"], ids["UW"]
    found = {outputs(fst.copy(), [t, uw, base + mark]).pop() for mark in (1, 2, 3)}
    assert found == {(lang.words[word],) for word in ("TO", "TOO", "TWO")}
    assert outputs(fst, [t, uw]) == set()
    anna = [ids["AE"], ids["N"], ids["AH"]]
    assert outputs(fst, anna) == {(lang.words["ANNA"],)}
    assert outputs(fst, [*anna[:2], base + 1, anna[2]]) == {(lang.words["AN"], lang.words["A"])}


def test_lexicon_takes_silence_anywhere_between_words_but_once(lang: Lang) -> None:
    fst, marks = lexicon_fst(lang)
    go, silence = [lang.tokens["G"], lang.tokens["OW"]], [lang.silence, marks[-1]]
    word = lang.words["GO"]
    assert outputs(fst, silence) == {()}
    assert outputs(fst, [*silence, *go, *silence, *go, *go, *silence]) == {(word, word, word)}
    assert outputs(fst, [*go, *silence, *silence, *go]) == set()


def test_back_off_comes_before_silence_only(lang: Lang) -> None:
    fst, marks = lexicon_fst(lang)
    go, silence = [lang.tokens["G"], lang.tokens["OW"]], [lang.silence, marks[-1]]
    assert outputs(fst, [*go, marks[0], *silence, *go])
    assert not outputs(fst, [*go, *silence, marks[0], *go])


def test_columns_that_share_an_output_get_its_label() -> None:
    text = "0 1 1 5 0.5\n0 1 3 6 0.7\n1 1 0 0 0.1\n1 2 2 0 0.2\n2 0\n"
    graph = over_outputs(kaldifst.compile(text, acceptor=False), [2, 0, 2])
    assert outputs(graph, [3, 1]) == {(5,), (6,)} and outputs(graph, [1, 3]) == set()


def test_ctc_topology_collapses_labels() -> None:
    fst = monophones("ctc", 4).output_fst()
    assert outputs(fst, [1, 2, 2, 1, 2, 3, 3, 1]) == {(1, 1, 2)}  # input is unit + 1, blank is 1
    assert (fst.num_states, sum(map(fst.num_arcs, range(4)))) == (4, 16)


def test_same_inputs_same_graph(lang: Lang, tmp_path: Path) -> None:
    graph = hlg(lang, tmp_path)
    graph.write(str(tmp_path / "a.fst"))
    hlg(lang, tmp_path).write(str(tmp_path / "b.fst"))
    assert (tmp_path / "a.fst").read_bytes() == (tmp_path / "b.fst").read_bytes()
    labels = {arc.ilabel for s in kaldifst.StateIterator(graph) for arc in kaldifst.ArcIterator(graph, s)}
    assert max(labels) <= len(lang.units)  # no #k is left


def numbers(line: str, rng: random.Random) -> str:
    """A line with another number in the place of a probability, a weight or a word."""
    fields = line.split("\t")
    odd = ("-inf", "inf", "nan", "-99", "0", "5", "-1e-9", "1e39", "-1e39", "1e400", "-4000", "99", "one", "")
    fields[rng.randrange(len(fields))] = rng.choice(odd)
    return "\t".join(fields)


def words(line: str, rng: random.Random) -> str:
    """A line with another word, or words, in one place."""
    fields = line.split() or [""]
    odd = (
        "#0",
        "#1",
        "<eps>",
        "<s>",
        "</s>",
        "<unk>",
        "GO",
        "SIL",
        "é",
        "\ufeffGO",
        "",
        "A B",
        "\\end\\",
        "\\2-grams:",
    )
    fields[rng.randrange(len(fields))] = rng.choice(odd)
    return " ".join(fields)


CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    numbers, numbers, numbers, words, words,
    lambda line, rng: "", lambda line, rng: f"{line}\n{line}", lambda line, rng: line[: rng.randrange(len(line) + 1)],
    lambda line, rng: f"{line}\t-0.5", lambda line, rng: line + "\r", lambda line, rng: line.replace("\t", " "),
    lambda line, rng: f"ngram {rng.randrange(9)}={rng.choice((0, 2, 10**30))}", lambda line, rng: f"# {line}",
)  # fmt: skip


@pytest.mark.timeout(120)  # for all: a graph that cannot be determinised would not end
@pytest.mark.parametrize("most", [1, 3, 12])
def test_any_arpa_ends_in_a_graph_or_in_an_error_that_names_it(most: int, lang: Lang, tmp_path: Path) -> None:
    train_word_ngram(SENTENCES, 3, lang.lexicon.words, least=1).write(tmp_path / "whole.arpa")
    lines = (tmp_path / "whole.arpa").read_text(encoding="utf-8").split("\n")
    rng, built = random.Random(most), 0
    for number in range(150):
        changed = list(lines)
        for _ in range(rng.randint(1, most)):
            place = rng.randrange(len(changed))
            changed[place] = rng.choice(CHANGES)(changed[place] or " ", rng)
        content = "\n".join(changed).encode()
        if number % 10 == 9:
            content = gzip.compress(content)[: rng.choice((-1, -9, 40, 10**6))]
        path = tmp_path / f"{number}.arpa{'.gz' if number % 10 == 9 else ''}"
        path.write_bytes(content)
        try:
            assert build_hlg(lang, path).num_states > 1
            built += 1
        except ValueError as error:
            assert path.name in str(error)
    assert 0 < built < 150


def test_foreign_graphs_of_openfst_and_k2(lang: Lang, tmp_path: Path) -> None:
    save_fst(tmp_path / "HLG.fst", hlg(lang, tmp_path))
    ours = DecodingGraph.read(tmp_path / "HLG.fst")
    assert read_hlg(tmp_path / "HLG.fst", lang).word.tolist() == ours.word.tolist()
    content = decoding_graph_to_k2_dict(ours)
    save_dict(tmp_path / "HLG.pt", content)
    save_dict(tmp_path / "lists.pt", content | {"aux_labels": [[word] for word in content["aux_labels"].tolist()]})
    for name in ("HLG.pt", "lists.pt"):
        again = decoding_graph_to_k2_dict(read_hlg(tmp_path / name, lang))
        assert again["arcs"].equal(content["arcs"]) and again["aux_labels"].equal(content["aux_labels"])
    save_fst(tmp_path / "again.fst", ours.to_openfst())
    assert DecodingGraph.read(tmp_path / "again.fst").dst.tolist() == ours.dst.tolist()


def test_foreign_graphs_that_do_not_fit(lang: Lang, tmp_path: Path) -> None:
    one, score = np.array([0], dtype=np.int32), np.zeros(1, dtype=np.float32)
    ends = np.array([-np.inf, 0], dtype=np.float32)
    for name, label, word in (("outputs", 99, 1), ("words", 1, 99)):
        graph = DecodingGraph(np.array([0, 1, 1]), one + 1, one + label, one + word, score, ends)
        save_fst(tmp_path / f"{name}.fst", graph.to_openfst())
    with pytest.raises(ValueError, match=r"outputs\.fst, made for other units or another topology, uses output 99"):
        read_hlg(tmp_path / "outputs.fst", lang)
    with pytest.raises(ValueError, match=r"words\.fst has 1 word ids that words\.txt lacks, such as 99; make it with"):
        read_hlg(tmp_path / "words.fst", lang)
    (tmp_path / "HLG.pt").write_bytes(b"ragged")
    with pytest.raises(ValueError, match=r"HLG\.pt: not readable .* which only k2 can load; .*tolist\(\)"):
        read_hlg(tmp_path / "HLG.pt", lang)
