"""k2's rows of benchmarks/lfmmi.py and benchmarks/decode.py, run by the Python of an environment with k2 (.venv-k2).

    .venv-k2/bin/python -m benchmarks.k2 CASE.pt

CASE.pt is what `benchmarks.measure.k2_figures` is given: log_probs (B, T, V) float32, lengths (B,), repeats, and either
output_beam with hmms (tensors of one `Hmm` for all utterances, or of one for each), or beams with the arrays of a
DecodingGraph; numbers are tensors, as old versions load no floats.
Prints a line of JSON: what `benchmarks.measure.measure` returns, and the totals (B,) of forward and backward through
`distill.lfmmi.k2.K2Engine`, or scores and words (ids) of the best paths of intersect_dense_pruned.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from benchmarks.measure import measure


def main() -> None:
    case = torch.load(sys.argv[1], weights_only=True)
    torch.set_num_threads(1)
    try:
        figures = searched(case) if "beams" in case else summed(case)
    except ImportError as error:
        sys.exit(f"this Python has no k2 ({error}); ./tools/test.sh --k2 makes one that has: .venv-k2/bin/python")
    print(json.dumps(figures))


def summed(case: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward; numerators become k2's graphs at each call, as in training."""
    from distill.fsa.graph import Hmm
    from distill.lfmmi.k2 import K2Engine

    engine, graphs = K2Engine(case["output_beam"].item()), [Hmm(**fields) for fields in case["hmms"]]
    found: list[float] = []

    def run() -> None:
        leaf = case["log_probs"].detach().requires_grad_()
        total = engine.score(leaf, case["lengths"], graphs[0] if len(graphs) == 1 else graphs).total
        total.sum().backward()
        found[:] = total.tolist()

    return {**measure(run, case["repeats"]), "totals": found}


def searched(case: dict[str, Any]) -> dict[str, Any]:
    """intersect_dense_pruned and shortest_path, one utterance after another; paths that end in a final state."""
    import k2

    from distill.fsa.k2_format import decoding_graph_to_k2_dict
    from distill.fsa.lattice import DecodingGraph

    graph = DecodingGraph(**{name: array.numpy() for name, array in case["graph"].items()})
    fsa = k2.arc_sort(k2.Fsa.from_dict(decoding_graph_to_k2_dict(graph)))
    beam, lattice_beam, max_active = case["beams"].tolist()
    found: list[tuple[float, list[int]]] = []

    def run() -> None:
        found.clear()
        for frames, length in zip(case["log_probs"], case["lengths"].tolist()):
            dense = k2.DenseFsaVec(frames[None, :length], torch.tensor([[0, 0, length]], dtype=torch.int32))
            best = k2.shortest_path(k2.intersect_dense_pruned(fsa, dense, beam, lattice_beam, 0, int(max_active)), True)
            words = best.aux_labels if isinstance(best.aux_labels, torch.Tensor) else best.aux_labels.values
            score = float(best.get_tot_scores(use_double_scores=True, log_semiring=False))
            found.append((score, [word for word in words.tolist() if word > 0]))

    figures = measure(run, case["repeats"])
    scores, words = zip(*found)
    return {**figures, "scores": scores, "words": words}


if __name__ == "__main__":
    main()
