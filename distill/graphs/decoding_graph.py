"""The decoding graph HLG: topology, lexicon and word n-gram composed with OpenFst (through kaldifst).

Input label 0 is epsilon and label c + 1 is column c (`Topology.output_columns`: the model's outputs, blank
included where there is one); output labels are word ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import kaldifst

from distill.graphs.grammar_fst import grammar_fst
from distill.graphs.lexicon import Lang


def build_hlg(lang: Lang, arpa: Path) -> kaldifst.StdVectorFst:
    """min(det(L o G)) without its disambiguation symbols, then H (o C) o LG of the lang's topology.

    Raises ValueError for a broken ARPA file, and for words of it that the lexicon lacks.
    """
    grammar = grammar_fst(arpa, lang.words)
    lexicon, disambiguation = lexicon_fst(lang)
    kaldifst.arcsort(lexicon, sort_type="olabel")
    kaldifst.arcsort(grammar, sort_type="ilabel")
    graph = kaldifst.compose(lexicon, grammar)
    kaldifst.determinize_star(graph)
    kaldifst.minimize_encoded(graph)
    # Never determinise from here on: without #k homophones are no longer distinct.
    graph = _compose(_without(disambiguation, len(lang.tokens)), graph)
    graph = _compose(lang.topology.output_fst(), graph)
    kaldifst.connect(graph)
    kaldifst.arcsort(graph, sort_type="ilabel")
    if graph.start < 0:
        raise ValueError(f"the decoding graph of {arpa} is empty: no word of it can be pronounced")
    return graph


def over_outputs(graph: kaldifst.StdVectorFst, columns: Sequence[int]) -> kaldifst.StdVectorFst:
    """The graph for runtimes that know outputs alone: input label c + 1 becomes columns[c] + 1.

    Columns of one output then have the same label, which costs a search nothing but what told them apart.
    """
    names = kaldifst.StdVectorFst()
    names.start = names.add_state()
    names.set_final(names.start, 0.0)
    for label, output in enumerate(columns, 1):
        names.add_arc(names.start, kaldifst.StdArc(int(output) + 1, label, 0.0, names.start))
    return _compose(names, graph)


def lexicon_fst(lang: Lang, marked: bool = True) -> tuple[kaldifst.StdVectorFst, list[int]]:
    """L with disambiguation symbols and optional silence, if the lang has one; also the ids of #0, #1, ….

    marked False: without these symbols, for transcripts. Two states stand between words: in the first,
    silence may still come, in the second it has. #0 passes the grammar's back-off arcs through, in the
    first only: a back-off on either side of a silence would double each path.
    """
    entries, highest = disambiguated(lang)
    base = len(lang.tokens)  # #0; #1 is base + 1, …
    silence_mark = base + highest + 1  # tells "SIL word" from "word" in determinisation
    fst = kaldifst.StdVectorFst()
    between = fst.start = fst.add_state()
    sources = [between]
    if lang.silence is not None:
        sources.append(fst.add_state())
        _chain(fst, between, sources[1], [lang.silence, *([silence_mark] if marked else [])], 0)
    for state in sources:
        fst.set_final(state, 0.0)
    if marked:
        fst.add_arc(between, kaldifst.StdArc(base, lang.words["#0"], 0.0, between))
    for word, units, mark in entries:
        inputs = [*units, *([base + mark] if mark and marked else [])]
        for source in sources:
            _chain(fst, source, between, inputs, lang.words[word])
    return fst, list(range(base, silence_mark + 1))


def disambiguated(lang: Lang) -> tuple[list[tuple[str, tuple[int, ...], int]], int]:
    """(word, units, k) with k > 0 where #k must tell a pronunciation from its twin or its longer kin."""
    entries = [(word, units) for word in lang.lexicon.words for units in lang.pronunciation_ids(word, "the lexicon")]
    shared = Counter(units for _, units in entries)
    prefixes = {units[:n] for _, units in entries for n in range(1, len(units))}
    used: Counter[tuple[int, ...]] = Counter()
    marked = []
    for word, units in entries:
        if shared[units] > 1 or units in prefixes:
            used[units] += 1
            marked.append((word, units, used[units]))
        else:
            marked.append((word, units, 0))
    return marked, max(used.values(), default=0)


def _chain(fst: kaldifst.StdVectorFst, source: int, target: int, inputs: list[int], output: int) -> None:
    for position, label in enumerate(inputs):
        following = target if position == len(inputs) - 1 else fst.add_state()
        fst.add_arc(source, kaldifst.StdArc(label, output if position == 0 else 0, 0.0, following))
        source = following


def _without(disambiguation: list[int], num_units: int) -> kaldifst.StdVectorFst:
    """Maps units to themselves and nothing to #k: composed on the left it removes them."""
    fst = kaldifst.StdVectorFst()
    fst.start = fst.add_state()
    fst.set_final(0, 0.0)
    for label, mark in _identity_and_marks(num_units, disambiguation):
        fst.add_arc(0, kaldifst.StdArc(label, mark, 0.0, 0))
    return fst


def _identity_and_marks(num_units: int, disambiguation: list[int]) -> Iterator[tuple[int, int]]:
    yield from ((unit, unit) for unit in range(1, num_units))
    yield from ((0, mark) for mark in disambiguation)


def _compose(left: kaldifst.StdVectorFst, right: kaldifst.StdVectorFst) -> kaldifst.StdVectorFst:
    kaldifst.arcsort(left, sort_type="olabel")
    kaldifst.arcsort(right, sort_type="ilabel")
    return kaldifst.compose(left, right)


def size(fst: kaldifst.StdVectorFst) -> tuple[int, int]:
    """States and arcs."""
    states = list(kaldifst.StateIterator(fst))
    return len(states), sum(fst.num_arcs(state) for state in states)
