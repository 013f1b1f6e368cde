// One graph for the whole batch, in the probability domain: alpha and beta of a group of utterances at once.
//
// A frame of alpha is  sums = first * x,  alpha = (second * [x, sums]) . emission,  x = alpha / mass; a frame of beta
// the same with the transposed matrices. Both directions run at the same time: each stores its own frames of one half
// of the utterance, and goes on through the other half, where it meets what the other one stored.
#pragma once
#include <cstdlib>
#include <memory>
#include <mutex>

#include "tiles.h"

// What a step of one direction multiplies with: `first` makes the sums of states, `second` the next states of both.
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

    // Backwards, sums receive what they gave, and states receive from states and from the sums they were part of.
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

// Memory that is kept between calls: fresh pages cost as much as the computation.
class Arena {
    struct Block {
        size_t size;
        void* data;
    };
    std::mutex mutex;
    std::vector<Block> free_blocks;

   public:
    Block take(size_t size) {
        std::lock_guard<std::mutex> lock(mutex);
        auto best = free_blocks.end();
        for (auto it = free_blocks.begin(); it != free_blocks.end(); ++it)
            if (it->size >= size && (best == free_blocks.end() || it->size < best->size)) best = it;
        if (best != free_blocks.end()) {
            Block block = *best;
            free_blocks.erase(best);
            return block;
        }
        if (!free_blocks.empty()) {  // all are too small: one goes for the new one
            std::free(free_blocks.back().data);
            free_blocks.pop_back();
        }
        size_t rounded = (size + 4095) / 4096 * 4096;
        void* data = std::aligned_alloc(4096, rounded);
        if (!data) throw std::bad_alloc();
        return {rounded, data};
    }
    void give(Block block) {
        std::lock_guard<std::mutex> lock(mutex);
        free_blocks.push_back(block);
    }
    void clear() {
        std::lock_guard<std::mutex> lock(mutex);
        for (Block& block : free_blocks) std::free(block.data);
        free_blocks.clear();
    }
    // A block for as long as this lives, dealt out in pieces.
    class Lease {
        Arena& arena;
        Block block;
        size_t used = 0;

       public:
        Lease(Arena& a, size_t size) : arena(a), block(a.take(size)) {}
        ~Lease() { arena.give(block); }
        Lease(const Lease&) = delete;
        template <class T>
        T* piece(size_t count) {
            T* result = reinterpret_cast<T*>(static_cast<char*>(block.data) + used);
            used += padded(count * sizeof(T));
            return result;
        }
        static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }
    };
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

    // How far one direction has come.
    struct Run {
        T *x, *scratch1, *scratch2, *gradient, *raw;
        V inverse, weakest;
        double log_mass[P], product[P], ending[P], offset[P];
    };

    const Graph& graph;
    const Batch<T>& batch;
    Arena& arena;
    int utterance[P], length[P], frames = 0, middle;
    bool wrong[P] = {};
    std::unique_ptr<Arena::Lease> memory;
    T *emission, *history;
    Run run[2];

   public:
    Group(const Graph& g, const Batch<T>& b, Arena& a, const int* members, int count) : graph(g), batch(b), arena(a) {
        for (int p = 0; p < P; p++) {
            utterance[p] = p < count ? members[p] : -1;
            length[p] = p < count ? int(batch.lengths[members[p]]) : 0;
            frames = std::max(frames, length[p]);
        }
        middle = batch.posterior ? frames / 2 : frames;
        directions = batch.posterior ? 2 : 1;
    }

    void prepare() override {
        size_t row = P * sizeof(T), states = graph.states, sums = graph.sums;
        auto padded = Arena::Lease::padded;
        size_t kept = batch.posterior ? padded(size_t(frames) * states * row) : 0;
        size_t each = 2 * padded((states + sums) * row) + padded(states * row) + padded(sums * row) +
                      padded(batch.outputs * row);
        memory.reset(new Arena::Lease(arena, padded(frames * batch.outputs * row) + kept + 2 * each));
        emission = memory->template piece<T>(frames * batch.outputs * P);
        history = memory->template piece<T>(kept / sizeof(T));
        for (Run& r : run) {
            r.x = memory->template piece<T>((states + sums) * P);
            r.scratch1 = memory->template piece<T>(sums * P);
            r.scratch2 = memory->template piece<T>(states * P);
            r.raw = memory->template piece<T>((states + sums) * P);
            r.gradient = memory->template piece<T>(batch.outputs * P);
            std::memset(r.x, 0, (states + sums) * row);
            std::memset(r.scratch1, 0, sums * row);
            std::memset(r.scratch2, 0, states * row);
            r.inverse = same<V>(T(1));
            r.weakest = same<V>(T(1));
            for (int p = 0; p < P; p++) r.log_mass[p] = r.ending[p] = r.offset[p] = 0, r.product[p] = 1;
        }
    }

    void half(int direction, bool second) override {
        int low = direction == START ? (second ? middle : 0) : (second ? 0 : middle);
        int high = direction == START ? (second ? frames : middle) : (second ? middle : frames);
        if (!second) read_emissions(direction, low, high);
        for (int i = 0; i < high - low; i++) {
            int t = direction == START ? low + i : high - 1 - i;
            if (direction == START) second ? step<START, true>(t) : step<START, false>(t);
            else second ? step<END, true>(t) : step<END, false>(t);
        }
        if (second || !batch.posterior) settle(direction);
    }

    void finish() override {
        bool both = batch.posterior;
        for (int p = 0; p < P; p++) {
            if (utterance[p] < 0) continue;
            double total = score(0, p);
            double weakest = both ? std::min(run[0].weakest[p], run[1].weakest[p]) : run[0].weakest[p];
            bool sound = length[p] > 0 && weakest > batch.smallest_mass && run[0].ending[p] > batch.smallest_mass;
            // what one direction lost to underflow, the other one mostly did not
            double slack = 64 * double(std::numeric_limits<T>::epsilon()) * (length[p] + 16) + 1e-12 * std::abs(total);
            if (sound && both) sound = std::abs(total - score(1, p)) <= slack;
            batch.total[utterance[p]] = sound ? total : 0;
            batch.status[utterance[p]] = wrong[p] ? NOT_A_NUMBER : sound ? SOUND : WEAK;
        }
        memory.reset();
    }

   private:
    double score(int direction, int p) const {
        return run[0].offset[p] + run[1].offset[p] + run[direction].log_mass[p] + std::log(run[direction].ending[p]);
    }

    // Probabilities relative to the frame's largest, (T, V, P); 0 in padding.
    void read_emissions(int direction, int low, int high) {
        constexpr int L = int(REGISTER / sizeof(T));
        using W = Vec<T, L>;
        int64_t outputs = batch.outputs;
        std::vector<T> row(outputs + L, T(0));
        for (int p = 0; p < P; p++)
            for (int t = low; t < high; t++) {
                T* to = emission + t * outputs * P + p;
                if (t >= length[p]) {
                    for (int64_t v = 0; v < outputs; v++) to[v * P] = 0;
                    continue;
                }
                const T* from = batch.log_probs + (utterance[p] * batch.frames + t) * outputs;
                T top = -std::numeric_limits<T>::infinity();
                bool number = true;
                for (int64_t v = 0; v < outputs; v++) top = from[v] > top ? from[v] : top, number &= from[v] == from[v];
                wrong[p] |= !number || top == std::numeric_limits<T>::infinity();
                top = std::max(top, std::numeric_limits<T>::lowest());
                run[direction].offset[p] += top;
                std::memcpy(row.data(), from, outputs * sizeof(T));
                for (int64_t v = 0; v < outputs; v += L)
                    store(&row[v], exp_of<T, L>(load<W>(&row[v]) - same<W>(top)));
                for (int64_t v = 0; v < outputs; v++) to[v * P] = row[v];
            }
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
    void step(int t) {
        Run& r = run[DIRECTION];
        const Direction& matrices = *graph.direction[DIRECTION];
        int64_t outputs = batch.outputs;
        T* emitted = emission + t * outputs * P;
        V scaled[MOST_OUTPUTS_ON_STACK];
        std::vector<T> heap;
        T* scale = reinterpret_cast<T*>(scaled);
        if (outputs > MOST_OUTPUTS_ON_STACK) heap.resize(outputs * P), scale = heap.data();
        for (int64_t v = 0; v < outputs; v++) store(scale + v * P, V(load<V>(emitted + v * P) * r.inverse));
        if (MEET) std::memset(r.gradient, 0, outputs * P * sizeof(T));
        T* kept = batch.posterior ? history + size_t(t) * graph.states * P : nullptr;
        V mass{};
        auto arrive = [&](int row, V v) {
            int label = graph.label[row];
            V next = v * load<V>(scale + label * P);
            V own = DIRECTION == START ? next : v;
            if constexpr (MEET) {
                T* sum = r.gradient + label * P;
                store(sum, V(load<V>(sum) + own * load<V>(kept + size_t(row) * P)));
            } else if (kept) store(kept + size_t(row) * P, own);
            store(r.raw + size_t(row) * P, next);
            mass += next;
        };
        T* sums = r.x + size_t(graph.states) * P;
        multiply<T, P>(matrices.one<T>(), r.x, r.scratch1, [&](int row, V v) { store(sums + size_t(row) * P, v); });
        bool leaks = batch.leak > 0, entering = enters<DIRECTION>(t);
        if (!entering && !(leaks && DIRECTION == END)) multiply<T, P>(matrices.two<T>(), r.x, r.scratch2, arrive);
        else {
            multiply<T, P>(matrices.two<T>(), r.x, r.scratch2, [&](int row, V v) { store(r.raw + size_t(row) * P, v); });
            if (entering) enter(DIRECTION, t);
            V extra = leaks && DIRECTION == END ? V(leak_into(r.raw) * T(batch.leak)) : V{};
            for (int row = 0; row < graph.states; row++) arrive(row, load<V>(r.raw + size_t(row) * P) + extra);
        }
        std::swap(r.x, r.raw);
        conclude(DIRECTION, t, mass);
        if (MEET) write_posterior(r.gradient, t);
    }

    static constexpr int MOST_OUTPUTS_ON_STACK = 128;

    // Adds the weights of beginning a path here, for utterances that begin (or, backwards, end) at frame t.
    void enter(int direction, int t) {
        Run& r = run[direction];
        for (int p = 0; p < P; p++) {
            if (length[p] == 0 || t != (direction == START ? 0 : length[p] - 1)) continue;
            for (int row = 0; row < graph.states; row++) r.raw[size_t(row) * P + p] += T(graph.ends[direction][row]);
        }
    }

    // Leaky HMM: the mass that would come back from everywhere a leak leads to.
    V leak_into(const T* beta) const {
        V sum{};
        for (int row = 0; row < graph.states; row++) sum += load<V>(beta + size_t(row) * P) * T(graph.leak[row]);
        return sum;
    }

    void conclude(int direction, int t, V mass) {
        Run& r = run[direction];
        if (batch.leak > 0 && direction == START) {
            V extra = mass * T(batch.leak);
            for (int row = 0; row < graph.states; row++) {
                T* x = r.x + size_t(row) * P;
                store(x, V(load<V>(x) + extra * T(graph.leak[row])));
            }
        }
        for (int p = 0; p < P; p++) {
            r.inverse[p] = mass[p] > 0 ? T(1) / mass[p] : T(1);
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
        for (int row = 0; row < graph.states; row++) sum += double(r.x[size_t(row) * P + p]) * ends[row];
        r.ending[p] = sum * double(r.inverse[p]);
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
