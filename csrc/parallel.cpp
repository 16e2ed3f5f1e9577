#include "parallel.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(LOCANT_THREADS_STD)
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#else
#include <omp.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace locant {
namespace {

// Denormals become zero for the lifetime of this, on this thread: arithmetic on them is some 100 times slower, and
// probabilities that small are zero in every sum they take part in.
class FlushDenormals {
public:
    FlushDenormals() noexcept : before_(read()) { write(before_ | flush); }
    ~FlushDenormals() { write(before_); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
#if defined(__x86_64__) || (defined(__i386__) && defined(__SSE2__))
    using Register = unsigned int;
    static constexpr Register flush = 0x8040;  // results (FTZ, bit 15) and operands (DAZ, bit 6)
    static Register read() noexcept { return _mm_getcsr(); }
    static void write(Register value) noexcept { _mm_setcsr(value); }
#elif defined(__aarch64__)
    using Register = uint64_t;
    static constexpr Register flush = uint64_t{1} << 24;  // FZ: results and operands
    static Register read() noexcept {
        Register value;
        asm volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void write(Register value) noexcept { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
    using Register = unsigned int;
    static constexpr Register flush = 0;
    static Register read() noexcept { return 0; }
    static void write(Register) noexcept {}
#endif
    Register before_;
};

// Memory of one thread. It only grows, and stays until the thread ends: fresh pages cost more than many a call.
class Scratch {
public:
    Scratch() = default;
    ~Scratch() { std::free(block_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* at_least(size_t bytes) noexcept {  // null if there is not that much memory
        if (bytes <= size_) return aligned_;
        std::free(block_);
        size_ = 0;
        aligned_ = nullptr;
        block_ = bytes > SIZE_MAX - line ? nullptr : std::malloc(bytes + line);
        if (block_ == nullptr) return nullptr;
        const auto address = reinterpret_cast<uintptr_t>(block_);
        aligned_ = static_cast<char*>(block_) + (line - address % line) % line;
        size_ = bytes;
        return aligned_;
    }

private:
    static constexpr size_t line = 64;  // of a cache, and the widest vector
    void* block_ = nullptr;
    void* aligned_ = nullptr;
    size_t size_ = 0;
};

thread_local Scratch scratch_of_this_thread;

// What one call of parallel_for hands to its threads.
struct Job {
    int64_t items;
    size_t scratch_bytes;
    void (*work)(void* context, int64_t item, void* scratch);
    void* context;
    std::atomic<int64_t> next{0};
    std::atomic<bool> out_of_memory{false};

    void take_part() noexcept {  // on each thread: take items until none is left
        void* scratch = scratch_of_this_thread.at_least(scratch_bytes);
        if (scratch == nullptr && scratch_bytes > 0) {
            out_of_memory.store(true, std::memory_order_relaxed);
            return;  // the other threads do all of it, if they got theirs
        }
        const FlushDenormals flushed;
        for (;;) {
            const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
            if (item >= items) return;
            work(context, item, scratch);
        }
    }
};

#if defined(LOCANT_THREADS_STD)

// Threads that wait for jobs, one job at a time. They are never joined: at the end of the program they hold nothing.
class Pool {
public:
    void run(Job& job, int threads) {
        const std::unique_lock<std::mutex> alone(one_job_, std::try_to_lock);
        if (!alone.owns_lock()) {  // another thread of the caller's has the pool
            job.take_part();
            return;
        }
        grow(threads - 1);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            wanted_ = threads - 1;
        }
        start_.notify_all();
        job.take_part();
        std::unique_lock<std::mutex> lock(mutex_);
        wanted_ = 0;  // whoever has not begun by now finds no item left
        end_.wait(lock, [this] { return working_ == 0; });
        job_ = nullptr;
    }

private:
    void grow(int workers) {
        while (workers_ < workers) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: those that are do the work
            }
            ++workers_;
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [this] { return wanted_ > 0; });
            --wanted_;
            ++working_;
            Job* job = job_;
            lock.unlock();
            job->take_part();
            lock.lock();
            if (--working_ == 0) end_.notify_one();
        }
    }

    std::mutex one_job_, mutex_;
    std::condition_variable start_, end_;
    Job* job_ = nullptr;
    int workers_ = 0, wanted_ = 0, working_ = 0;
};

void run(Job& job, int threads) {
    static Pool* pool = new Pool;  // never deleted: its threads may outlive every destructor
    pool->run(job, threads);
}

#else

// All the threads there are, even for fewer items: libgomp ends the threads that a smaller team leaves over, torch's
// own among them, and starts new ones for the next region.
void run(Job& job, int threads) {
#pragma omp parallel num_threads(threads)
    job.take_part();
}

#endif

}  // namespace

void parallel_for(int64_t items, int threads, size_t scratch_bytes,
                  void (*work)(void* context, int64_t item, void* scratch), void* context) {
    if (items <= 0) return;
    Job job{items, scratch_bytes, work, context};
    if (threads <= 1 || items == 1) {
        job.take_part();
    } else {
        run(job, threads);
    }
    // Items are left over if and only if no thread had memory to take them with.
    if (job.out_of_memory.load() && job.next.load() < items) throw std::bad_alloc();
}

}  // namespace locant
