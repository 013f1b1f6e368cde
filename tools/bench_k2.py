"""k2's row of `tools/bench_lfmmi.py`: run by an environment's Python that has k2, prints one line of JSON.

Forward and backward of what `bench_lfmmi.make_case` wrote, in one thread: seconds, cpu_seconds, peak_mb, totals and
pieces, the number of calls that the batch was cut into. A batch goes to k2 whole unless its lattice would have
more arcs than `--most-arcs`; memory that ends is an error, and so is a graph that k2 cannot number.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import k2
import torch
from bench_measure import measure
from torch import Tensor

EXACT = 1e10  # an output beam that prunes nothing
LARGEST_INT = 2**31 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--output-beam", default="exact", help="'exact', or a number")
    parser.add_argument("--most-arcs", type=int, default=1 << 26, help="of the lattices of one call, 75 bytes each")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    content = torch.load(args.dump)
    log_probs, lengths = content["log_probs"], content["lengths"]
    if content["denominator"] is not None:
        graphs = [k2.Fsa.from_dict(content["denominator"])] * len(lengths)
    else:
        graphs = [k2.Fsa.from_dict(each) for each in content["numerators"]]
    beam = EXACT if args.output_beam == "exact" else float(args.output_beam)
    size = len(lengths)
    if args.output_beam == "exact":
        widest = max(graph.num_arcs for graph in graphs) * log_probs.shape[1]
        size = max(1, min(size, args.most_arcs // widest))
    found: list[float] = []

    def run() -> None:
        found.clear()
        for low in range(0, len(lengths), size):
            part = slice(low, low + size)
            found.extend(totals(log_probs[part], lengths[part], graphs[part], beam))

    print(json.dumps({**measure(run, args.repeats), "totals": found, "pieces": -(-len(lengths) // size)}))


def totals(log_probs: Tensor, lengths: Tensor, graphs: list[k2.Fsa], beam: float) -> list[float]:
    """Totals of a piece (P, T, V), after its backward pass."""
    leaf = log_probs.clone().requires_grad_()
    count = len(lengths)
    segments = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64), lengths], 1).to(torch.int32)
    shared = all(graph is graphs[0] for graph in graphs)
    vector = k2.create_fsa_vec(graphs[:1] if shared else graphs)
    if shared:
        vector = k2.index_fsa(vector, torch.zeros(count, dtype=torch.int32))
    lattice = k2.intersect_dense(
        vector, k2.DenseFsaVec(leaf, segments), output_beam=beam, max_states=LARGEST_INT, max_arcs=LARGEST_INT
    )
    total = lattice.get_tot_scores(use_double_scores=True, log_semiring=True)
    total.sum().backward()
    return total.tolist()


if __name__ == "__main__":
    main()
