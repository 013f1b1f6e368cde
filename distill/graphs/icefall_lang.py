"""Lang folders as icefall's scripts read them (https://github.com/k2-fsa/icefall, local/prepare_lang.py)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from distill.files import write_lines
from distill.fsa.graph import Fsa, Hmm
from distill.fsa.k2_format import (
    decoding_graph_to_k2_dict,
    hmm_to_k2_dict,
    k2_vector_dict,
    save_dict,
    transducer_to_k2_dict,
)
from distill.fsa.lattice import DecodingGraph
from distill.fsa.openfst import to_openfst_text
from distill.graphs.decoding_graph import disambiguated, lexicon_fst
from distill.graphs.lexicon import Lang, write_symbols

log = logging.getLogger(__name__)

UNKNOWN = "<UNK>"  # icefall looks up its id in words.txt


def write_icefall_lang(lang: Lang, folder: Path, unit_lm: Fsa | None = None, hlg: DecodingGraph | None = None) -> None:
    """Write the files of a lang folder for icefall's compile_hlg.py, MmiTrainingGraphCompiler and decode.py.

    - tokens.txt: the units and, behind them, the disambiguation symbols #0, #1, ….
    - words.txt: with <UNK>, which has no pronunciation: a transcript that needs it has no path.
    - lexicon.txt, lexicon_disambig.txt, L.pt, L_disambig.pt; uniq_lexicon.txt, for the UniqLexicon of the graph
      compilers, which take one pronunciation a word: the first.
    - P.fst.txt from unit_lm, the denominator's LM: it has no back-off, so nothing is removed from it.
    - HLG.pt from hlg, whose labels become the model's outputs.

    icefall builds the topology itself, standard CTC over the tokens: for another one only HLG.pt fits the model's
    outputs, which is logged. Raises ValueError as `Fsa.validate` and `distill.lfmmi.epsilons.frames_only` do.
    """
    if lang.topology.has_context or lang.topology.kind != "ctc":
        log.warning(
            "the model's outputs are %s%s, but icefall's training builds standard CTC over tokens.txt: use HLG.pt only",
            lang.topology.kind,
            " of left biphones" if lang.topology.has_context else "",
        )
    folder.mkdir(parents=True, exist_ok=True)
    marked, marks = lexicon_fst(lang)
    names = [f"#{number}" for number in range(len(marks))]
    write_symbols(folder / "tokens.txt", [*lang.units, *names])
    words = sorted(lang.words, key=lang.words.__getitem__)
    write_symbols(folder / "words.txt", [*words, *([] if UNKNOWN in lang.words else [UNKNOWN])])
    _write_lexicons(lang, folder)
    save_dict(folder / "L.pt", transducer_to_k2_dict(lexicon_fst(lang, marked=False)[0]))
    save_dict(folder / "L_disambig.pt", transducer_to_k2_dict(marked))
    if unit_lm is not None:
        unit_lm.validate(lang.topology.num_units)
        write_lines(folder / "P.fst.txt", to_openfst_text(unit_lm).splitlines())
    if hlg is not None:
        save_dict(folder / "HLG.pt", decoding_graph_to_k2_dict(hlg, lang.topology.output_columns))


def write_numerators(graphs: Iterable[tuple[str, Hmm]], folder: Path, together: int = 1000) -> int:
    """Write num-00000.pt, … for `k2.Fsa.from_dict`, an `FsaVec` each over the model's outputs, and num-00000.txt, ….

    graphs: (cut id, numerator); the text lists the ids of the vector's cuts. Time windows and confidences are not
    in k2's graphs. Returns how many were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs, count = iter(graphs), 0
    while some := list(islice(pairs, together)):
        name = f"num-{count // together:05d}"
        write_lines(folder / f"{name}.txt", (cut for cut, _ in some))
        save_dict(folder / f"{name}.pt", k2_vector_dict([hmm_to_k2_dict(graph) for _, graph in some]))
        count += len(some)
    return count


def _write_lexicons(lang: Lang, folder: Path) -> None:
    words = lang.lexicon.pronunciations
    write_lines(folder / "lexicon.txt", (f"{word} {' '.join(p)}" for word in sorted(words) for p in words[word]))
    write_lines(folder / "uniq_lexicon.txt", (f"{word} {' '.join(words[word][0])}" for word in sorted(words)))
    lines = []
    for word, units, mark in disambiguated(lang)[0]:
        lines.append(" ".join([word, *(lang.units[unit] for unit in units), *([f"#{mark}"] if mark else [])]))
    write_lines(folder / "lexicon_disambig.txt", lines)
