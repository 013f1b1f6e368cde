// Forward-backward of LF-MMI on processors: the C interface, and threads over groups of utterances.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "packed.h"
#include "shared.h"

namespace {

Arena arena;

// Runs jobs on several threads. A job's two directions are tasks of their own, and so are their second halves, which
// wait for both first ones: that is the only meeting of threads. Who has nothing to do looks for it a little longer than
// waking takes, and then sleeps.
class Scheduler {
    struct Task {
        Job* job;
        int direction;
        bool second;
    };
    std::vector<std::unique_ptr<Job>>& jobs;
    std::deque<Task> ready;
    std::mutex mutex;
    std::condition_variable changed;
    size_t unfinished;
    bool failed = false;
    std::atomic<unsigned> changes{0};

   public:
    explicit Scheduler(std::vector<std::unique_ptr<Job>>& all) : jobs(all), unfinished(all.size()) {
        for (auto& job : jobs) {
            job->waiting = job->directions;
            for (int d = 0; d < job->directions; d++) ready.push_back({job.get(), d, false});
        }
    }

    // False where memory ended.
    bool run(int threads) {
        std::vector<std::thread> others;
        for (int i = 1; i < threads; i++) others.emplace_back([this] { work(); });
        work();
        for (std::thread& thread : others) thread.join();
        return !failed;
    }

   private:
    void work() {
        FlushTiny flush;
        std::unique_lock<std::mutex> lock(mutex);
        while (true) {
            if (ready.empty() && unfinished && !failed) look(lock);
            changed.wait(lock, [this] { return !ready.empty() || !unfinished || failed; });
            if (ready.empty() || failed) return;
            Task task = ready.front();
            ready.pop_front();
            lock.unlock();
            bool good = attempt(task);
            lock.lock();
            if (!good) failed = true;
            else if (--task.job->waiting == 0) advance(task);
            if (failed || !unfinished) changes++, changed.notify_all();
        }
    }

    // Waits for a change for as long as a sleeping thread would take to wake.
    void look(std::unique_lock<std::mutex>& lock) {
        unsigned seen = changes;
        lock.unlock();
        auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
        while (changes == seen && std::chrono::steady_clock::now() < until) std::this_thread::yield();
        lock.lock();
    }

    static bool attempt(const Task& task) {
        try {
            std::call_once(task.job->prepared, [&] { task.job->prepare(); });
            task.job->half(task.direction, task.second);
            return true;
        } catch (const std::bad_alloc&) {
            return false;
        }
    }

    void advance(const Task& task) {
        if (task.job->directions == 2 && !task.second) {
            task.job->waiting = 2;
            for (int d : {0, 1}) ready.push_front({task.job, d, true});
            changes++, changed.notify_one();
        } else {
            task.job->finish();
            unfinished--;
        }
    }
};

template <class T, int P>
void add_groups(
    const Graph& graph, const Batch<T>& batch, const std::vector<int>& order, int segment,
    std::vector<std::unique_ptr<Job>>& jobs
) {
    for (size_t low = 0; low < order.size(); low += P) {
        int count = int(std::min<size_t>(P, order.size() - low));
        jobs.emplace_back(new Group<T, P>(graph, batch, arena, &order[low], count, segment));
    }
}

// Time of one frame for a group of so many utterances, against a group of one.
constexpr double COST[] = {1.0, 1.15, 1.4, 2.0, 3.6};

// Utterances to a group: few enough that all threads have work.
int group_size(int utterances, int threads, int most, int directions) {
    int best = 1;
    double shortest = std::numeric_limits<double>::infinity();
    for (int size = 1, i = 0; size <= most; size *= 2, i++) {
        int tasks = (utterances + size - 1) / size * directions;
        double time = double((tasks + threads - 1) / threads) * COST[i];
        if (time <= shortest) shortest = time, best = size;
    }
    return best;
}

template <class T>
int score_shared(const Graph& graph, const Batch<T>& batch, int utterances, int threads, int size, int segment) {
    constexpr int most = int(REGISTER / sizeof(T));
    std::vector<int> order(utterances);
    std::iota(order.begin(), order.end(), 0);
    auto longer = [&](int a, int b) { return batch.lengths[a] > batch.lengths[b]; };
    std::stable_sort(order.begin(), order.end(), longer);
    std::vector<std::unique_ptr<Job>> jobs;
    if (size <= 0) size = group_size(utterances, threads, most, batch.posterior ? 2 : 1);
    size = std::min(size, most);
    if (size == 1) add_groups<T, 1>(graph, batch, order, segment, jobs);
    else if (size == 2) add_groups<T, 2>(graph, batch, order, segment, jobs);
    else if (size == 4 && most >= 4) add_groups<T, most >= 4 ? 4 : 1>(graph, batch, order, segment, jobs);
    else if (size == 8 && most >= 8) add_groups<T, most >= 8 ? 8 : 1>(graph, batch, order, segment, jobs);
    else if (size == 16 && most >= 16) add_groups<T, most >= 16 ? 16 : 1>(graph, batch, order, segment, jobs);
    else return 1;
    int tasks = int(jobs.size()) * (batch.posterior ? 2 : 1);
    return Scheduler(jobs).run(std::min(threads, tasks)) ? 0 : 2;
}

// One utterance with its own graph.
template <class T>
class Single final : public Job {
    const Batch<T>& batch;
    const LogGraph graph;
    const int b;

   public:
    Single(const Batch<T>& all, const LogGraph& g, int index) : batch(all), graph(g), b(index) { directions = 1; }
    void prepare() override {}
    void finish() override {}
    void half(int, bool) override {
        int64_t length = batch.lengths[b], size = batch.frames * batch.outputs;
        const T* scores = batch.log_probs + b * size;
        batch.total[b] = 0;
        batch.status[b] = WEAK;
        for (int64_t i = 0; i < length * batch.outputs; i++)
            if (!(scores[i] < std::numeric_limits<T>::infinity())) {
                batch.status[b] = NOT_A_NUMBER;
                return;
            }
        if (length == 0 || graph.states == 0) return;
        LogForwardBackward<T> both(graph, scores, int(length), batch.outputs);
        double total = both.run(batch.posterior ? batch.posterior + b * size : nullptr);
        if (total == -std::numeric_limits<double>::infinity()) return;
        batch.total[b] = total;
        batch.status[b] = SOUND;
    }
};

template <class T>
int score_single(const Batch<T>& batch, const LogGraph* graphs, int utterances, int threads) {
    std::vector<std::unique_ptr<Job>> jobs;
    for (int b = 0; b < utterances; b++) jobs.emplace_back(new Single<T>(batch, graphs[b], b));
    return Scheduler(jobs).run(std::min(threads, utterances)) ? 0 : 2;
}

template <class T>
Batch<T> batch_of(const int64_t* shape, const void* log_probs, const int64_t* lengths, void* posterior, double* total,
                  int32_t* status) {
    return {shape[1], shape[2], static_cast<const T*>(log_probs), lengths, static_cast<T*>(posterior), total, status,
            1e-12, 0};
}

}  // namespace

extern "C" {

// Entries (count; row, column, weight) of the two matrices of a forward step: sums (rows) of states, and next states
// of [states, sums]. Weights are probabilities. leak: null, or where the leak leads to.
void* lfmmi_graph(
    int64_t states, int64_t sums, const int64_t* label, const double* initial, const double* final, const double* leak,
    const int64_t* count, const int64_t* row1, const int64_t* column1, const double* weight1, const int64_t* row2,
    const int64_t* column2, const double* weight2
) {
    Entries first = Entries::sorted(int(sums), count[0], row1, column1, weight1);
    Entries second = Entries::sorted(int(states), count[1], row2, column2, weight2);
    return std::make_unique<Graph>(label, initial, final, leak, first, second).release();
}

void lfmmi_graph_free(void* graph) { delete static_cast<Graph*>(graph); }

int lfmmi_lanes(int bytes) { return REGISTER / bytes; }

// Bytes that the computation holds, or keeps for the next call until they are released.
int64_t lfmmi_held() { return int64_t(arena.held()); }

void lfmmi_release() { arena.clear(); }

// shape: B, T, V. bytes: 4 for float, 8 for double. posterior: (B, T, V) filled with zeros, or null. total, status (B,).
// size: utterances to a group, segment: frames that a direction holds at once, 0 to choose them. Returns 0, or 2 where
// memory ended.
int lfmmi_shared(
    const void* graph, int bytes, const int64_t* shape, const void* log_probs, const int64_t* lengths, void* posterior,
    double* total, int32_t* status, double smallest_mass, double leak, int threads, int size,
    int segment
) {
    auto score = [&](auto batch) {
        batch.smallest_mass = smallest_mass, batch.leak = leak;
        return score_shared(*static_cast<const Graph*>(graph), batch, int(shape[0]), threads, size, segment);
    };
    return bytes == 4 ? score(batch_of<float>(shape, log_probs, lengths, posterior, total, status))
                      : score(batch_of<double>(shape, log_probs, lengths, posterior, total, status));
}

// The same in the log semiring with one graph per utterance.
int lfmmi_single(
    const void* graphs, int bytes, const int64_t* shape, const void* log_probs, const int64_t* lengths, void* posterior,
    double* total, int32_t* status, int threads
) {
    auto score = [&](auto batch) {
        return score_single(batch, static_cast<const LogGraph*>(graphs), int(shape[0]), threads);
    };
    return bytes == 4 ? score(batch_of<float>(shape, log_probs, lengths, posterior, total, status))
                      : score(batch_of<double>(shape, log_probs, lengths, posterior, total, status));
}
}
