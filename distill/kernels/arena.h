// Memory for the computation, kept between calls.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

// Kept, as fresh pages cost as much as the computation.
class Arena {
    struct Block {
        size_t size;
        void* data;
    };
    std::mutex mutex;
    std::vector<Block> free_blocks;
    size_t all = 0;  // bytes, of free blocks and others

    void release(const Block& block) {
        std::free(block.data);
        all -= block.size;
    }

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
            release(free_blocks.back());
            free_blocks.pop_back();
        }
        size_t rounded = (size + 4095) / 4096 * 4096;
        void* data = std::aligned_alloc(4096, rounded);
        if (!data) throw std::bad_alloc();
        all += rounded;
        return {rounded, data};
    }
    void give(Block block) {
        std::lock_guard<std::mutex> lock(mutex);
        free_blocks.push_back(block);
    }
    void clear() {
        std::lock_guard<std::mutex> lock(mutex);
        for (Block& block : free_blocks) release(block);
        free_blocks.clear();
    }
    size_t held() {
        std::lock_guard<std::mutex> lock(mutex);
        return all;
    }
    static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

    // The memory that a lease would need, computed in the same way.
    struct Sizes {
        size_t total = 0;
        template <class T>
        T* piece(size_t count) {
            total += padded(count * sizeof(T));
            return nullptr;
        }
    };
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
    };
};
