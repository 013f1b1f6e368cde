// Graphs of single utterances, of any shape, in the log semiring: nothing is padded to the largest, nothing underflows.
//
// Each frame is shifted by the frame before's largest value (summed in double), so float32 keeps its precision.
#pragma once
#include <memory>
#include <vector>

#include "shared.h"

// Arcs of one direction as slices of L rows, rows in order of their number of arcs: row q of slice i reads, for k below
// the slice's width, x[from[at]] + weight[at] with at = begin[i] + k * L + q. Missing arcs have weight -inf.
template <class T>
struct Slices {
    static constexpr int L = int(REGISTER / sizeof(T));
    std::vector<int> row, begin{0}, from;
    std::vector<T> weight;
    int widest = 0;

    Slices(int states, int64_t arcs, const int64_t* at, const int64_t* other, const double* log_weight) {
        Entries entries = Entries::sorted(states, arcs, at, other, log_weight);
        auto degree = [&](int r) { return entries.begin[r + 1] - entries.begin[r]; };
        for (int r = 0; r < states; r++) widest = std::max(widest, degree(r));
        std::vector<int> place(widest + 2, 0);
        for (int r = 0; r < states; r++) place[degree(r) + 1]++;
        std::partial_sum(place.begin(), place.end(), place.begin());
        int slices = (states + L - 1) / L;
        row.assign(slices * L, -1);
        for (int r = 0; r < states; r++) row[place[degree(r)]++] = r;
        for (int i = 0; i < slices; i++) {
            int last = std::min(states, (i + 1) * L) - 1, width = degree(row[last]);
            from.resize(begin[i] + width * L, 0);
            weight.resize(from.size(), -std::numeric_limits<T>::infinity());
            for (int q = 0; q < L && row[i * L + q] >= 0; q++)
                for (int k = 0, r = row[i * L + q]; k < degree(r); k++) {
                    from[begin[i] + k * L + q] = entries.column[entries.begin[r] + k];
                    weight[begin[i] + k * L + q] = T(entries.weight[entries.begin[r] + k]);
                }
            begin.push_back(int(from.size()));
        }
    }
};

// The arrays of one graph, as the caller holds them. leak (S,): log-weight of a leak into each state, or null.
struct LogGraph {
    int64_t states, arcs;
    const int64_t *label, *src, *dst;
    const double *initial, *final, *weight, *leak;
};

template <class T>
class LogForwardBackward {
    static constexpr int L = Slices<T>::L;
    static constexpr T LEAST = T(-1e30);  // stands in for -inf where a difference of infinities would be NaN
    using V = Vec<T, L>;

    const LogGraph& graph;
    const int states, padded, frames;
    const int64_t outputs;
    const T* scores;  // (frames, outputs)
    Slices<T> ahead, back;
    std::vector<T> terms, emission, leaked;
    std::vector<int> label;

   public:
    LogForwardBackward(const LogGraph& g, const T* log_probs, int length, int64_t v)
        : graph(g), states(int(g.states)), padded((states + L - 1) / L * L + L), frames(length), outputs(v),
          scores(log_probs), ahead(states, g.arcs, g.dst, g.src, g.weight), back(states, g.arcs, g.src, g.dst, g.weight),
          terms(size_t(std::max(ahead.widest, back.widest) + 1) * L), emission(padded), leaked(padded),
          label(g.label, g.label + states) {}

    // Log of the summed weight of all paths, -inf without one; posterior (frames, outputs) unless null.
    double run(T* posterior) {
        std::vector<T> alpha(size_t(posterior ? frames : 2) * padded, LEAST), beta(padded, LEAST), next(padded, LEAST);
        auto slot = [&](int t) { return alpha.data() + size_t(posterior ? t : t % 2) * padded; };
        const T* from = nullptr;
        double shift = 0;
        for (int t = 0; t < frames; t++) {
            if (t == 0) copy(graph.initial, slot(0));
            else step(ahead, from, slot(t));
            shift += emit(t, slot(t), slot(t));
            from = graph.leak ? leak_from(slot(t)) : slot(t);
        }
        for (int s = 0; s < states; s++) next[s] = from[s] + bounded(graph.final[s]);
        double total = log_sum(next.data());
        if (!(total > LEAST / 2)) return -std::numeric_limits<double>::infinity();
        copy(graph.final, beta.data());
        for (int t = posterior ? frames - 1 : -1; t >= 0; t--) {
            if (graph.leak) leak_into(beta.data());
            meet(slot(t), beta.data(), posterior + t * outputs);
            emit(t, beta.data(), next.data());
            step(back, next.data(), beta.data());
        }
        return total + shift;
    }

   private:
    static T bounded(double x) { return x > double(LEAST) ? T(x) : LEAST; }

    void copy(const double* from, T* to) {
        for (int s = 0; s < states; s++) to[s] = bounded(from[s]);
    }

    double log_sum(const T* x) const {
        T top = *std::max_element(x, x + states);
        double sum = 0;
        for (int i = 0; i < states; i++) sum += std::exp(double(x[i] - top));
        return double(top) + std::log(sum);
    }

    // to[row] = log sum over its arcs of exp(x[from] + weight).
    void step(const Slices<T>& slices, const T* x, T* to) {
        for (size_t i = 0; i + 1 < slices.begin.size(); i++) {
            int first = slices.begin[i], width = (slices.begin[i + 1] - first) / L;
            V top = same<V>(LEAST), sum{};
            for (int k = 0; k < width; k++) {
                const int* from = &slices.from[first + k * L];
                V gathered;
                for (int q = 0; q < L; q++) gathered[q] = x[from[q]];
                V term = gathered + load<V>(&slices.weight[first + k * L]);
                top = larger(top, term);
                store(&terms[k * L], term);
            }
            for (int k = 0; k < width; k++) sum += exp_of<T, L>(load<V>(&terms[k * L]) - top);
            V result = width > 1 ? top + log_of<T, L>(larger<V>(sum, same<V>(T(0.5)))) : top;
            result = top > same<V>(LEAST / 2) ? result : same<V>(LEAST);
            const int* row = &slices.row[i * L];
            for (int q = 0; q < L && row[q] >= 0; q++) to[row[q]] = result[q];
        }
    }

    // to = x + the frame's scores of its labels, less the largest; returns what was taken off.
    double emit(int t, const T* x, T* to) {
        const T* frame = scores + t * outputs;
        T best = LEAST, top = LEAST;
        for (int s = 0; s < states; s++) best = std::max(best, emission[s] = frame[label[s]]);
        for (int s = 0; s < states; s++) to[s] = std::max(x[s] + std::max(emission[s] - best, LEAST), LEAST);
        for (int s = 0; s < states; s++) top = std::max(top, to[s]);
        if (top <= LEAST / 2) return 0;
        for (int s = 0; s < states; s++) to[s] = to[s] > LEAST / 2 ? to[s] - top : LEAST;
        return double(best) + double(top);
    }

    // Leaky HMM: alpha plus a share of its whole mass wherever the leak leads to.
    const T* leak_from(const T* alpha) {
        T all = T(log_sum(alpha));
        for (int s = 0; s < states; s++) leaked[s] = log_add(alpha[s], all + bounded(graph.leak[s]));
        return leaked.data();
    }

    // And the mass that comes back from there.
    void leak_into(T* beta) {
        for (int s = 0; s < states; s++) leaked[s] = beta[s] + bounded(graph.leak[s]);
        T all = T(log_sum(leaked.data()));
        for (int s = 0; s < states; s++) beta[s] = log_add(beta[s], all);
    }

    static T log_add(T a, T b) {
        T top = std::max(a, b);
        return top > LEAST / 2 ? top + std::log1p(std::exp(std::min(a, b) - top)) : LEAST;
    }

    // Adds exp(alpha + beta), normalised, to the labels of the states.
    void meet(const T* alpha, const T* beta, T* posterior) {
        T top = LEAST;
        for (int s = 0; s < states; s++) emission[s] = alpha[s] + beta[s], top = std::max(top, emission[s]);
        if (top <= LEAST / 2) return;
        V all{};
        for (int s = 0; s < states; s += L) {
            V here = exp_of<T, L>(load<V>(&emission[s]) - same<V>(top));
            store(&emission[s], here);
            if (s + L <= states) all += here;
        }
        double sum = 0;
        for (int q = 0; q < L; q++) sum += all[q];
        for (int s = states / L * L; s < states; s++) sum += emission[s];
        T scale = T(1 / sum);
        for (int s = 0; s < states; s++) posterior[label[s]] += emission[s] * scale;
    }
};
