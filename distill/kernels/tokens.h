// Token passing with lattices, after Kaldi's lattice-faster-decoder (Povey et al. 2012, "Generating
// exact lattices in the WFST framework"). Costs are negated log-scores: smaller is better.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace search {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kPruneInterval = 25;    // frames between prunings: bounds memory on long utterances
constexpr double kPruneScale = 0.1;   // of lattice_beam: changes too small to prune earlier frames again
constexpr double kBeamDelta = 0.5;    // added to the beam that max_active leaves, as in Kaldi

struct Arc {
  int32_t dst, label;  // -1 without a frame
  float score;
};

// Arcs first .. first + silent - 1 take no frame, the others up to the next state's first take one.
struct State {
  int64_t first;
  int32_t silent;
  float final;
};

struct Graph {
  const State *states;  // one more than there are: whose first is where the last one's arcs end
  const Arc *arcs;
};

struct Token {
  int32_t state, silent;  // arcs of the state that take no frame
  double cost;            // of the best path to here
  double extra;           // how much worse than the best complete path the best one through here is
};

struct Link {
  int32_t from, to, arc;  // tokens: `to` of the same frame where the arc takes none, else of the next frame
  float acoustic;         // log-probability of the arc's output, 0 where it takes no frame
};

struct Frame {
  std::vector<Token> tokens;
  std::vector<Link> silent, spoken;  // without and with a frame
};

// An arc of the best path, from frame `frame` on.
struct Step {
  int32_t arc, frame;
};

class Search {
 public:
  Search(const Graph &graph, int columns, double beam, double lattice_beam, int max_active)
      : graph_(graph), columns_(columns), beam_(beam), lattice_beam_(lattice_beam), max_active_(max_active) {}

  // The next `count` frames. token_of: -1 for each state of the graph, and so again afterwards; searches that take
  // turns may share it. False where no path goes on.
  bool feed(const float *log_probs, int count, int32_t *token_of) {
    token_of_ = token_of;
    if (frames_.empty()) {
      frames_.emplace_back();
      token(frames_[0], 0, 0.0);
      close(frames_[0], beam_);
    }
    for (int i = 0; i < count && alive_; ++i) {
      const int t = static_cast<int>(frames_.size()) - 1;
      if (t && t % kPruneInterval == 0) prune(t, lattice_beam_ * kPruneScale);
      frames_.emplace_back();
      alive_ = advance(t, log_probs + static_cast<size_t>(i) * columns_);
    }
    return alive_;
  }

  // The utterance ends here: keep paths near the best one. anywhere: it may end in any state.
  bool end(bool anywhere) {
    if (!alive_ || frames_.empty()) return false;
    const int last = static_cast<int>(frames_.size()) - 1;
    finish(frames_[last], anywhere);
    prune(last, 0.0);
    compact(last);
    return true;
  }

  const std::vector<Frame> &frames() const { return frames_; }

  // Best path so far, from the start; its first `stable()` arcs are on every path that goes on.
  std::vector<Step> best() {
    const int last = static_cast<int>(frames_.size()) - 1;
    if (!alive_ || last < 0) return {};
    const std::vector<Token> &tokens = frames_[last].tokens;
    std::vector<std::vector<const Link *>> into;  // best arcs into the tokens of frames last, last - 1, …
    std::vector<char> used(tokens.size(), 1);
    int t = last;
    while (t > stable_frame_ && (t == last || std::count(used.begin(), used.end(), 1) > 1)) {
      into.push_back(entered(t));
      used = before(t--, into.back(), used);
    }
    const int32_t old = token_at(stable_frame_, stable_state_);
    const int32_t only = t > stable_frame_ ? first(used) : old;
    const auto cheaper = [](const Token &a, const Token &b) { return a.cost < b.cost; };
    const auto best = std::min_element(tokens.begin(), tokens.end(), cheaper) - tokens.begin();
    const std::vector<Step> open = back(last, last, static_cast<int32_t>(best), t, only, into);
    if (t > stable_frame_) {
      const std::vector<Step> more = back(last, t, only, stable_frame_, old, into);
      stable_.insert(stable_.end(), more.begin(), more.end());
      stable_frame_ = t, stable_state_ = frames_[t].tokens[only].state;
    }
    std::vector<Step> path = stable_;
    path.insert(path.end(), open.begin(), open.end());
    return path;
  }

  size_t stable() const { return stable_.size(); }

  // True where a path ends in a final state; else every path to the last frame counts as ended.
  bool complete() const { return complete_; }

  // Score of ending in a token of the last frame, -inf where that is not near the best path.
  double final(const Token &each) const {
    const double score = ending(each);
    return each.cost - score - best_ending_ <= lattice_beam_ ? score : -kInfinity;
  }

 private:
  double ending(const Token &each) const { return complete_ ? graph_.states[each.state].final : 0.0; }

  static int32_t first(const std::vector<char> &used) {
    return static_cast<int32_t>(std::find(used.begin(), used.end(), 1) - used.begin());
  }

  int32_t token_at(int t, int32_t state) const {
    const std::vector<Token> &tokens = frames_[t].tokens;
    const auto is = [state](const Token &each) { return each.state == state; };
    return static_cast<int32_t>(std::find_if(tokens.begin(), tokens.end(), is) - tokens.begin());
  }

  // The best arc into each token of a frame; null into the start.
  std::vector<const Link *> entered(int t) const {
    const std::vector<Token> &tokens = frames_[t].tokens;
    std::vector<const Link *> into(tokens.size(), nullptr);
    const auto offer = [&](const Token &from, const Link &link) {  // the very sums that made the token's cost
      const Arc &arc = graph_.arcs[link.arc];
      const double cost = from.cost - arc.score;
      if (into[link.to]) return;
      if ((arc.label < 0 ? cost : cost - link.acoustic) == tokens[link.to].cost) into[link.to] = &link;
    };
    if (t)
      for (const Link &link : frames_[t - 1].spoken) offer(frames_[t - 1].tokens[link.from], link);
    for (const Link &link : frames_[t].silent) offer(tokens[link.from], link);
    return into;
  }

  // Tokens of frame t - 1 through which the best paths to these tokens of frame t go.
  std::vector<char> before(int t, const std::vector<const Link *> &into, const std::vector<char> &of) const {
    std::vector<char> used(frames_[t - 1].tokens.size(), 0);
    for (size_t i = 0; i < of.size(); ++i) {
      const Link *link = of[i] ? into[i] : nullptr;
      for (size_t n = 0; link && graph_.arcs[link->arc].label < 0; link = n++ < of.size() ? into[link->from] : nullptr) {
      }
      if (link) used[link->from] = 1;
    }
    return used;
  }

  // The best path to a token of frame t from one of an earlier frame. into: of frames `last`, last - 1, … as far as
  // known. Cycles of arcs without a frame are left after one round: the lattice is refused for them.
  std::vector<Step> back(int last, int t, int32_t token, int stop, int32_t stop_token,
                         std::vector<std::vector<const Link *>> &into) const {
    std::vector<Step> steps;
    for (size_t round = 0; (t > stop || token != stop_token) && round <= frames_[t].tokens.size(); ++round) {
      if (static_cast<int>(into.size()) <= last - t) into.push_back(entered(t));
      const Link *link = into[last - t][token];
      if (!link) break;
      if (graph_.arcs[link->arc].label >= 0) --t, round = 0;
      steps.push_back({link->arc, t});
      token = link->from;
    }
    std::reverse(steps.begin(), steps.end());
    return steps;
  }

  // Index of the token of a state, made or improved; second: whether it is new or better.
  std::pair<int32_t, bool> token(Frame &frame, int32_t state, double cost) {
    int32_t &index = token_of_[state];
    if (index < 0) {
      index = static_cast<int32_t>(frame.tokens.size());
      frame.tokens.push_back({state, graph_.states[state].silent, cost, kInfinity});
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
    queue_.clear();
    for (size_t i = 0; i < frame.tokens.size(); ++i)
      if (frame.tokens[i].silent) queue_.push_back(static_cast<int32_t>(i));
    while (!queue_.empty()) {
      const Token from = frame.tokens[queue_.back()];
      queue_.pop_back();
      each_silent(from, cutoff, [&](int64_t, const Arc &arc, double cost) {
        const auto [index, better] = token(frame, arc.dst, cost);
        if (better && frame.tokens[index].silent) queue_.push_back(index);
      });
    }
    for (size_t i = 0; i < frame.tokens.size(); ++i)
      each_silent(frame.tokens[i], cutoff, [&](int64_t a, const Arc &arc, double) {
        frame.silent.push_back({static_cast<int32_t>(i), token_of_[arc.dst], static_cast<int32_t>(a), 0.0f});
      });
    for (const Token &each : frame.tokens) token_of_[each.state] = -1;
  }

  template <class Reached>
  void each_silent(const Token &from, double cutoff, Reached &&reached) const {
    if (!from.silent || from.cost > cutoff) return;
    const int64_t first = graph_.states[from.state].first;
    for (int64_t a = first; a < first + from.silent; ++a) {
      const double cost = from.cost - graph_.arcs[a].score;
      if (cost <= cutoff) reached(a, graph_.arcs[a], cost);
    }
  }

  // Cost above which tokens of a frame are not continued; max_active may narrow `beam`.
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

  bool advance(int t, const float *log_probs) {
    Frame &here = frames_[t], &next = frames_[t + 1];
    if (here.tokens.empty()) return false;
    next.tokens.reserve(here.tokens.size() * 2);
    here.spoken.reserve(here.tokens.size() * 2);
    double beam, limit = kInfinity;
    const double worst = cutoff(here, beam);
    const auto best = std::min_element(here.tokens.begin(), here.tokens.end(),
                                       [](const Token &a, const Token &b) { return a.cost < b.cost; });
    const auto spread = [&](const Token &from, auto &&reached) {
      const State *state = graph_.states + from.state;
      const Arc *end = graph_.arcs + state[1].first;
      for (const Arc *arc = graph_.arcs + state->first + from.silent; arc < end; ++arc) {
        const double cost = from.cost - arc->score - log_probs[arc->label];
        if (cost >= limit) continue;
        limit = std::min(limit, cost + beam);
        reached(*arc, cost);
      }
    };
    spread(*best, [](const Arc &, double) {});  // a first limit, so that few hopeless tokens are made
    for (size_t i = 0; i < here.tokens.size(); ++i) {
      if (here.tokens[i].cost > worst) continue;
      spread(here.tokens[i], [&](const Arc &arc, double cost) {
        const int32_t to = token(next, arc.dst, cost).first, index = static_cast<int32_t>(&arc - graph_.arcs);
        here.spoken.push_back({static_cast<int32_t>(i), to, index, log_probs[arc.label]});
      });
    }
    close(next, limit);
    return !next.tokens.empty();
  }

  // Final costs become the last frame's extra costs.
  void finish(Frame &frame, bool anywhere) {
    complete_ = !anywhere && std::any_of(frame.tokens.begin(), frame.tokens.end(),
                                         [this](const Token &each) { return graph_.states[each.state].final > -kInfinity; });
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
        const double cost = -static_cast<double>(link.acoustic) - graph_.arcs[link.arc].score;
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

  // Arcs within a frame come in no order, so they are relaxed until nothing improves.
  void prune_silent(Frame &here, std::vector<double> &extra) {
    const auto value = [&](const Link &link) {
      return extra[link.to] +
             (here.tokens[link.from].cost - graph_.arcs[link.arc].score - here.tokens[link.to].cost);
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
      release(frame.tokens), release(frame.silent), release(frame.spoken);
      if (same && t < last - kPruneInterval - 1 && !ended_) break;
      next.swap(here);
    }
  }

  // Free the memory of pruned tokens: most of a frame.
  template <class Item>
  static void release(std::vector<Item> &items) {
    if (items.capacity() > 2 * items.size()) items.shrink_to_fit();
  }

  static void renumber(std::vector<Link> &links, const std::vector<int32_t> &from, const std::vector<int32_t> &to) {
    size_t count = 0;
    for (const Link &link : links) {
      const int32_t end = to.empty() ? link.to : to[link.to];
      if (from[link.from] >= 0 && end >= 0) links[count++] = {from[link.from], end, link.arc, link.acoustic};
    }
    links.resize(count);
  }

  const Graph graph_;
  const int columns_;
  const double beam_, lattice_beam_;
  const int max_active_;
  int32_t *token_of_ = nullptr;
  std::vector<Frame> frames_;
  std::vector<double> costs_;
  std::vector<int32_t> queue_;
  std::vector<Step> stable_;
  int stable_frame_ = 0;
  int32_t stable_state_ = 0;  // stable_ leads to it
  bool alive_ = true, ended_ = false, complete_ = false;
  double best_ending_ = kInfinity;
};

}  // namespace search
