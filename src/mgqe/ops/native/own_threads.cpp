// The threads of a build without OpenMP: a pool that grows to the largest team asked for, and stays until the process
// ends. Any number of threads may run loops at once; each works on its own loop too, so that a loop always ends, however
// few threads the system gives.
#ifndef _OPENMP
#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "parallel.h"

namespace {

constexpr size_t kStackBytes = 4 << 20;  // macOS gives threads less than kernels may need

struct Loop {
    mgqe_part body;
    const void* context;
    int parts;
    int next;        // the first part that nobody has begun
    int unfinished;  // parts
    std::condition_variable finished;
};

struct Pool {
    std::mutex mutex;
    std::condition_variable begun;
    std::vector<Loop*> loops;  // that have parts which nobody has begun
    int threads = 0;
};

Pool& the_pool() {
    static Pool* const pool = new Pool;  // never deleted: its threads wait in it until the process ends
    return *pool;
}

// Does one part, with the lock held before and after.
void do_part(Pool& pool, Loop& loop, std::unique_lock<std::mutex>& lock) {
    const int part = loop.next++;
    if (loop.next == loop.parts) pool.loops.erase(std::find(pool.loops.begin(), pool.loops.end(), &loop));
    lock.unlock();
    loop.body(loop.context, part);
    lock.lock();
    if (--loop.unfinished == 0) loop.finished.notify_one();
}

void* work(void* given) {
    Pool& pool = *static_cast<Pool*>(given);
    std::unique_lock<std::mutex> lock(pool.mutex);
    for (;;) {
        pool.begun.wait(lock, [&] { return !pool.loops.empty(); });
        do_part(pool, *pool.loops.front(), lock);
    }
}

bool start_thread(Pool& pool) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_t thread;
    const bool started = pthread_create(&thread, &attributes, work, &pool) == 0;
    pthread_attr_destroy(&attributes);
    return started;
}

}  // namespace

void mgqe_run_parts(int parts, mgqe_part body, const void* context) {
    Pool& pool = the_pool();
    Loop loop{body, context, parts, 0, parts, {}};
    std::unique_lock<std::mutex> lock(pool.mutex);
    while (pool.threads < parts - 1 && start_thread(pool)) ++pool.threads;
    pool.loops.push_back(&loop);
    pool.begun.notify_all();
    while (loop.next < parts) do_part(pool, loop, lock);
    loop.finished.wait(lock, [&] { return loop.unfinished == 0; });
}
#endif
