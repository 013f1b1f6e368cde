"""k2's row of benchmarks/decode.py, run by the Python of an environment with k2 (.venv-k2).

    .venv-k2/bin/python -m benchmarks.decode_k2 CASE.pt --beam 15 --max-active 2000

CASE.pt is written by benchmarks/decode.py: log_probs (B, T, V) float32, lengths (B,), and the arrays of a
DecodingGraph. Prints a line of JSON: `benchmarks.measure.measure` of intersect_dense_pruned and shortest_path, one
utterance after another, and of the best paths that end in a final state: scores, words (ids).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.measure import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--beam", type=float, default=15.0)
    parser.add_argument("--lattice-beam", type=float, default=6.0)
    parser.add_argument("--max-active", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    try:
        import k2
    except ImportError as error:
        sys.exit(f"this Python has no k2 ({error}); ./tools/test.sh --k2 makes one that has: .venv-k2/bin/python")
    from distill.fsa.k2_format import decoding_graph_to_k2_dict
    from distill.fsa.lattice import DecodingGraph

    torch.set_num_threads(1)
    case = torch.load(args.case, weights_only=True)
    graph = DecodingGraph(**{name: array.numpy() for name, array in case["graph"].items()})
    fsa = k2.arc_sort(k2.Fsa.from_dict(decoding_graph_to_k2_dict(graph)))
    pieces = [each[:length][None] for each, length in zip(case["log_probs"], case["lengths"].tolist())]

    def run() -> list[tuple[float, list[int]]]:
        found = []
        for each in pieces:
            dense = k2.DenseFsaVec(each, torch.tensor([[0, 0, each.shape[1]]], dtype=torch.int32))
            lattice = k2.intersect_dense_pruned(fsa, dense, args.beam, args.lattice_beam, 0, args.max_active)
            best = k2.shortest_path(lattice, use_double_scores=True)
            score = float(best.get_tot_scores(use_double_scores=True, log_semiring=False))
            found.append((score, words_of(best.aux_labels)))
        return found

    figures = measure(run, args.repeats)
    scores, words = zip(*run())
    print(json.dumps({**figures, "scores": scores, "words": words}))


def words_of(aux_labels) -> list[int]:
    """Word ids of a tensor, or of a ragged one where arcs say several."""
    flat = aux_labels if isinstance(aux_labels, torch.Tensor) else aux_labels.values
    return [word for word in flat.tolist() if word > 0]


if __name__ == "__main__":
    main()
