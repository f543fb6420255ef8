// One loop over tasks, spread over threads when there are several: OpenMP's, or, in a build without it, those of
// own_threads.cpp.
#ifndef MGQE_PARALLEL_H
#define MGQE_PARALLEL_H

#include <stdint.h>

// Whether this process was forked from one that had loaded the library: the thread pool of its parent is not there, and
// waiting for it would take for ever.
bool mgqe_forked();

#ifndef _OPENMP
// Calls body(context, part) for each part in [0, parts), on up to as many threads, and waits for all.
typedef void (*mgqe_part)(const void* context, int part);
void mgqe_run_parts(int parts, mgqe_part body, const void* context);
#endif

namespace {

// Threads worth starting for `work` units when a thread should have at least `grain` of them.
inline int mgqe_team(int64_t work, int64_t grain, int32_t threads) {
    if (threads <= 1 || mgqe_forked()) return 1;
    int64_t useful = work / grain;
    if (useful < 1) useful = 1;
    return static_cast<int>(threads < useful ? threads : useful);
}

// Calls body(begin, end) once a thread over a split of [0, count) that depends on `team` alone.
// A team of one starts no thread.
template <typename Body>
inline void mgqe_parallel(int64_t count, int team, const Body& body) {
    if (count <= 0) return;
    if (team > count) team = static_cast<int>(count);
    if (team <= 1) {
        body(static_cast<int64_t>(0), count);
        return;
    }
    const auto run = [&](int part) { body(count * part / team, count * (part + 1) / team); };
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads(team)
    for (int part = 0; part < team; ++part) run(part);
#else
    mgqe_run_parts(team, [](const void* context, int part) { (*static_cast<const decltype(run)*>(context))(part); }, &run);
#endif
}

}  // namespace

#endif
