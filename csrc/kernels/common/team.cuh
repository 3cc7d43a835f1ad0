// The threads that work on one tile of sums: a block (barrier 0), or a warpgroup with a named barrier.
#pragma once

#include "../../ptx/sync.h"

namespace lowbit::kernels {

template <int kThreadsOf>
struct Team {
  static constexpr int kThreads = kThreadsOf;
  int barrier;

  LOWBIT_DEVICE int thread() const { return ptx::thread_index() % kThreads; }
  LOWBIT_DEVICE void sync() const {
    if (barrier == 0) ptx::syncthreads();
    else ptx::bar_sync(barrier, kThreads);
  }
};

}  // namespace lowbit::kernels
