// Counting: instructions, shared-memory wavefronts, global sectors. The model of
// reference/ptx-semantics.md 8.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "launch.h"

namespace lowbit::emu {

// Every named instruction. The order is that of the names in counters.cpp.
enum class Instr : uint8_t {
  kMmaS4,
  kMmaS8,
  kMmaU8S8,
  kMmaS8U8,
  kMmaF16,
  kMmaBf16,
  kLdmatrix,
  kStmatrix,
  kShfl,
  kRedux,
  kVote,
  kElect,
  kSetmaxnreg,
  kBarSync,
  kBarArrive,
  kSyncwarp,
  kFenceProxyAsync,
  kThreadfence,
  kMbarrierInit,
  kMbarrierInval,
  kMbarrierArrive,
  kMbarrierExpectTx,
  kMbarrierWait,
  kFenceMbarrierInit,
  kLdGlobal,
  kStGlobal,
  kLdShared,
  kStShared,
  kRed,
  kAtom,
  kLdAcquire,
  kStRelease,
  kCpAsync,
  kCpAsyncCommit,
  kCpAsyncWait,
  kCpAsyncArrive,
  kTmaLoad,
  kTmaStore,
  kBulkLoad,
  kBulkStore,
  kBulkCommit,
  kBulkWait,
  kWgmmaFence,
  kWgmma,
  kWgmmaCommit,
  kWgmmaWait,
  kCount
};
const char* name(Instr instr);

// One lane's part of a request, kept until the warp meets and the lanes can be put together.
struct AccessEntry {
  const void* site;
  uint64_t address;
  Instr instr;
  bool global;
  uint8_t bytes;
};

struct Counters {
  std::array<uint64_t, size_t(Instr::kCount)> instructions{};
  std::map<std::string, uint64_t> calls;
  uint64_t wgmma_columns = 0;  // sum of N
  std::array<MemoryCount, size_t(Instr::kCount)> shared{}, global{};

  void count(Instr instr) { ++instructions[size_t(instr)]; }
  // Addresses of one request, `bytes` per lane.
  void shared_request(Instr instr, const uint64_t* addresses, int lanes, int bytes);
  void global_request(Instr instr, const uint64_t* addresses, int lanes, int bytes);
};

struct Thread;
// Groups what the 32 lanes logged since the last meeting: the n-th access of a site by each lane is one
// request.
void flush_logs(Counters& counters, Thread* const* lanes);

}  // namespace lowbit::emu
