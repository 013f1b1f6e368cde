"""Determinisation of lattices in Python: the reference of `kernels/sequences.cpp`."""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from distill.fsa.lattice import Lattice

SLACK = 1e-6  # rounding must not cut a path at the edge of the beam
RESOLUTION = 1024  # scores that differ by less than 1 / RESOLUTION count as equal
NEVER = (-np.inf, 0.0)

Pair = tuple[float, float]  # graph and acoustic score


class Edge(NamedTuple):
    symbol: int
    to: int
    scores: Pair


def plus(x: Pair, y: Pair) -> Pair:
    return x[0] + y[0], x[1] + y[1]


def minus(x: Pair, y: Pair) -> Pair:
    return x[0] - y[0], x[1] - y[1]


def rounded(x: Pair) -> tuple[float, float]:
    return round(x[0] * RESOLUTION, 0), round(x[1] * RESOLUTION, 0)


class Expanded:
    """The lattice with the last output as part of each node: edges by node, nodes in topological order."""

    def __init__(self, lattice: Lattice, units: Any) -> None:
        self.lattice = lattice
        leaving: list[list[int]] = [[] for _ in range(lattice.num_states)]
        for arc, src in enumerate(lattice.src.tolist()):
            leaving[src].append(arc)
        self.state, self.edges = [0], defaultdict[int, list[Edge]](list)
        self.order: list[int] = []
        nodes: list[dict[int, int]] = [{} for _ in leaving]
        nodes[0][-1] = 0
        for here, arcs in zip(nodes, leaving):
            for before, node in here.items():
                self.order.append(node)
                for arc in arcs:
                    label, end = int(lattice.label[arc]), int(lattice.dst[arc])
                    silent = label < 0 or units is None
                    if units is None:
                        symbol = int(lattice.word[arc])
                    else:
                        symbol = 0 if silent else int((units.again if label == before else units.fresh)[label])
                    to = nodes[end].setdefault(before if silent else label, len(self.state))
                    if to == len(self.state):
                        self.state.append(end)
                    scores = float(lattice.graph[arc]), float(lattice.acoustic[arc])
                    self.edges[node].append(Edge(symbol, to, scores))
        self._score()

    def _score(self) -> None:
        self.ahead, self.behind = ([-np.inf] * len(self.state) for _ in range(2))
        self.ahead[0] = 0.0
        for node in self.order:
            for _, to, scores in self.edges[node]:
                self.ahead[to] = max(self.ahead[to], self.ahead[node] + sum(scores))
        for node in reversed(self.order):
            onward = (sum(scores) + self.behind[to] for _, to, scores in self.edges[node])
            self.behind[node] = max([self.final(node), *onward])

    def narrowed(self, beam: float, most_arcs: int) -> float:
        """A beam within which at most so many edges lie."""
        best = self.behind[0]
        worse = [
            best - (self.ahead[node] + sum(scores) + self.behind[to])
            for node in self.order for _, to, scores in self.edges[node]
        ]  # fmt: skip
        near = sorted(x for x in worse if x <= beam)
        return beam if len(near) <= most_arcs else max(0.0, near[most_arcs] - 2 * SLACK)

    def final(self, node: int) -> float:
        return float(self.lattice.final[self.state[node]])

    def entry(self, start: int, least: float) -> tuple[list[Edge], Pair]:
        """Symbols that can follow a node, and how it may end; edges without a symbol are skipped."""
        reached, queue = {start: (0.0, 0.0)}, [(self.state[start], start)]
        exits, ending = [], NEVER
        while queue:
            _, node = heapq.heappop(queue)
            if node not in reached:
                continue  # met twice
            here = reached.pop(node)
            if sum(here) + self.final(node) >= max(least, sum(ending)):
                ending = plus(here, (self.final(node), 0.0))
            for symbol, to, scores in self.edges[node]:
                there = plus(here, scores)
                if sum(there) + self.behind[to] < least:
                    continue
                if symbol:
                    exits.append(Edge(symbol, to, there))
                elif sum(there) > sum(reached.get(to, NEVER)):
                    reached[to] = there
                    heapq.heappush(queue, (self.state[to], to))
        return exits, ending


class Subset:
    """Nodes that a sequence may have led to, each with the rest of its scores."""

    def __init__(self, elements: list[tuple[int, Pair]], behind: list[float]) -> None:
        self.elements = elements
        self.future = max(sum(rest) + behind[node] for node, rest in elements)
        self.ahead, self.done, self.ending = -np.inf, False, NEVER
        self.edges: list[Edge] = []


class Determiniser:
    def __init__(self, graph: Expanded, beam: float) -> None:
        self.graph, self.beam = graph, beam
        self.least = graph.behind[0] - beam - SLACK
        self.subsets: list[Subset] = []
        self.numbers: dict[tuple, int] = {}
        self.queue: list[tuple[float, int]] = []
        self.entries: dict[int, tuple[list[Edge], Pair]] = {}

    def run(self, most_states: int) -> float:
        """Make all subsets within the beam, the best first; returns the beam that was reached."""
        self._make(0.0, [(0, (0.0, 0.0))])
        count = 0
        while self.queue:
            cost, number = heapq.heappop(self.queue)
            if self.subsets[number].done:
                continue
            if count == most_states:
                return self.graph.behind[0] + cost
            count += 1
            self.subsets[number].done = True
            self._leave(self.subsets[number])
        return self.beam

    def _make(self, ahead: float, elements: list[tuple[int, Pair]]) -> int:
        key = tuple((node, *rounded(rest)) for node, rest in elements)
        number = self.numbers.setdefault(key, len(self.subsets))
        if number == len(self.subsets):
            self.subsets.append(Subset(elements, self.graph.behind))
        subset = self.subsets[number]
        if not subset.done and ahead > subset.ahead:
            subset.ahead = ahead
            heapq.heappush(self.queue, (-(ahead + subset.future), number))
        return number

    def _leave(self, subset: Subset) -> None:
        exits: dict[int, dict[int, Pair]] = defaultdict(dict)
        for node, rest in subset.elements:
            if node not in self.entries:
                self.entries[node] = self.graph.entry(node, self.least - self.graph.ahead[node])
            following, ending = self.entries[node]
            subset.ending = max(subset.ending, plus(rest, ending), key=sum)
            for symbol, to, scores in following:
                there = plus(rest, scores)
                exits[symbol][to] = max(exits[symbol].get(to, NEVER), there, key=lambda x: (sum(x), x[0]))
        if subset.ahead + sum(subset.ending) < self.least:
            subset.ending = NEVER
        for symbol in sorted(exits):
            self._follow(subset, symbol, sorted(exits[symbol].items()))

    def _follow(self, subset: Subset, symbol: int, reached: list[tuple[int, Pair]]) -> None:
        value = [sum(scores) + self.graph.behind[to] for to, scores in reached]
        top = max(value)
        if subset.ahead + top < self.least:
            return
        best = reached[value.index(top)][1]
        elements = [
            (to, minus(scores, best)) for (to, scores), x in zip(reached, value) if x >= top - self.beam - SLACK
        ]
        subset.edges.append(Edge(symbol, self._make(subset.ahead + sum(best), elements), best))


def determinised(lattice: Lattice, units: Any, beam: float, most_states: int, most_arcs: int) -> tuple:
    """Fields of a `SequenceGraph` (`distill.search.determinise.determinised`)."""
    graph = Expanded(lattice, units)
    determiniser = Determiniser(graph, graph.narrowed(beam, most_arcs))
    reached = determiniser.run(most_states)
    subsets = determiniser.subsets
    order = _postorder(subsets)
    onward: list[Pair] = [NEVER] * len(subsets)
    for s in order:
        ways = [plus(edge.scores, onward[edge.to]) for edge in subsets[s].edges]
        onward[s] = max([subsets[s].ending, *ways], key=sum)
    classes = _merged(subsets, order, onward, sum(onward[0]) - reached - SLACK)
    return *_arrays(lattice, graph, subsets, classes), onward[0], reached


def _postorder(subsets: list[Subset]) -> list[int]:
    """Subsets, each after all its successors."""
    out, stack, seen = [], [(0, 0)], {0}
    while stack:
        state, following = stack.pop()
        if following == len(subsets[state].edges):
            out.append(state)
            continue
        stack.append((state, following + 1))
        to = subsets[state].edges[following].to
        if to not in seen:
            seen.add(to)
            stack.append((to, 0))
    return out


def _merged(subsets: list[Subset], order: list[int], onward: list[Pair], least: float) -> list[tuple[list[int], list]]:
    """Merge equal states, drop those below `least`: subsets and edges of each class (ending as symbol 0)."""
    ahead = [-np.inf] * len(subsets)
    ahead[0] = 0.0
    for s in reversed(order):
        for edge in subsets[s].edges:
            ahead[edge.to] = max(ahead[edge.to], ahead[s] + sum(edge.scores))
    class_of: dict[int, int] = {}
    numbers: dict[tuple, int] = {}
    classes: list[tuple[list[int], list]] = []
    for s in order:
        if not ahead[s] + sum(onward[s]) >= least:
            continue
        edges = [Edge(0, -1, minus(subsets[s].ending, onward[s]))] if ahead[s] + sum(subsets[s].ending) >= least else []
        for symbol, to, scores in subsets[s].edges:
            if ahead[s] + sum(plus(scores, onward[to])) >= least:
                edges.append(Edge(symbol, class_of[to], minus(plus(scores, onward[to]), onward[s])))
        key = tuple((symbol, to, *rounded(scores)) for symbol, to, scores in edges)
        class_of[s] = numbers.setdefault(key, len(classes))
        if class_of[s] == len(classes):
            classes.append(([], edges))
        classes[class_of[s]][0].append(s)
    return classes


def _arrays(lattice: Lattice, graph: Expanded, subsets: list[Subset], classes: list) -> tuple[np.ndarray, ...]:
    count = len(classes)
    final = np.tile(np.array(NEVER, dtype=np.float32), (count, 1)).T
    earliest, latest = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    rows = []
    for state, (members, edges) in enumerate(reversed(classes)):
        frames = [max(int(lattice.frame[graph.state[node]]) - 1, 0) for s in members for node, _ in subsets[s].elements]
        earliest[state], latest[state] = min(frames), max(frames)
        for symbol, to, scores in edges:
            if symbol:
                rows.append((state, count - 1 - to, symbol, *scores))
            else:
                final[:, state] = scores
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    whole, real = columns[:3].astype(np.int32), columns[3:].astype(np.float32)
    return *whole, *real, *final, earliest, latest


def best_path(lattice: Lattice, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Arcs of the best path and the posterior of its output at each frame (`distill.search.determinise.best_path`)."""
    score = lattice.acoustic.astype(np.float64) + lattice.graph
    src, dst = lattice.src, lattice.dst
    best, onward = lattice.final.astype(np.float64), np.full(lattice.num_states, -1)
    for arc in reversed(range(len(src))):
        if score[arc] + best[dst[arc]] > best[src[arc]]:
            best[src[arc]], onward[src[arc]] = score[arc] + best[dst[arc]], arc
    path, state = [], 0
    while onward[state] >= 0:
        path.append(onward[state])
        state = dst[path[-1]]
    chosen = np.array(path, dtype=np.int32)
    output = np.full(lattice.num_frames, -1)
    spoken = chosen[lattice.label[chosen] >= 0]
    output[lattice.frame[src[spoken]]] = lattice.label[spoken]
    share, frame = arc_posteriors(lattice, scale), lattice.frame[src]
    same = (lattice.label >= 0) & (lattice.label == output[np.minimum(frame, len(output) - 1)])
    posterior = np.bincount(frame[same], share[same], len(output)).astype(np.float32)
    return chosen, np.minimum(posterior, 1.0)


def arc_posteriors(lattice: Lattice, scale: float) -> np.ndarray:
    """Share of all paths' mass that each arc has (`distill.search.determinise.arc_posteriors`)."""
    score = scale * (lattice.acoustic.astype(np.float64) + lattice.graph)
    src, dst = lattice.src, lattice.dst
    ahead, behind = np.full(lattice.num_states, -np.inf), scale * lattice.final.astype(np.float64)
    ahead[0] = 0.0
    for arc in range(len(src)):
        ahead[dst[arc]] = np.logaddexp(ahead[dst[arc]], ahead[src[arc]] + score[arc])
    for arc in reversed(range(len(src))):
        behind[src[arc]] = np.logaddexp(behind[src[arc]], score[arc] + behind[dst[arc]])
    return np.exp(ahead[src] + score + behind[dst] - behind[0]).astype(np.float32)
