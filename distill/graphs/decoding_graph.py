"""The decoding graph HLG: topology, lexicon and word n-gram composed with OpenFst (through kaldifst).

Input label 0 is epsilon and label c + 1 is column c (`Topology.output_columns`: the model's outputs, blank
included where there is one); output labels are word ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import kaldifst
import numpy as np

from distill.fsa.k2_format import decoding_graph_from_k2_dict, load_dict
from distill.fsa.lattice import DecodingGraph
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
    units = ((unit, unit) for unit in range(1, len(lang.tokens)))
    graph = _compose(_relabelling([*units, *((0, mark) for mark in disambiguation)]), graph)  # removes #k
    graph = _compose(lang.topology.output_fst(), graph)
    kaldifst.connect(graph)
    kaldifst.arcsort(graph, sort_type="ilabel")
    if graph.start < 0:
        raise ValueError(f"the decoding graph of {arpa} is empty: no word of it can be pronounced")
    return graph


def read_hlg(path: Path, lang: Lang) -> DecodingGraph:
    """A decoding graph made elsewhere: OpenFst's (*.fst, input label c + 1 is column c), or a k2 dict (HLG.pt).

    Raises FileNotFoundError, or ValueError for another file and for outputs or words that the lang lacks.
    """
    if path.suffix == ".fst":
        graph = DecodingGraph.read(path)
    else:
        try:
            content = load_dict(path)
        except ValueError as error:
            raise ValueError(
                f"{error}. icefall's HLG.pt has ragged aux_labels, which only k2 can load; where it is installed, write"
                " plain lists: d = torch.load('HLG.pt'); d['aux_labels'] = d['aux_labels'].tolist(); torch.save(d, …)"
            ) from None
        graph = decoding_graph_from_k2_dict(content, str(path))
    graph.check_outputs(len(lang.topology.output_columns), f"{path}, made for other units or another topology,")
    unknown = np.setdiff1d(graph.word, [0, *lang.words.values()])
    if len(unknown):
        raise ValueError(
            f"{path} has {len(unknown)} word ids that words.txt lacks, such as {unknown[0]}; make it with the words.txt"
            " of this recipe's lang folder, or leave --hlg out"
        )
    return graph


def over_outputs(graph: kaldifst.StdVectorFst, columns: Sequence[int]) -> kaldifst.StdVectorFst:
    """The graph for runtimes that have outputs only: input label c + 1 becomes columns[c] + 1.

    Columns of one output then share a label; the words of all paths stay.
    """
    return _compose(_relabelling((int(output) + 1, label) for label, output in enumerate(columns, 1)), graph)


def lexicon_fst(lang: Lang, marked: bool = True) -> tuple[kaldifst.StdVectorFst, list[int]]:
    """L with disambiguation symbols and optional silence, if the lang has one; also the ids of #0, #1, ….

    marked False: without these symbols, for transcripts. Two states stand between words: before an optional
    silence and after it. #0 passes the grammar's back-off arcs through, in the first only: a back-off on
    either side of a silence would double each path.
    """
    entries, highest = disambiguated(lang)
    base = len(lang.tokens)  # #0; #1 is base + 1, …
    silence_mark = base + highest + 1  # separates "SIL word" from "word" in determinisation
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
    """(word, units, k) with k > 0 where #k separates a pronunciation from a homophone or from one that it begins."""
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


def _relabelling(pairs: Iterable[tuple[int, int]]) -> kaldifst.StdVectorFst:
    """A transducer of one state with an arc for each (input, output) pair."""
    fst = kaldifst.StdVectorFst()
    fst.start = fst.add_state()
    fst.set_final(fst.start, 0.0)
    for pair in pairs:
        fst.add_arc(fst.start, kaldifst.StdArc(*pair, 0.0, fst.start))
    return fst


def _compose(left: kaldifst.StdVectorFst, right: kaldifst.StdVectorFst) -> kaldifst.StdVectorFst:
    kaldifst.arcsort(left, sort_type="olabel")
    kaldifst.arcsort(right, sort_type="ilabel")
    return kaldifst.compose(left, right)
