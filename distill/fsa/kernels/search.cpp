// Token passing with lattices, after Kaldi's lattice-faster-decoder (Povey et al. 2012, "Generating
// exact lattices in the WFST framework"). Costs are negated log-scores: smaller is better.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kPruneInterval = 25;    // frames between prunings: bounds memory on long utterances
constexpr double kPruneScale = 0.1;   // of lattice_beam: changes too small to prune earlier frames again
constexpr double kBeamDelta = 0.5;    // added to the beam that max_active leaves, as in Kaldi

struct Graph {
  const int64_t *first;
  const int32_t *dst, *label;
  const float *score, *final;
  int64_t states;
};

struct Token {
  int32_t state;
  double cost;   // of the best path to here
  double extra;  // how much worse than the best complete path the best one through here is
};

struct Link {
  int32_t from, to, arc;  // tokens: `to` of the same frame where the arc takes none, else of the next frame
};

struct Frame {
  std::vector<Token> tokens;
  std::vector<Link> silent, spoken;  // without and with a frame
};

class Search {
 public:
  Search(const Graph &graph, int columns, double beam, double lattice_beam, int max_active)
      : graph_(graph), columns_(columns), beam_(beam), lattice_beam_(lattice_beam), max_active_(max_active) {}

  // Go on to frame `last`. log_probs: of all frames from the first one on, as earlier ones are pruned again.
  // token_of: -1 for each state of the graph, and so again afterwards; searches that take turns may share it.
  // False where no path goes on.
  bool feed(const float *log_probs, int last, int32_t *token_of) {
    log_probs_ = log_probs, token_of_ = token_of;
    if (frames_.empty()) {
      frames_.emplace_back();
      token(frames_[0], 0, 0.0);
      close(frames_[0], beam_);
    }
    for (int t = static_cast<int>(frames_.size()) - 1; t < last && alive_; ++t) {
      if (t && t % kPruneInterval == 0) prune(t, lattice_beam_ * kPruneScale);
      frames_.emplace_back();
      alive_ = advance(t);
    }
    return alive_;
  }

  // What has been fed is the utterance: keep what lies near its best path. anywhere: it may end in any state.
  bool end(const float *log_probs, bool anywhere) {
    if (!alive_ || frames_.empty()) return false;
    log_probs_ = log_probs;
    const int last = static_cast<int>(frames_.size()) - 1;
    finish(frames_[last], anywhere);
    prune(last, 0.0);
    compact(last);
    return true;
  }

  const std::vector<Frame> &frames() const { return frames_; }

  // Whether a path ends where the graph allows it; else every path to the last frame counts as ended.
  bool complete() const { return complete_; }

  // Score of ending in a token of the last frame, -inf where that is not near the best path.
  double final(const Token &each) const {
    const double score = ending(each);
    return each.cost - score - best_ending_ <= lattice_beam_ ? score : -kInfinity;
  }

 private:
  double ending(const Token &each) const { return complete_ ? graph_.final[each.state] : 0.0; }

  double acoustic(int t, int32_t label) const { return -log_probs_[static_cast<size_t>(t) * columns_ + label]; }

  // Index of the token of a state, made or improved; second: whether it is new or better.
  std::pair<int32_t, bool> token(Frame &frame, int32_t state, double cost) {
    int32_t &index = token_of_[state];
    if (index < 0) {
      index = static_cast<int32_t>(frame.tokens.size());
      frame.tokens.push_back({state, cost, kInfinity});
      return {index, true};
    }
    if (cost < frame.tokens[index].cost) {
      frame.tokens[index].cost = cost;
      return {index, true};
    }
    return {index, false};
  }

  // Follow the arcs without a frame, then forget which tokens the states have.
  void close(Frame &frame, double cutoff) {
    std::vector<int32_t> queue;
    for (size_t i = 0; i < frame.tokens.size(); ++i) queue.push_back(static_cast<int32_t>(i));
    while (!queue.empty()) {
      const Token from = frame.tokens[queue.back()];
      queue.pop_back();
      if (from.cost > cutoff) continue;
      for (int64_t a = graph_.first[from.state]; a < graph_.first[from.state + 1] && graph_.label[a] < 0; ++a) {
        const double cost = from.cost - graph_.score[a];
        if (cost > cutoff) continue;
        const auto [index, better] = token(frame, graph_.dst[a], cost);
        if (better) queue.push_back(index);
      }
    }
    for (size_t i = 0; i < frame.tokens.size(); ++i) {
      const Token &from = frame.tokens[i];
      if (from.cost > cutoff) continue;
      for (int64_t a = graph_.first[from.state]; a < graph_.first[from.state + 1] && graph_.label[a] < 0; ++a)
        if (from.cost - graph_.score[a] <= cutoff)
          frame.silent.push_back({static_cast<int32_t>(i), token_of_[graph_.dst[a]], static_cast<int32_t>(a)});
    }
    for (const Token &each : frame.tokens) token_of_[each.state] = -1;
  }

  // Cost above which tokens of a frame are not continued; `beam` becomes what max_active leaves of it.
  double cutoff(const Frame &frame, double &beam) {
    costs_.clear();
    double best = kInfinity;
    for (const Token &each : frame.tokens) {
      costs_.push_back(each.cost);
      best = std::min(best, each.cost);
    }
    if (max_active_ > 0 && costs_.size() > static_cast<size_t>(max_active_)) {
      std::nth_element(costs_.begin(), costs_.begin() + max_active_ - 1, costs_.end());
      const double worst = costs_[max_active_ - 1];
      if (worst < best + beam_) {
        beam = std::min(beam_, worst - best + kBeamDelta);
        return worst;
      }
    }
    beam = beam_;
    return best + beam_;
  }

  bool advance(int t) {
    Frame &here = frames_[t], &next = frames_[t + 1];
    if (here.tokens.empty()) return false;
    double beam, limit = kInfinity;
    const double worst = cutoff(here, beam);
    const auto best = std::min_element(here.tokens.begin(), here.tokens.end(),
                                       [](const Token &a, const Token &b) { return a.cost < b.cost; });
    const auto spread = [&](const Token &from, auto &&reached) {
      for (int64_t a = graph_.first[from.state]; a < graph_.first[from.state + 1]; ++a) {
        if (graph_.label[a] < 0) continue;
        const double cost = from.cost - graph_.score[a] + acoustic(t, graph_.label[a]);
        if (cost >= limit) continue;
        limit = std::min(limit, cost + beam);
        reached(a, cost);
      }
    };
    spread(*best, [](int64_t, double) {});  // a first limit, so that few hopeless tokens are made
    for (size_t i = 0; i < here.tokens.size(); ++i) {
      if (here.tokens[i].cost > worst) continue;
      spread(here.tokens[i], [&](int64_t a, double cost) {
        const int32_t to = token(next, graph_.dst[a], cost).first;
        here.spoken.push_back({static_cast<int32_t>(i), to, static_cast<int32_t>(a)});
      });
    }
    close(next, limit);
    return !next.tokens.empty();
  }

  // What ending costs becomes the last frame's extra costs.
  void finish(Frame &frame, bool anywhere) {
    complete_ = !anywhere && std::any_of(frame.tokens.begin(), frame.tokens.end(),
                                         [this](const Token &each) { return graph_.final[each.state] > -kInfinity; });
    for (const Token &each : frame.tokens) best_ending_ = std::min(best_ending_, each.cost - ending(each));
    for (Token &each : frame.tokens) each.extra = each.cost - ending(each) - best_ending_;
    ended_ = true;
  }

  double through(const Frame &here, const Frame &next, const Link &link, double cost) const {
    const Token &from = here.tokens[link.from], &to = next.tokens[link.to];
    return to.extra + (from.cost + cost - to.cost);
  }

  // Drop links more than lattice_beam worse than the best path to frame `last`, going backwards in time.
  void prune(int last, double delta) {
    for (int t = last; t >= 0; --t) {
      const bool changed = prune_frame(t, last, delta);
      if (t < last && !changed && delta > 0) break;
    }
    if (delta > 0) compact(last);
  }

  bool prune_frame(int t, int last, double delta) {
    Frame &here = frames_[t];
    std::vector<double> extra(here.tokens.size(), kInfinity);
    if (t == last)
      for (size_t i = 0; i < extra.size(); ++i) extra[i] = ended_ ? here.tokens[i].extra : 0.0;
    if (t < last) {
      const auto worse = [&](const Link &link) {
        const double cost = acoustic(t, graph_.label[link.arc]) - graph_.score[link.arc];
        const double value = through(here, frames_[t + 1], link, cost);
        if (value > lattice_beam_) return true;
        extra[link.from] = std::min(extra[link.from], value);
        return false;
      };
      here.spoken.erase(std::remove_if(here.spoken.begin(), here.spoken.end(), worse), here.spoken.end());
    }
    prune_silent(here, extra);
    bool changed = false;
    for (size_t i = 0; i < extra.size(); ++i) {
      const double value = extra[i] > lattice_beam_ ? kInfinity : extra[i];
      changed |= value != here.tokens[i].extra && !(std::abs(value - here.tokens[i].extra) <= delta);
      here.tokens[i].extra = value;
    }
    return changed;
  }

  // Arcs within a frame come in no order, so they are gone over until nothing improves.
  void prune_silent(Frame &here, std::vector<double> &extra) {
    const auto value = [&](const Link &link) {
      return extra[link.to] +
             (here.tokens[link.from].cost - graph_.score[link.arc] - here.tokens[link.to].cost);
    };
    for (bool improved = true; improved;) {
      improved = false;
      for (const Link &link : here.silent)
        if (value(link) < extra[link.from] - 1e-12) extra[link.from] = value(link), improved = true;
    }
    here.silent.erase(std::remove_if(here.silent.begin(), here.silent.end(),
                                     [&](const Link &link) { return value(link) > lattice_beam_; }),
                      here.silent.end());
  }

  // Remove tokens that no path goes through, of frames before `last` (and of `last` itself at the end).
  void compact(int last) {
    std::vector<int32_t> next, here;
    for (int t = ended_ ? last : last - 1; t >= 0; --t) {
      Frame &frame = frames_[t];
      here.assign(frame.tokens.size(), -1);
      int32_t count = 0;
      for (size_t i = 0; i < frame.tokens.size(); ++i)
        if (frame.tokens[i].extra < kInfinity) here[i] = count, frame.tokens[count++] = frame.tokens[i];
      const bool same = count == static_cast<int32_t>(frame.tokens.size());
      frame.tokens.resize(count);
      renumber(frame.silent, here, here);
      renumber(frame.spoken, here, next);
      if (same && t < last - kPruneInterval - 1 && !ended_) break;
      next.swap(here);
    }
  }

  static void renumber(std::vector<Link> &links, const std::vector<int32_t> &from, const std::vector<int32_t> &to) {
    size_t count = 0;
    for (const Link &link : links) {
      const int32_t end = to.empty() ? link.to : to[link.to];
      if (from[link.from] >= 0 && end >= 0) links[count++] = {from[link.from], end, link.arc};
    }
    links.resize(count);
  }

  const Graph graph_;
  const float *log_probs_ = nullptr;
  const int columns_;
  const double beam_, lattice_beam_;
  const int max_active_;
  int32_t *token_of_ = nullptr;
  std::vector<Frame> frames_;
  std::vector<double> costs_;
  bool alive_ = true, ended_ = false, complete_ = false;
  double best_ending_ = kInfinity;
};

struct Found {
  std::vector<int32_t> src, dst, arc, frame;
  std::vector<float> final;
};

// Tokens of a frame so that arcs without a frame go forward; empty where they run in a circle.
std::vector<int32_t> in_order(const Frame &frame) {
  std::vector<int32_t> entering(frame.tokens.size(), 0), order;
  for (const Link &link : frame.silent) ++entering[link.to];
  std::vector<std::vector<int32_t>> leaving(frame.tokens.size());
  for (const Link &link : frame.silent) leaving[link.from].push_back(link.to);
  for (size_t i = 0; i < entering.size(); ++i)
    if (!entering[i]) order.push_back(static_cast<int32_t>(i));
  for (size_t i = 0; i < order.size(); ++i)
    for (const int32_t to : leaving[order[i]])
      if (!--entering[to]) order.push_back(to);
  if (order.size() != frame.tokens.size()) order.clear();
  return order;
}

template <class Final>
bool collect(const std::vector<Frame> &frames, Final &&final, Found &found) {
  std::vector<std::vector<int32_t>> number(frames.size());
  for (size_t t = 0; t < frames.size(); ++t) {
    const std::vector<int32_t> order = in_order(frames[t]);
    if (order.empty()) return false;
    number[t].resize(order.size());
    for (const int32_t i : order) {
      number[t][i] = static_cast<int32_t>(found.frame.size());
      found.frame.push_back(static_cast<int32_t>(t));
      found.final.push_back(t + 1 < frames.size() ? -kInfinity : final(frames[t].tokens[i]));
    }
  }
  for (size_t t = 0; t < frames.size(); ++t) {
    const auto add = [&](const Link &link, size_t end) {
      found.src.push_back(number[t][link.from]);
      found.dst.push_back(number[end][link.to]);
      found.arc.push_back(link.arc);
    };
    for (const Link &link : frames[t].silent) add(link, t);
    for (const Link &link : frames[t].spoken) add(link, t + 1);
  }
  return true;
}

}  // namespace

// A search of one utterance, which `search_feed` goes on with and `search_close` frees.
extern "C" void *search_open(const int64_t *first, const int32_t *dst, const int32_t *label, const float *score,
                             const float *final, int64_t states, int32_t columns, double beam, double lattice_beam,
                             int32_t max_active) {
  return new Search({first, dst, label, score, final, states}, columns, beam, lattice_beam, max_active);
}

// Go on until frame `frames` of log_probs (frames, columns); 0 where no path goes on. token_of (states,): `feed`.
extern "C" int32_t search_feed(void *handle, const float *log_probs, int32_t frames, int32_t *token_of) {
  return static_cast<Search *>(handle)->feed(log_probs, frames, token_of);
}

extern "C" void search_close(void *handle) { delete static_cast<Search *>(handle); }

// The lattice of what has been fed, which `lattice_take` copies and `lattice_free` frees. anywhere: paths may end in
// any state. keep: the search goes on afterwards. sizes: states and arcs of the lattice, both 0 without any path, -1
// where arcs without a frame run in a circle; and whether its paths may end where they do.
extern "C" void *search_lattice(void *handle, const float *log_probs, int32_t anywhere, int32_t keep, int64_t *sizes) {
  auto *search = static_cast<Search *>(handle);
  auto *found = new Found;
  sizes[0] = sizes[1] = sizes[2] = 0;
  const auto take = [&](Search &ended) {
    if (!ended.end(log_probs, anywhere)) return;
    const bool sound = collect(ended.frames(), [&](const Token &each) { return ended.final(each); }, *found);
    sizes[0] = sound ? static_cast<int64_t>(found->frame.size()) : -1;
    sizes[1] = static_cast<int64_t>(found->arc.size());
    sizes[2] = ended.complete();
  };
  if (keep) {
    Search copy = *search;
    take(copy);
  } else {
    take(*search);
  }
  return found;
}

// src, dst, arc (A,): arcs in order of the frame of their source, and which arc of the graph each follows.
// frame (S,): frames before a state; final (S,): log-score of ending there.
extern "C" void lattice_take(const void *handle, int32_t *src, int32_t *dst, int32_t *arc, int32_t *frame,
                             float *final) {
  const auto *found = static_cast<const Found *>(handle);
  std::copy(found->src.begin(), found->src.end(), src);
  std::copy(found->dst.begin(), found->dst.end(), dst);
  std::copy(found->arc.begin(), found->arc.end(), arc);
  std::copy(found->frame.begin(), found->frame.end(), frame);
  std::copy(found->final.begin(), found->final.end(), final);
}

extern "C" void lattice_free(void *handle) { delete static_cast<Found *>(handle); }
