// A sparse matrix cut for a product with many vectors at once.
//
// Rows that read nearly the same columns are taken together, eight to a tile: each column of a tile is loaded once
// and used eight times, its missing entries being zeros. Entries that fit no tile stay in a list per row.
#pragma once
#include <algorithm>
#include <iterator>
#include <numeric>
#include <tuple>
#include <vector>

#include "simd.h"

constexpr int ROWS = 8;         // rows of a tile
constexpr int DENSE_FROM = 3;   // entries of a tile's column from which zeros for the others are cheaper
constexpr int FEWEST_COLUMNS = 4;

struct Entries {
    std::vector<int> begin, column;  // row r has the entries begin[r] .. begin[r + 1]
    std::vector<double> weight;

    int rows() const { return int(begin.size()) - 1; }

    static Entries sorted(int rows, int64_t count, const int64_t* row, const int64_t* column, const double* weight) {
        Entries result;
        result.begin.assign(rows + 1, 0);
        result.column.resize(count);
        result.weight.resize(count);
        for (int64_t a = 0; a < count; a++) result.begin[row[a] + 1]++;
        std::partial_sum(result.begin.begin(), result.begin.end(), result.begin.begin());
        std::vector<int> next(result.begin.begin(), result.begin.end() - 1);
        for (int64_t a = 0; a < count; a++) {
            int place = next[row[a]]++;
            result.column[place] = int(column[a]);
            result.weight[place] = weight[a];
        }
        return result;
    }

    Entries transposed(int columns) const {
        std::vector<int64_t> from(column.begin(), column.end()), to;
        for (int r = 0; r < rows(); r++) to.insert(to.end(), begin[r + 1] - begin[r], r);
        return sorted(columns, int64_t(column.size()), from.data(), to.data(), weight.data());
    }
};

struct Tiles {
    std::vector<int> tile_rows;         // ROWS per tile, -1 where there is none
    std::vector<int> begin{0}, column;  // tile i reads column[begin[i]] .. column[begin[i + 1]]
    std::vector<double> weight;         // ROWS per column
    // Entries outside tiles, for rows in tiles (`added`) and rows without (`alone`), shortest rows first.
    struct Rest {
        std::vector<int> row, begin{0}, column;
        std::vector<double> weight;
    } added, alone;

    explicit Tiles(const Entries& matrix) {
        int columns = 0;
        for (int c : matrix.column) columns = std::max(columns, c + 1);
        Entries across = matrix.transposed(columns);
        std::vector<char> done(matrix.rows(), 0), dense(matrix.column.size(), 0);
        std::vector<int> leaders(matrix.rows());
        std::iota(leaders.begin(), leaders.end(), 0);
        auto degree = [&](int r) { return matrix.begin[r + 1] - matrix.begin[r]; };
        std::stable_sort(leaders.begin(), leaders.end(), [&](int a, int b) { return degree(a) > degree(b); });
        std::vector<int> shared(matrix.rows(), 0);
        for (int leader : leaders)
            if (!done[leader] && degree(leader) >= FEWEST_COLUMNS)
                add_tile(matrix, companions(matrix, across, leader, done, shared), done, dense);
        collect_rest(matrix, leaders, done, dense);
    }

    // Rows in the order in which a product visits them.
    std::vector<int> visited() const {
        std::vector<int> rows;
        std::copy_if(tile_rows.begin(), tile_rows.end(), std::back_inserter(rows), [](int r) { return r >= 0; });
        rows.insert(rows.end(), alone.row.begin(), alone.row.end());
        return rows;
    }

    // Gives rows and columns new numbers.
    void renumber(const std::vector<int>& new_row, const std::vector<int>& new_column) {
        for (std::vector<int>* rows : {&tile_rows, &added.row, &alone.row})
            for (int& r : *rows) r = r < 0 ? r : new_row[r];
        for (std::vector<int>* columns : {&column, &added.column, &alone.column})
            for (int& c : *columns) c = new_column[c];
    }

   private:
    // The leader and up to seven free rows that share most columns with it.
    static std::vector<int> companions(
        const Entries& matrix, const Entries& across, int leader, const std::vector<char>& done, std::vector<int>& shared
    ) {
        std::vector<int> met;
        for (int a = matrix.begin[leader]; a < matrix.begin[leader + 1]; a++) {
            int c = matrix.column[a];
            for (int b = across.begin[c]; b < across.begin[c + 1]; b++) {
                int r = across.column[b];
                if (!done[r] && shared[r]++ == 0) met.push_back(r);
            }
        }
        shared[leader] = std::numeric_limits<int>::max();
        auto better = [&](int a, int b) { return std::make_pair(-shared[a], a) < std::make_pair(-shared[b], b); };
        size_t count = std::min<size_t>(ROWS, met.size());
        std::partial_sort(met.begin(), met.begin() + count, met.end(), better);
        for (int r : met) shared[r] = 0;
        met.resize(count);
        return met;
    }

    void add_tile(
        const Entries& matrix, const std::vector<int>& rows, std::vector<char>& done, std::vector<char>& dense
    ) {
        std::vector<std::tuple<int, int, int>> cells;  // column, slot, entry
        for (size_t slot = 0; slot < rows.size(); slot++)
            for (int a = matrix.begin[rows[slot]]; a < matrix.begin[rows[slot] + 1]; a++)
                cells.emplace_back(matrix.column[a], int(slot), a);
        std::sort(cells.begin(), cells.end());
        std::vector<std::pair<size_t, size_t>> chosen;
        for (size_t low = 0, high; low < cells.size(); low = high) {
            for (high = low; high < cells.size() && std::get<0>(cells[high]) == std::get<0>(cells[low]);) high++;
            if (high - low >= DENSE_FROM) chosen.emplace_back(low, high);
        }
        if (chosen.size() < FEWEST_COLUMNS) return;
        for (auto [low, high] : chosen) {
            column.push_back(std::get<0>(cells[low]));
            weight.resize(column.size() * ROWS, 0.0);
            for (size_t i = low; i < high; i++) {
                auto [c, slot, entry] = cells[i];
                weight[(column.size() - 1) * ROWS + slot] += matrix.weight[entry];
                dense[entry] = 1;
            }
        }
        begin.push_back(int(column.size()));
        for (int slot = 0; slot < ROWS; slot++) tile_rows.push_back(slot < int(rows.size()) ? rows[slot] : -1);
        for (int r : rows) done[r] = 1;
    }

    void collect_rest(
        const Entries& matrix, const std::vector<int>& rows, const std::vector<char>& in_tile,
        const std::vector<char>& dense
    ) {
        auto left = [&](int r) { return std::count(dense.data() + matrix.begin[r], dense.data() + matrix.begin[r + 1], 0); };
        std::vector<std::pair<int64_t, int>> order;
        for (int r : rows) order.emplace_back(left(r), r);
        std::sort(order.begin(), order.end());
        for (auto [count, r] : order) {
            if (in_tile[r] && !count) continue;
            Rest& rest = in_tile[r] ? added : alone;
            for (int a = matrix.begin[r]; a < matrix.begin[r + 1]; a++)
                if (!dense[a]) {
                    rest.column.push_back(matrix.column[a]);
                    rest.weight.push_back(matrix.weight[a]);
                }
            rest.row.push_back(r);
            rest.begin.push_back(int(rest.column.size()));
        }
    }
};

// The tiles with weights of type T.
template <class T>
struct Typed {
    const Tiles& tiles;
    std::vector<T> weight, added, alone;
    explicit Typed(const Tiles& t)
        : tiles(t), weight(t.weight.begin(), t.weight.end()), added(t.added.weight.begin(), t.added.weight.end()),
          alone(t.alone.weight.begin(), t.alone.weight.end()) {}
};

// How a group of P numbers per row (one for each utterance) lies in registers: D rows to a register of L lanes.
template <class T, int P>
struct Shape {
    static constexpr int small = int((REGISTER < 32 ? REGISTER : 32) / sizeof(T));
    static constexpr int L = P > small ? P : small;
    static constexpr int D = L / P;
    static constexpr int registers = ROWS / D;
    static constexpr int unroll = registers >= 8 ? 1 : registers >= 4 ? 2 : 4;  // additions must overlap
};

// Weights of one column, each repeated for the P utterances: register i of the accumulators. Within blocks of 16
// bytes, as shuffles across them are slow; so register i holds the rows given by `row_of`.
template <class T, int P, int L, int A, int... Q>
inline Vec<T, L> spread(Vec<T, L> w, std::integer_sequence<int, Q...>) {
    constexpr int C = 16 / sizeof(T);
    return shuffled<((Q / C) * C + A * (C / P) + (Q % C) / P)...>(w);
}
template <class T, int P>
constexpr int row_of(int i, int q) {
    using S = Shape<T, P>;
    constexpr int C = 16 / sizeof(T);
    return S::D == 1 ? i : (i / P) * S::L + (q / C) * C + (i % P) * (C / P) + (q % C) / P;
}

template <class T, int P, int... I>
inline void multiply_column(
    Vec<T, Shape<T, P>::L>* sum, const T* weight, Vec<T, Shape<T, P>::L> x, std::integer_sequence<int, I...>
) {
    using S = Shape<T, P>;
    if constexpr (S::D == 1) {
        ((sum[I] += x * weight[I]), ...);
    } else {
        using Lanes = std::make_integer_sequence<int, S::L>;
        ((sum[I] += x * spread<T, P, S::L, I % P>(load<Vec<T, S::L>>(weight + (I / P) * S::L), Lanes{})), ...);
    }
}

// Sums of one tile: ROWS times P numbers to `out`.
template <class T, int P>
inline void multiply_tile(const Typed<T>& typed, int tile, const T* x, T* out) {
    using S = Shape<T, P>;
    using V = Vec<T, S::L>;
    constexpr auto all = std::make_integer_sequence<int, S::registers>{};
    V sum[S::unroll][S::registers] = {};
    const int* column = typed.tiles.column.data();
    int k = typed.tiles.begin[tile], end = typed.tiles.begin[tile + 1];
    for (; k + S::unroll <= end; k += S::unroll)
        for (int u = 0; u < S::unroll; u++)
            multiply_column<T, P>(
                sum[u], &typed.weight[size_t(k + u) * ROWS], repeat<T, P, S::L>(x + size_t(column[k + u]) * P), all
            );
    for (; k < end; k++)
        multiply_column<T, P>(sum[0], &typed.weight[size_t(k) * ROWS], repeat<T, P, S::L>(x + size_t(column[k]) * P), all);
    for (int i = 0; i < S::registers; i++) {
        V whole = sum[0][i];
        for (int u = 1; u < S::unroll; u++) whole += sum[u][i];
        if constexpr (S::D == 1) store(out + i * P, whole);
        else {
            T lanes[S::L];
            store(lanes, whole);
            for (int q = 0; q < S::L; q += P) std::memcpy(out + row_of<T, P>(i, q) * P, lanes + q, P * sizeof(T));
        }
    }
}

// Calls each(row, sum) for rows of so few entries that a call and its reloads would cost more.
template <class T, int P, class Each>
ALWAYS_INLINE void multiply_rest(const Tiles::Rest& rest, const std::vector<T>& weights, const T* x, Each&& each) {
    using V = Vec<T, P>;
    const int *row = rest.row.data(), *begin = rest.begin.data(), *column = rest.column.data();
    const T* weight = weights.data();
    for (size_t i = 0, count = rest.row.size(); i < count; i++) {
        V even{}, odd{};
        int k = begin[i], end = begin[i + 1];
        for (; k + 2 <= end; k += 2) {
            even += load<V>(x + size_t(column[k]) * P) * weight[k];
            odd += load<V>(x + size_t(column[k + 1]) * P) * weight[k + 1];
        }
        if (k < end) even += load<V>(x + size_t(column[k]) * P) * weight[k];
        each(row[i], V(even + odd));
    }
}

// The matrix times x (columns, P): calls each(row, sum) once per row. `scratch` (rows, P) is overwritten where
// rows of tiles have further entries, and must be 0 elsewhere.
template <class T, int P, class Each>
ALWAYS_INLINE void multiply(const Typed<T>& typed, const T* x, T* scratch, Each&& each) {
    using V = Vec<T, P>;
    const Tiles& tiles = typed.tiles;
    multiply_rest<T, P>(tiles.added, typed.added, x, [&](int row, V v) { store(scratch + size_t(row) * P, v); });
    T out[ROWS * P];
    const int* rows = tiles.tile_rows.data();
    for (size_t tile = 0, count = tiles.begin.size() - 1; tile < count; tile++, rows += ROWS) {
        multiply_tile<T, P>(typed, int(tile), x, out);
        for (int slot = 0; slot < ROWS && rows[slot] >= 0; slot++)
            each(rows[slot], V(load<V>(out + slot * P) + load<V>(scratch + size_t(rows[slot]) * P)));
    }
    multiply_rest<T, P>(tiles.alone, typed.alone, x, each);
}
