// Input lattices of determinisation: graph and acoustic scores apart, and the symbol of each edge.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

// Log-scores kept apart; whatever is compared is their sum.
struct Scores {
  double graph = 0, acoustic = 0;
  double total() const { return graph + acoustic; }
  Scores operator+(const Scores &o) const { return {graph + o.graph, acoustic + o.acoustic}; }
  Scores operator-(const Scores &o) const { return {graph - o.graph, acoustic - o.acoustic}; }
};

const Scores kNever{kNone, 0};

struct Arcs {
  const int32_t *src, *dst, *label, *word;
  const float *acoustic, *graph;
  int64_t count;
};

struct Edge {
  int32_t to, symbol;
  Scores scores;
};

// The lattice with the last output as part of each node, which determines the symbol of each edge.
struct Expanded {
  std::vector<int32_t> state, order;  // of each node: state of the lattice; nodes, sources before targets
  std::vector<size_t> first;          // edges of node n: first[n] .. last[n]
  std::vector<size_t> last;
  std::vector<Edge> edges;
};

// fresh, again (V,): unit that begins when an output follows another one, and itself; null: symbols are words.
Expanded expand(const Arcs &arcs, int64_t states, const int32_t *fresh, const int32_t *again) {
  Expanded out;
  std::vector<std::vector<std::pair<int32_t, int32_t>>> nodes(states);  // of a state: (output before, node)
  const auto node = [&](int32_t state, int32_t before) {
    for (const auto &[output, number] : nodes[state])
      if (output == before) return number;
    const auto number = static_cast<int32_t>(out.state.size());
    nodes[state].emplace_back(before, number);
    out.state.push_back(state);
    return number;
  };
  node(0, -1);
  int64_t begin = 0;
  for (int32_t state = 0; state < states; ++state) {
    int64_t end = begin;
    while (end < arcs.count && arcs.src[end] == state) ++end;
    for (const auto &[before, number] : std::vector<std::pair<int32_t, int32_t>>(nodes[state])) {
      out.order.push_back(number);
      out.first.resize(out.state.size()), out.last.resize(out.state.size());
      out.first[number] = out.edges.size();
      for (int64_t a = begin; a < end; ++a) {
        const int32_t label = arcs.label[a];
        const bool silent = label < 0 || !fresh;
        const int32_t symbol = !fresh ? arcs.word[a] : silent ? 0 : (label == before ? again : fresh)[label];
        out.edges.push_back({node(arcs.dst[a], silent ? before : label), symbol, {arcs.graph[a], arcs.acoustic[a]}});
      }
      out.last.resize(out.state.size()), out.first.resize(out.state.size());
      out.last[number] = out.edges.size();
    }
    begin = end;
  }
  return out;
}

}  // namespace
