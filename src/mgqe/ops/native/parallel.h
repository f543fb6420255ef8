// One loop over tasks, spread over OpenMP threads when there are several and the build has OpenMP.
#ifndef MGQE_PARALLEL_H
#define MGQE_PARALLEL_H

#include <stdint.h>

// Whether this process was forked from one that had loaded the library: the thread pool of its parent is not there, and
// waiting for it would take for ever.
bool mgqe_forked();

namespace {

// Threads worth starting for `work` units when a thread should have at least `grain` of them.
inline int mgqe_team(int64_t work, int64_t grain, int32_t threads) {
    if (threads <= 1 || mgqe_forked()) return 1;
    int64_t useful = work / grain;
    if (useful < 1) useful = 1;
    return static_cast<int>(threads < useful ? threads : useful);
}

// Calls body(begin, end) once a thread over a split of [0, count) that depends on `team` alone.
// A team of one never enters OpenMP.
template <typename Body>
inline void mgqe_parallel(int64_t count, int team, const Body& body) {
    if (count <= 0) return;
    if (team > count) team = static_cast<int>(count);
    if (team <= 1) {
        body(static_cast<int64_t>(0), count);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads(team)
#endif
    for (int part = 0; part < team; ++part) {
        const int64_t begin = count * part / team;
        const int64_t end = count * (part + 1) / team;
        body(begin, end);
    }
}

}  // namespace

#endif
