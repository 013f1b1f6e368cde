// One graph for the whole batch, in the probability domain: alpha and beta of a group of utterances at once.
//
// A frame of alpha is  sums = first * x,  alpha = (second * [x, sums]) . emission,  x = alpha / mass; a frame of beta
// the same with the transposed matrices. Both directions run at the same time: each passes one half of the utterance,
// and goes on through the other half, where it meets what the other one found there. Only checkpoints of that are kept:
// frames are computed again, a segment at a time, where they are met. That is half as much work again, but the frames of
// a segment stay in the cache, while those of half an utterance would have to come from memory.
#pragma once
#include <memory>

#include "arena.h"
#include "tiles.h"

// Matrices of a step in one direction: `first` makes the sums of states, `second` the next states of both.
struct Direction {
    Tiles first, second;
    Typed<float> first32{first}, second32{second};
    Typed<double> first64{first}, second64{second};
    Direction(const Entries& f, const Entries& s) : first(f), second(s) {}
    Direction(const Direction&) = delete;

    template <class T>
    const Typed<T>& one() const {
        if constexpr (sizeof(T) == 4) return first32;
        else return first64;
    }
    template <class T>
    const Typed<T>& two() const {
        if constexpr (sizeof(T) == 4) return second32;
        else return second64;
    }
};

// States and sums are numbered as a forward step visits them, so that memory is read in order.
struct Graph {
    int states, sums;
    std::vector<int> label;
    std::vector<double> ends[2], leak;  // start and final weights; where the leak leads to, empty without one
    std::unique_ptr<Direction> direction[2];

    Graph(const int64_t* labels, const double* initial, const double* final, const double* leaks, const Entries& first,
          const Entries& second)
        : states(second.rows()), sums(first.rows()) {
        direction[0] = std::make_unique<Direction>(first, second);
        std::vector<int> old = direction[0]->second.visited(), state = inverse(old);
        std::vector<int> sum = inverse(direction[0]->first.visited()), column = state;
        for (int s : sum) column.push_back(states + s);
        direction[0]->first.renumber(sum, column);
        direction[0]->second.renumber(state, column);
        for (int s : old) {
            label.push_back(int(labels[s]));
            ends[0].push_back(initial[s]), ends[1].push_back(final[s]);
            if (leaks) leak.push_back(leaks[s]);
        }
        transpose(first, second, state, sum);
    }

   private:
    static std::vector<int> inverse(const std::vector<int>& order) {
        std::vector<int> place(order.size());
        for (size_t i = 0; i < order.size(); i++) place[order[i]] = int(i);
        return place;
    }

    // Backwards, sums and their sources change roles: states receive from states and from their sums.
    void transpose(
        const Entries& first, const Entries& second, const std::vector<int>& state, const std::vector<int>& sum
    ) {
        std::vector<int64_t> row[2], column[2];
        std::vector<double> weight[2];
        auto add = [&](int which, int r, int c, double w) {
            row[which].push_back(r), column[which].push_back(c), weight[which].push_back(w);
        };
        for (int r = 0; r < states; r++)
            for (int i = second.begin[r]; i < second.begin[r + 1]; i++) {
                int c = second.column[i];
                if (c < states) add(1, state[c], state[r], second.weight[i]);
                else add(0, sum[c - states], state[r], second.weight[i]);
            }
        for (int r = 0; r < sums; r++)
            for (int i = first.begin[r]; i < first.begin[r + 1]; i++)
                add(1, state[first.column[i]], states + sum[r], first.weight[i]);
        auto entries = [&](int rows, int i) {
            return Entries::sorted(rows, int64_t(row[i].size()), row[i].data(), column[i].data(), weight[i].data());
        };
        direction[1] = std::make_unique<Direction>(entries(sums, 0), entries(states, 1));
    }
};

template <class T>
struct Batch {
    int64_t frames, outputs;
    const T* log_probs;      // (B, T, V)
    const int64_t* lengths;  // (B,)
    T* posterior;            // (B, T, V) or null
    double* total;           // (B,)
    int32_t* status;         // (B,)
    double smallest_mass, leak;
};

enum Status : int32_t { SOUND = 0, WEAK = 1, NOT_A_NUMBER = 2 };

// Work on some utterances: prepare once, then one or two directions, each in halves, then finish.
struct Job {
    int directions = 2, waiting = 0;
    std::once_flag prepared;
    virtual ~Job() = default;
    virtual void prepare() = 0;
    virtual void half(int direction, bool second) = 0;
    virtual void finish() = 0;
};

template <class T, int P>
class Group final : public Job {
    using V = Vec<T, P>;
    static constexpr int START = 0, END = 1;  // directions, by where they begin

    // Where a direction is: all that its next step depends on.
    struct Walk {
        T *x, *raw, *scratch1, *scratch2;
        V inverse;
    };
    // Working arrays of a direction; `again`: for the half in which it repeats the other one.
    struct Run {
        Walk own, again;
        T *emission, *scale, *gradient;
        T *kept, *checkpoints;  // a segment (K, S, P) of the first half; states and `inverse` (S + 1, P) before others
        V weakest;
        double product[P], log_mass[P] = {}, ending[P] = {}, offset[P] = {};
        bool wrong[P] = {};
    };
    struct Span {
        int low, high;
    };

    const Graph& graph;
    const Batch<T>& batch;
    Arena& arena;
    int utterance[P], length[P], frames = 0, middle, segment;
    std::unique_ptr<Arena::Lease> memory;
    Run run[2];

   public:
    // segment: frames that are kept at once, 0 to choose.
    Group(const Graph& g, const Batch<T>& b, Arena& a, const int* members, int count, int kept)
        : graph(g), batch(b), arena(a) {
        for (int p = 0; p < P; p++) {
            utterance[p] = p < count ? members[p] : -1;
            length[p] = p < count ? int(batch.lengths[members[p]]) : 0;
            frames = std::max(frames, length[p]);
        }
        middle = batch.posterior ? frames / 2 : frames;
        directions = batch.posterior ? 2 : 1;
        segment = std::max(1, std::min(kept > 0 ? kept : best_segment(), frames));
    }

    void prepare() override {
        Arena::Sizes sizes;
        lay_out(sizes);
        memory.reset(new Arena::Lease(arena, sizes.total));
        lay_out(*memory);
        for (int d = 0; d < directions; d++) {
            Run& r = run[d];
            for (int p = 0; p < P; p++) r.weakest[p] = r.product[p] = 1;
            begin(r.own);
            if (batch.posterior) begin(r.again);
        }
    }

    void half(int direction, bool second) override {
        if (direction == START) second ? meet<START>() : approach<START>();
        else second ? meet<END>() : approach<END>();
        if (second || !batch.posterior) settle(direction);
    }

    void finish() override {
        bool both = batch.posterior;
        for (int p = 0; p < P; p++) {
            if (utterance[p] < 0) continue;
            double total = score(0, p);
            double weakest = both ? std::min(run[0].weakest[p], run[1].weakest[p]) : run[0].weakest[p];
            bool sound = length[p] > 0 && weakest > batch.smallest_mass && run[0].ending[p] > batch.smallest_mass;
            // paths lost to underflow in one direction mostly survive in the other
            double slack = 64 * double(std::numeric_limits<T>::epsilon()) * (length[p] + 16) + 1e-12 * std::abs(total);
            if (sound && both) sound = std::abs(total - score(1, p)) <= slack;
            batch.total[utterance[p]] = sound ? total : 0;
            batch.status[utterance[p]] = run[0].wrong[p] || run[1].wrong[p] ? NOT_A_NUMBER : sound ? SOUND : WEAK;
        }
        memory.reset();
    }

   private:
    double score(int direction, int p) const {
        return run[0].offset[p] + run[1].offset[p] + run[direction].log_mass[p] + std::log(run[direction].ending[p]);
    }

    // As many frames as checkpoints, for the least memory; or as many as fit the cache, as that segment is not repeated.
    int best_segment() const {
        size_t frame = (size_t(graph.states) + size_t(batch.outputs)) * P * sizeof(T);
        return std::max(int(std::sqrt(frames / 2)), int(CACHED / frame));
    }

    static constexpr size_t CACHED = 1 << 18;  // bytes

    template <class Memory>
    void lay_out(Memory& from) {
        size_t states = graph.states, sums = graph.sums, outputs = batch.outputs;
        auto pieces = [&](Walk& w) {
            w.x = from.template piece<T>((states + sums) * P);
            w.raw = from.template piece<T>((states + sums) * P);
            w.scratch1 = from.template piece<T>(sums * P);
            w.scratch2 = from.template piece<T>(states * P);
        };
        for (int d = 0; d < directions; d++) {
            Run& r = run[d];
            pieces(r.own);
            r.emission = from.template piece<T>(segment * outputs * P);
            r.scale = from.template piece<T>(outputs * P);
            if (!batch.posterior) continue;
            pieces(r.again);
            r.gradient = from.template piece<T>(outputs * P);
            r.kept = from.template piece<T>(segment * states * P);
            r.checkpoints = from.template piece<T>(std::max(0, segments(d) - 1) * (states + 1) * P);
        }
    }

    // Before the first frame. Scratch is to be 0 where `multiply` does not write.
    void begin(Walk& w) const {
        std::fill_n(w.x, size_t(graph.states + graph.sums) * P, T(0));
        std::fill_n(w.scratch1, size_t(graph.sums) * P, T(0));
        std::fill_n(w.scratch2, size_t(graph.states) * P, T(0));
        w.inverse = same<V>(T(1));
    }

    // Segments of a direction's first half are counted from the middle, as they are met.
    int segments(int direction) const {
        int size = direction == START ? middle : frames - middle;
        return (size + segment - 1) / segment;
    }
    Span segment_of(int direction, int i) const {
        if (direction == START) return {std::max(0, middle - (i + 1) * segment), middle - i * segment};
        return {middle + i * segment, std::min(frames, middle + (i + 1) * segment)};
    }

    // The first half: each segment takes the place of the one before, so that the one at the middle stays.
    template <int DIRECTION>
    void approach() {
        Run& r = run[DIRECTION];
        for (int i = segments(DIRECTION) - 1; i >= 0; i--) {
            if (i > 0 && batch.posterior) save(r.own, checkpoint(DIRECTION, i));
            Span span = segment_of(DIRECTION, i);
            read_emissions(r, span, true);
            pass<DIRECTION, false>(r.own, r, span, r.kept);
        }
    }

    // The second half: the other direction's segments are made again and met.
    template <int DIRECTION>
    void meet() {
        constexpr int OTHER = 1 - DIRECTION;
        Run& r = run[DIRECTION];
        T* kept = run[OTHER].kept;
        for (int i = 0; i < segments(OTHER); i++) {
            Span span = segment_of(OTHER, i);
            read_emissions(r, span, false);
            if (i > 0) {
                restore(r.again, checkpoint(OTHER, i));
                pass<OTHER, false>(r.again, r, span, kept);
            }
            pass<DIRECTION, true>(r.own, r, span, kept);
        }
    }

    // One body for all callers, so that recomputed frames are the same to the last bit.
    template <int DIRECTION, bool MEET>
    __attribute__((noinline)) void pass(Walk& walk, Run& r, Span span, T* kept) {
        for (int i = 0; i < span.high - span.low; i++) {
            int row = DIRECTION == START ? i : span.high - span.low - 1 - i, t = span.low + row;
            T* states = batch.posterior ? kept + size_t(row) * graph.states * P : nullptr;
            V mass = step<DIRECTION, MEET>(walk, r, t, r.emission + row * batch.outputs * P, states);
            if (&walk == &r.own) count(DIRECTION, t, mass);  // recomputed frames are counted already
            if (MEET) write_posterior(r.gradient, t);
        }
    }

    T* checkpoint(int direction, int i) const {
        return run[direction].checkpoints + size_t(i - 1) * (graph.states + 1) * P;
    }
    void save(const Walk& w, T* to) const {
        std::copy_n(w.x, size_t(graph.states) * P, to);
        store(to + size_t(graph.states) * P, w.inverse);
    }
    void restore(Walk& w, const T* from) const {
        std::copy_n(from, size_t(graph.states) * P, w.x);
        w.inverse = load<V>(from + size_t(graph.states) * P);
    }

    // Probabilities relative to the frame's largest, (K, V, P); 0 in padding.
    void read_emissions(Run& r, Span span, bool first) {
        constexpr int L = int(REGISTER / sizeof(T));
        using W = Vec<T, L>;
        int64_t outputs = batch.outputs;
        std::vector<T> row(outputs + L, -std::numeric_limits<T>::infinity()), relative(outputs + L);
        for (int t = span.low; t < span.high; t++)
            for (int p = 0; p < P; p++) {
                T* to = r.emission + (t - span.low) * outputs * P + p;
                if (t >= length[p]) {
                    for (int64_t v = 0; v < outputs; v++) to[v * P] = 0;
                    continue;
                }
                const T* from = batch.log_probs + (utterance[p] * batch.frames + t) * outputs;
                std::memcpy(row.data(), from, outputs * sizeof(T));
                T top = largest<L>(row, r.wrong[p]);
                if (first) r.offset[p] += top;
                for (int64_t v = 0; v < outputs; v += L)
                    store(&relative[v], exp_of<T, L>(load<W>(&row[v]) - same<W>(top)));
                for (int64_t v = 0; v < outputs; v++) to[v * P] = relative[v];
            }
    }

    // Finite even if nothing is. The last L of the row are -inf. Sets `wrong` where something is not below infinity.
    template <int L>
    static T largest(const std::vector<T>& row, bool& wrong) {
        using W = Vec<T, L>;
        W top = same<W>(std::numeric_limits<T>::lowest());
        Vec<Int<T>, L> below = same<Vec<Int<T>, L>>(Int<T>(-1));
        for (size_t v = 0; v + L < row.size(); v += L) {
            W x = load<W>(&row[v]);
            top = larger<W>(x, top);
            below &= x < same<W>(std::numeric_limits<T>::infinity());
        }
        T result = top[0];
        for (int q = 0; q < L; q++) result = std::max(result, top[q]), wrong |= !below[q];
        return result;
    }

    // Does a path begin (seen from this direction) at frame t in some utterance?
    template <int DIRECTION>
    bool enters(int t) const {
        if (DIRECTION == START) return t == 0;
        for (int p = 0; p < P; p++)
            if (t == length[p] - 1) return true;
        return false;
    }

    template <int DIRECTION, bool MEET>
    V step(Walk& w, Run& r, int t, const T* emitted, T* kept) {
        const Direction& matrices = *graph.direction[DIRECTION];
        const int* labels = graph.label.data();
        const int64_t outputs = batch.outputs;
        T *scale = r.scale, *gradient = r.gradient, *raw = w.raw;  // local copies, as stores might alias the members
        for (int64_t v = 0; v < outputs; v++) store(scale + v * P, V(load<V>(emitted + v * P) * w.inverse));
        if (MEET) std::memset(gradient, 0, outputs * P * sizeof(T));
        V mass{};
        auto arrive = [=, &mass](int row, V v) {
            size_t at = size_t(row) * P, label = size_t(labels[row]) * P;
            V next = v * load<V>(scale + label);
            V own = DIRECTION == START ? next : v;
            if constexpr (MEET) store(gradient + label, V(load<V>(gradient + label) + own * load<V>(kept + at)));
            else if (kept) store(kept + at, own);
            store(raw + at, next);
            mass += next;
        };
        T* sums = w.x + size_t(graph.states) * P;
        multiply<T, P>(matrices.one<T>(), w.x, w.scratch1, [&](int row, V v) { store(sums + size_t(row) * P, v); });
        bool leaks = batch.leak > 0, entering = enters<DIRECTION>(t);
        if (!entering && !(leaks && DIRECTION == END)) multiply<T, P>(matrices.two<T>(), w.x, w.scratch2, arrive);
        else {
            multiply<T, P>(matrices.two<T>(), w.x, w.scratch2, [&](int row, V v) { store(w.raw + size_t(row) * P, v); });
            if (entering) enter(DIRECTION, w.raw, t);
            V extra = leaks && DIRECTION == END ? V(leak_into(w.raw) * T(batch.leak)) : V{};
            for (int row = 0; row < graph.states; row++) arrive(row, load<V>(w.raw + size_t(row) * P) + extra);
        }
        std::swap(w.x, w.raw);
        if (leaks && DIRECTION == START) leak_from(w.x, mass);
        for (int p = 0; p < P; p++) w.inverse[p] = mass[p] > 0 ? T(1) / mass[p] : T(1);
        return mass;
    }

    // Adds the weights of beginning a path here, for utterances that begin (or, backwards, end) at frame t.
    void enter(int direction, T* to, int t) const {
        for (int p = 0; p < P; p++) {
            if (length[p] == 0 || t != (direction == START ? 0 : length[p] - 1)) continue;
            for (int row = 0; row < graph.states; row++) to[size_t(row) * P + p] += T(graph.ends[direction][row]);
        }
    }

    // Leaky HMM: the mass that would come back from everywhere a leak leads to.
    V leak_into(const T* beta) const {
        V sum{};
        for (int row = 0; row < graph.states; row++) sum += load<V>(beta + size_t(row) * P) * T(graph.leak[row]);
        return sum;
    }

    void leak_from(T* alpha, V mass) const {
        V extra = mass * T(batch.leak);
        for (int row = 0; row < graph.states; row++) {
            T* to = alpha + size_t(row) * P;
            store(to, V(load<V>(to) + extra * T(graph.leak[row])));
        }
    }

    void count(int direction, int t, V mass) {
        Run& r = run[direction];
        for (int p = 0; p < P; p++) {
            if (t >= length[p]) continue;
            r.weakest[p] = std::min(r.weakest[p], mass[p]);
            r.product[p] *= mass[p];
            if (!(r.product[p] > 1e-200)) r.log_mass[p] += std::log(r.product[p]), r.product[p] = 1;
            if (t == (direction == START ? length[p] - 1 : 0)) close(direction, p);
        }
    }

    // The weight of ending where the last frame is, relative to the mass there.
    void close(int direction, int p) {
        Run& r = run[direction];
        double sum = 0;
        const std::vector<double>& ends = graph.ends[1 - direction];
        for (int row = 0; row < graph.states; row++) sum += double(r.own.x[size_t(row) * P + p]) * ends[row];
        r.ending[p] = sum * double(r.own.inverse[p]);
    }

    void settle(int direction) {
        Run& r = run[direction];
        for (int p = 0; p < P; p++) r.log_mass[p] += std::log(r.product[p]);
    }

    void write_posterior(T* gradient, int t) {
        V sum{};
        for (int64_t v = 0; v < batch.outputs; v++) sum += load<V>(gradient + v * P);
        for (int p = 0; p < P; p++) {
            if (utterance[p] < 0 || t >= length[p]) continue;
            T scale = sum[p] > 0 ? T(1) / sum[p] : T(0);
            T* to = batch.posterior + (utterance[p] * batch.frames + t) * batch.outputs;
            for (int64_t v = 0; v < batch.outputs; v++) to[v] = gradient[v * P + p] * scale;
        }
    }
};
