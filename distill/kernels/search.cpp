// The lattice search of tokens.h as functions that Python calls.
#include "tokens.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

using namespace search;

struct Found {
  std::vector<int32_t> src, dst, arc, frame;
  std::vector<float> acoustic, final;
};

// Tokens of a frame in topological order of arcs without a frame; empty where these form a cycle.
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
      found.acoustic.push_back(link.acoustic);
    };
    for (const Link &link : frames[t].silent) add(link, t);
    for (const Link &link : frames[t].spoken) add(link, t + 1);
  }
  return true;
}

}  // namespace

// A search of one utterance, continued by `search_feed`, freed by `search_close`.
extern "C" void *search_open(const void *states, const void *arcs, int32_t columns, double beam, double lattice_beam,
                             int32_t max_active) {
  const Graph graph{static_cast<const State *>(states), static_cast<const Arc *>(arcs)};
  return new Search(graph, columns, beam, lattice_beam, max_active);
}

// The next frames, log_probs (frames, columns); 0 where no path goes on. token_of (states,): `feed`.
extern "C" int32_t search_feed(void *handle, const float *log_probs, int32_t frames, int32_t *token_of) {
  return static_cast<Search *>(handle)->feed(log_probs, frames, token_of);
}

// The best path so far, which `path_take` copies and `path_free` frees. sizes: its arcs, and how many of them from the
// start are stable.
extern "C" void *search_best(void *handle, int64_t *sizes) {
  auto *search = static_cast<Search *>(handle);
  auto *path = new std::vector<Step>(search->best());
  sizes[0] = static_cast<int64_t>(path->size());
  sizes[1] = static_cast<int64_t>(search->stable());
  return path;
}

// arc (A,): of the graph; frame (A,): frames before each.
extern "C" void path_take(const void *handle, int32_t *arc, int32_t *frame) {
  for (const Step &step : *static_cast<const std::vector<Step> *>(handle)) *arc++ = step.arc, *frame++ = step.frame;
}

extern "C" void path_free(void *handle) { delete static_cast<std::vector<Step> *>(handle); }

extern "C" void search_close(void *handle) { delete static_cast<Search *>(handle); }

// The lattice of the frames so far, which `lattice_take` copies and `lattice_free` frees. anywhere: paths may end in
// any state. keep: the search goes on afterwards. sizes: states and arcs of the lattice, both 0 without any path, -1
// where arcs without a frame form a cycle; and 1 where its paths end in final states.
extern "C" void *search_lattice(void *handle, int32_t anywhere, int32_t keep, int64_t *sizes) {
  auto *search = static_cast<Search *>(handle);
  auto *found = new Found;
  sizes[0] = sizes[1] = sizes[2] = 0;
  const auto take = [&](Search &ended) {
    if (!ended.end(anywhere)) return;
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
// acoustic (A,): log-probability of its output, 0 without a frame.
// frame (S,): frames before a state; final (S,): log-score of ending there.
extern "C" void lattice_take(const void *handle, int32_t *src, int32_t *dst, int32_t *arc, float *acoustic,
                             int32_t *frame, float *final) {
  const auto *found = static_cast<const Found *>(handle);
  std::copy(found->src.begin(), found->src.end(), src);
  std::copy(found->dst.begin(), found->dst.end(), dst);
  std::copy(found->arc.begin(), found->arc.end(), arc);
  std::copy(found->acoustic.begin(), found->acoustic.end(), acoustic);
  std::copy(found->frame.begin(), found->frame.end(), frame);
  std::copy(found->final.begin(), found->final.end(), final);
}

extern "C" void lattice_free(void *handle) { delete static_cast<Found *>(handle); }
