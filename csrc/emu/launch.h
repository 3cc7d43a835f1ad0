// The emulator's outside: register buffers, launch a kernel, read the report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace lowbit::emu {

// One clear sentence: block, thread, instruction, address, the other thread.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Access {
  kRead,       // an input: a store is a violation
  kWrite,      // an output: reading a byte that this launch has not written is a violation
  kReadWrite,  // initialised and written
};

// Global memory that the kernel may touch; every other address is a violation.
struct Buffer {
  std::string name;
  void* data;
  size_t bytes;
  Access access;
};

struct LaunchConfig {
  int grid_x = 1, grid_y = 1, grid_z = 1;
  int block = 32;
  uint32_t smem_bytes = 0;
  uint64_t seed = 1;
  int smem_base_mod = 0;  // 0, 128, 256 or 512: dynamic shared memory starts there, modulo 1024
  uint32_t max_smem_bytes =
      232448;  // the opt-in limit of the target: sm_90 232448, sm_80 166912, sm_86 and sm_89 101376
  int async_early =
      -1;  // 1: bulk copies land at random moments, 0: only when all threads wait, -1: by the seed
};

// One kind of memory instruction. Shared memory: cost in wavefronts; global memory: in 32-byte sectors.
struct MemoryCount {
  uint64_t requests = 0, bytes = 0, actual = 0, ideal = 0;
};

struct BufferCount {
  uint64_t bytes_read = 0, bytes_written = 0;
  uint32_t read_min = 0, read_max = 0, write_min = 0, write_max = 0;  // over the bytes of the buffer
};

struct Report {
  std::map<std::string, uint64_t>
      instructions;  // collectives: per warp (wgmma: per warpgroup); others: per thread
  std::map<std::string, MemoryCount> shared, global;
  std::map<std::string, BufferCount> buffers;
};

// Runs the kernel on every thread of the grid, CTA after CTA in random order. Throws Violation at the first
// breach.
Report launch(const LaunchConfig& config, const std::vector<Buffer>& buffers,
              const std::function<void()>& kernel);

}  // namespace lowbit::emu
