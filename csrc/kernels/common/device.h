// What a kernel family must know of the card and of its caller. Plain C++: no torch, no CUDA header.
#pragma once

namespace lowbit::kernels {

struct Device {
  int sm;               // 10 * major + minor: 80, 86, 89, 90, 100, 120
  int multiprocessors;  // 108 on an A100, 132 on an H100 SXM
  int shared_bytes;     // what one block may ask for: 166912 on sm_80, 101376 on 86 and 89, 232448 on 90
  int index;            // of CUDA, as in "cuda:1"
};

// Whether the sm_90a code runs there. It runs on 9.0 and nowhere else: not on 10.x, not on 12.x.
inline bool is_hopper(const Device& device) { return device.sm == 90; }

// Blocks that a multiprocessor holds at a time, `most` by their registers. The system keeps 1 KiB of shared
// memory for each.
constexpr int resident(int shared, int most, const Device& device) {
  const int fit = (device.shared_bytes + 1024) / (shared + 1024);
  return fit < 1 ? 1 : fit < most ? fit : most;
}

using Stream = void*;       // a cudaStream_t
using Error = const char*;  // nullptr: done; else a sentence

Error find_device(int index, Device* device);  // asks the runtime, once per card; thread-safe

// Makes the card this thread's, context and all: encoding a tensor map needs one, and a thread whose first
// call finds its memory in torch's cache has none.
Error bind_context(int index);

}  // namespace lowbit::kernels
