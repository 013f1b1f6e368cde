// Determinisation of a lattice over units or words, and the posterior of its best path.
//
// Weighted determinisation in the tropical semiring with pruning, after Povey et al. 2012 (as Kaldi's
// determinize-lattice-pruned): each sequence of symbols keeps its best path's graph and acoustic
// score. States are made in order of the best path through them, so a limit only narrows the beam.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "expanded.h"

namespace {

constexpr double kSlack = 1e-6;       // rounding must not cut a path at the edge of the beam
constexpr double kResolution = 1024;  // scores that differ by less than 1 / kResolution count as equal

int64_t rounded(double score) { return std::llround(score * kResolution); }

struct Exit {
  int32_t symbol, to;
  Scores scores;
};

// A node behind a symbol: the symbols that can come next, and how it may end.
struct Entry {
  std::vector<Exit> exits;
  Scores ending = kNever;
};

struct Element {
  int32_t node;
  Scores rest;
};

struct Subset {
  std::vector<Element> elements;
  double ahead, future;  // best score to here, and of what follows (relative to the elements' rests)
  bool done = false;
  Scores ending = kNever;
  std::vector<Edge> edges;
};

struct Result {
  std::vector<int32_t> src, dst, symbol, earliest, latest;
  std::vector<float> graph, acoustic, final_graph, final_acoustic;
  Scores best;
  double beam;
};

class Determiniser {
 public:
  Determiniser(const Arcs &arcs, const float *final, const int32_t *frame, int64_t states, const int32_t *fresh,
               const int32_t *again, double beam, int64_t most, int64_t most_edges)
      : graph_(expand(arcs, states, fresh, again)), final_(final), frame_(frame), beam_(beam), most_(most),
        entries_(graph_.state.size()), known_(graph_.state.size(), 0), reached_(graph_.state.size(), kNever) {
    score();
    narrow(most_edges);
  }

  Result run() {
    make(0.0, {{0, {}}});
    double beam = beam_;
    for (int64_t count = 0; !queue_.empty();) {
      const auto [score, state] = queue_.top();
      queue_.pop();
      if (subsets_[state].done) continue;
      if (count++ == most_) {
        beam = best_ - score;
        break;
      }
      subsets_[state].done = true;
      leave(state);
    }
    return minimal(beam);
  }

 private:
  Scores ending(int32_t node) const { return {final_[graph_.state[node]], 0}; }

  // Best scores from the start to each node and from each node to the end.
  void score() {
    const size_t size = graph_.state.size();
    ahead_.assign(size, kNone), behind_.assign(size, kNone);
    ahead_[0] = 0;
    for (const int32_t n : graph_.order)
      for (size_t e = graph_.first[n]; e < graph_.last[n]; ++e) {
        double &to = ahead_[graph_.edges[e].to];
        to = std::max(to, ahead_[n] + graph_.edges[e].scores.total());
      }
    for (auto n = graph_.order.rbegin(); n != graph_.order.rend(); ++n) {
      behind_[*n] = ending(*n).total();
      for (size_t e = graph_.first[*n]; e < graph_.last[*n]; ++e)
        behind_[*n] = std::max(behind_[*n], graph_.edges[e].scores.total() + behind_[graph_.edges[e].to]);
    }
    best_ = behind_[0];
  }

  // A beam within which at most so many edges lie: where every path is as good as the others, time would run away.
  void narrow(int64_t most_edges) {
    std::vector<double> worse;
    for (const int32_t n : graph_.order)
      for (size_t e = graph_.first[n]; e < graph_.last[n]; ++e) {
        const Edge &edge = graph_.edges[e];
        const double below = best_ - (ahead_[n] + edge.scores.total() + behind_[edge.to]);
        if (below <= beam_) worse.push_back(below);
      }
    if (static_cast<int64_t>(worse.size()) <= most_edges) return;
    std::nth_element(worse.begin(), worse.begin() + most_edges, worse.end());
    beam_ = std::max(0.0, worse[most_edges] - 2 * kSlack);
  }

  // Everything that can follow a node up to the next symbol; edges without a symbol are skipped here.
  const Entry &entry(int32_t start) {
    Entry &found = entries_[start];
    if (known_[start]) return found;
    known_[start] = 1;
    const double least = best_ - beam_ - kSlack - ahead_[start];
    const auto later = [this](int32_t x, int32_t y) {
      return std::tie(graph_.state[x], x) > std::tie(graph_.state[y], y);
    };
    std::priority_queue<int32_t, std::vector<int32_t>, decltype(later)> queue(later);
    reached_[start] = {};
    queue.push(start);
    while (!queue.empty()) {
      const int32_t n = queue.top();
      queue.pop();
      const Scores here = reached_[n];
      if (here.total() == kNone) continue;  // met twice
      reached_[n] = kNever;
      const Scores end = here + ending(n);
      if (end.total() >= least && end.total() > found.ending.total()) found.ending = end;
      for (size_t e = graph_.first[n]; e < graph_.last[n]; ++e) {
        const Edge &edge = graph_.edges[e];
        const Scores there = here + edge.scores;
        if (!(there.total() + behind_[edge.to] >= least)) continue;
        if (edge.symbol) {
          found.exits.push_back({edge.symbol, edge.to, there});
        } else if (there.total() > reached_[edge.to].total()) {
          reached_[edge.to] = there;
          queue.push(edge.to);
        }
      }
    }
    keep_best(found.exits);
    return found;
  }

  static void keep_best(std::vector<Exit> &exits) {
    std::sort(exits.begin(), exits.end(), [](const Exit &x, const Exit &y) {
      return std::make_tuple(x.symbol, x.to, -x.scores.total(), -x.scores.graph) <
             std::make_tuple(y.symbol, y.to, -y.scores.total(), -y.scores.graph);
    });
    exits.erase(std::unique(exits.begin(), exits.end(),
                            [](const Exit &x, const Exit &y) { return x.symbol == y.symbol && x.to == y.to; }),
                exits.end());
  }

  // The subset with these elements, made if it is new, with the best score to it brought up to date.
  int32_t make(double ahead, std::vector<Element> elements) {
    std::vector<int64_t> key;
    double future = kNone;
    for (const Element &each : elements) {
      key.insert(key.end(), {each.node, rounded(each.rest.graph), rounded(each.rest.acoustic)});
      future = std::max(future, each.rest.total() + behind_[each.node]);
    }
    const auto [place, fresh] = numbers_.try_emplace(std::move(key), static_cast<int32_t>(subsets_.size()));
    if (fresh) {
      subsets_.push_back({std::move(elements), ahead, future, false, kNever, {}});
    } else if (subsets_[place->second].done || ahead <= subsets_[place->second].ahead) {
      return place->second;
    }
    subsets_[place->second].ahead = ahead;
    queue_.emplace(ahead + subsets_[place->second].future, place->second);
    return place->second;
  }

  void leave(int32_t state) {
    std::vector<Exit> exits;
    for (const Element &each : subsets_[state].elements) {
      const Entry &found = entry(each.node);
      for (const Exit &exit : found.exits) exits.push_back({exit.symbol, exit.to, each.rest + exit.scores});
      const Scores end = each.rest + found.ending;
      if (end.total() > subsets_[state].ending.total()) subsets_[state].ending = end;
    }
    if (subsets_[state].ahead + subsets_[state].ending.total() < best_ - beam_ - kSlack)
      subsets_[state].ending = kNever;
    keep_best(exits);
    for (size_t low = 0, high; low < exits.size(); low = high) {
      for (high = low; high < exits.size() && exits[high].symbol == exits[low].symbol;) ++high;
      follow(state, &exits[low], &exits[0] + high);
    }
  }

  // One symbol out of a subset; the rests of the scores are relative to the best path onwards.
  void follow(int32_t state, const Exit *first, const Exit *last) {
    const auto value = [this](const Exit &x) { return x.scores.total() + behind_[x.to]; };
    const Exit best =
        *std::max_element(first, last, [&](const Exit &x, const Exit &y) { return value(x) < value(y); });
    if (subsets_[state].ahead + value(best) < best_ - beam_ - kSlack) return;
    std::vector<Element> elements;
    for (const Exit *x = first; x != last; ++x)
      if (value(*x) >= value(best) - beam_ - kSlack) elements.push_back({x->to, x->scores - best.scores});
    const int32_t to = make(subsets_[state].ahead + best.scores.total(), std::move(elements));
    subsets_[state].edges.push_back({to, first->symbol, best.scores});
  }

  // Subsets from which an end can be reached, each after all that follow it.
  std::vector<int32_t> postorder() const {
    std::vector<int32_t> out;
    std::vector<char> seen(subsets_.size(), 0);
    std::vector<std::pair<int32_t, size_t>> stack{{0, 0}};
    seen[0] = 1;
    while (!stack.empty()) {
      auto &[state, next] = stack.back();
      if (next == subsets_[state].edges.size()) {
        out.push_back(state);
        stack.pop_back();
        continue;
      }
      const int32_t to = subsets_[state].edges[next++].to;
      if (!seen[to]) seen[to] = 1, stack.emplace_back(to, 0);
    }
    return out;
  }

  // Scores moved as far ahead as they go (the best way on from any state scores 0), equal states made one.
  Result minimal(double beam) {
    const std::vector<int32_t> order = postorder();
    std::vector<Scores> onward(subsets_.size(), kNever);
    for (const int32_t s : order) {
      onward[s] = subsets_[s].ending;
      for (const Edge &edge : subsets_[s].edges) {
        const Scores way = edge.scores + onward[edge.to];
        if (way.total() > onward[s].total()) onward[s] = way;
      }
    }
    std::vector<double> ahead(subsets_.size(), kNone);
    ahead[0] = 0;
    for (auto s = order.rbegin(); s != order.rend(); ++s)
      for (const Edge &edge : subsets_[*s].edges)
        ahead[edge.to] = std::max(ahead[edge.to], ahead[*s] + edge.scores.total());
    const double least = onward[0].total() - beam - kSlack;
    std::map<std::vector<int64_t>, int32_t> classes;
    std::vector<int32_t> class_of(subsets_.size(), -1), member;
    for (const int32_t s : order) {
      if (!(ahead[s] + onward[s].total() >= least)) continue;
      std::vector<Edge> edges;
      for (const Edge &edge : subsets_[s].edges) {
        if (!(ahead[s] + (edge.scores + onward[edge.to]).total() >= least)) continue;
        edges.push_back({class_of[edge.to], edge.symbol, edge.scores + onward[edge.to] - onward[s]});
      }
      subsets_[s].edges = std::move(edges);
      Scores &end = subsets_[s].ending;
      end = ahead[s] + end.total() >= least ? end - onward[s] : kNever;
      const auto [place, fresh] = classes.try_emplace(signature(subsets_[s]), static_cast<int32_t>(member.size()));
      if (fresh) member.push_back(s);
      class_of[s] = place->second;
    }
    return written(order, class_of, member, onward[0], beam);
  }

  static std::vector<int64_t> signature(const Subset &subset) {
    std::vector<int64_t> key;
    if (subset.ending.total() != kNone) key = {-1, rounded(subset.ending.graph), rounded(subset.ending.acoustic)};
    for (const Edge &edge : subset.edges)
      key.insert(key.end(), {edge.symbol, edge.to, rounded(edge.scores.graph), rounded(edge.scores.acoustic)});
    return key;
  }

  Result written(const std::vector<int32_t> &order, const std::vector<int32_t> &class_of,
                 const std::vector<int32_t> &member, Scores best, double beam) const {
    Result out;
    const auto count = static_cast<int32_t>(member.size());
    out.best = best;
    out.beam = beam;
    out.earliest.assign(count, std::numeric_limits<int32_t>::max());
    out.latest.assign(count, -1);
    for (const int32_t s : order)
      for (const Element &each : subsets_[s].elements) {
        if (class_of[s] < 0) continue;
        const int32_t number = count - 1 - class_of[s], frame = std::max(frame_[graph_.state[each.node]] - 1, 0);
        out.earliest[number] = std::min(out.earliest[number], frame);
        out.latest[number] = std::max(out.latest[number], frame);
      }
    for (int32_t number = 0; number < count; ++number) {
      const Subset &subset = subsets_[member[count - 1 - number]];
      out.final_graph.push_back(static_cast<float>(subset.ending.graph));
      out.final_acoustic.push_back(static_cast<float>(subset.ending.acoustic));
      for (const Edge &edge : subset.edges) {
        out.src.push_back(number);
        out.dst.push_back(count - 1 - edge.to);
        out.symbol.push_back(edge.symbol);
        out.graph.push_back(static_cast<float>(edge.scores.graph));
        out.acoustic.push_back(static_cast<float>(edge.scores.acoustic));
      }
    }
    return out;
  }

  struct KeyHash {
    size_t operator()(const std::vector<int64_t> &key) const {
      uint64_t hash = 1469598103934665603ull;
      for (const int64_t each : key) hash = (hash ^ static_cast<uint64_t>(each)) * 1099511628211ull;
      return static_cast<size_t>(hash ^ (hash >> 29));
    }
  };

  const Expanded graph_;
  const float *final_;
  const int32_t *frame_;
  double beam_;
  const int64_t most_;
  std::vector<Entry> entries_;
  std::vector<char> known_;
  std::vector<Scores> reached_;  // scratch of entry()
  std::vector<double> ahead_, behind_;
  double best_ = kNone;
  std::vector<Subset> subsets_;
  std::unordered_map<std::vector<int64_t>, int32_t, KeyHash> numbers_;
  std::priority_queue<std::pair<double, int32_t>> queue_;
};

}  // namespace

// Lattice in topological order, arcs in order of their source, at least one complete path. Returns what
// `sequences_take` copies and `sequences_free` frees. sizes: states, arcs. facts: graph and acoustic
// score of the best path, and the beam within which everything was kept.
extern "C" void *sequences_make(const int32_t *src, const int32_t *dst, const int32_t *label, const int32_t *word,
                                const float *acoustic, const float *graph, int64_t arcs, const float *final,
                                const int32_t *frame, int64_t states, const int32_t *fresh, const int32_t *again,
                                double beam, int64_t most, int64_t most_edges, int64_t *sizes, double *facts) {
  Determiniser determiniser({src, dst, label, word, acoustic, graph, arcs}, final, frame, states, fresh, again, beam,
                            most, most_edges);
  auto *result = new Result(determiniser.run());
  sizes[0] = static_cast<int64_t>(result->earliest.size());
  sizes[1] = static_cast<int64_t>(result->src.size());
  facts[0] = result->best.graph, facts[1] = result->best.acoustic, facts[2] = result->beam;
  return result;
}

extern "C" void sequences_take(const void *handle, int32_t *src, int32_t *dst, int32_t *symbol, float *graph,
                               float *acoustic, float *final_graph, float *final_acoustic, int32_t *earliest,
                               int32_t *latest) {
  const auto *result = static_cast<const Result *>(handle);
  const auto copy = [](const auto &from, auto *to) { std::copy(from.begin(), from.end(), to); };
  copy(result->src, src), copy(result->dst, dst), copy(result->symbol, symbol);
  copy(result->graph, graph), copy(result->acoustic, acoustic);
  copy(result->final_graph, final_graph), copy(result->final_acoustic, final_acoustic);
  copy(result->earliest, earliest), copy(result->latest, latest);
}

extern "C" void sequences_free(void *handle) { delete static_cast<Result *>(handle); }

namespace {

double plus(double x, double y) {
  const double top = std::max(x, y);
  return top == kNone ? kNone : top + std::log1p(std::exp(std::min(x, y) - top));
}

}  // namespace

// posterior (A,): of each arc, all paths summed with their scores times `scale`.
extern "C" void lattice_posteriors(const int32_t *src, const int32_t *dst, const float *acoustic, const float *graph,
                                   int64_t arcs, const float *final, int64_t states, double scale, float *posterior) {
  const auto score = [&](int64_t a) { return scale * (static_cast<double>(acoustic[a]) + graph[a]); };
  std::vector<double> ahead(states, kNone), behind(states);
  ahead[0] = 0;
  for (int64_t a = 0; a < arcs; ++a) ahead[dst[a]] = plus(ahead[dst[a]], ahead[src[a]] + score(a));
  for (int64_t s = 0; s < states; ++s) behind[s] = scale * final[s];
  for (int64_t a = arcs - 1; a >= 0; --a) behind[src[a]] = plus(behind[src[a]], score(a) + behind[dst[a]]);
  for (int64_t a = 0; a < arcs; ++a)
    posterior[a] = static_cast<float>(std::exp(ahead[src[a]] + score(a) + behind[dst[a]] - behind[0]));
}

// path (T arcs at most take a frame, more do not; room for all states): arcs of the best path, their number returned.
// posterior (T,): of the best path's output at each frame, all paths summed with their scores times `scale`.
extern "C" int64_t lattice_best(const int32_t *src, const int32_t *dst, const int32_t *label, const float *acoustic,
                                const float *graph, int64_t arcs, const float *final, const int32_t *frame,
                                int64_t states, double scale, int32_t *path, float *posterior) {
  const auto score = [&](int64_t a) { return static_cast<double>(acoustic[a]) + graph[a]; };
  std::vector<double> ahead(states, kNone), behind(states), best(states);
  std::vector<int32_t> onward(states, -1);
  ahead[0] = 0;
  for (int64_t a = 0; a < arcs; ++a) ahead[dst[a]] = plus(ahead[dst[a]], ahead[src[a]] + scale * score(a));
  for (int64_t s = 0; s < states; ++s) best[s] = final[s], behind[s] = scale * final[s];
  for (int64_t a = arcs - 1; a >= 0; --a) {
    behind[src[a]] = plus(behind[src[a]], scale * score(a) + behind[dst[a]]);
    if (score(a) + best[dst[a]] > best[src[a]]) {
      best[src[a]] = score(a) + best[dst[a]];
      onward[src[a]] = static_cast<int32_t>(a);
    }
  }
  int64_t length = 0;
  std::vector<int32_t> output(frame[states - 1], -1);
  for (int32_t s = 0; onward[s] >= 0; s = dst[onward[s]]) {
    path[length++] = onward[s];
    if (label[onward[s]] >= 0) output[frame[s]] = label[onward[s]];
  }
  for (size_t t = 0; t < output.size(); ++t) posterior[t] = 0;
  for (int64_t a = 0; a < arcs; ++a) {
    const int32_t t = frame[src[a]];
    if (label[a] >= 0 && label[a] == output[t])
      posterior[t] += static_cast<float>(std::exp(ahead[src[a]] + scale * score(a) + behind[dst[a]] - behind[0]));
  }
  return length;
}
