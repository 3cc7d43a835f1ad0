#include "counters.h"

#include <algorithm>

#include "machine.h"

namespace lowbit::emu {

const char* name(Instr instr) {
  static const char* const kNames[] = {"mma.m16n8k64.s4",
                                       "mma.m16n8k32.s8",
                                       "mma.m16n8k32.u8.s8",
                                       "mma.m16n8k32.s8.u8",
                                       "mma.m16n8k16.f16",
                                       "mma.m16n8k16.bf16",
                                       "ldmatrix",
                                       "stmatrix",
                                       "shfl.sync",
                                       "redux.sync",
                                       "vote.sync",
                                       "elect.sync",
                                       "setmaxnreg",
                                       "bar.sync",
                                       "bar.arrive",
                                       "bar.warp.sync",
                                       "fence.proxy.async",
                                       "fence.acq_rel.gpu",
                                       "mbarrier.init",
                                       "mbarrier.inval",
                                       "mbarrier.arrive",
                                       "mbarrier.expect_tx",
                                       "mbarrier.try_wait",
                                       "fence.mbarrier_init",
                                       "ld.global",
                                       "st.global",
                                       "ld.shared",
                                       "st.shared",
                                       "red.global.add",
                                       "atom.global.add",
                                       "ld.acquire.global",
                                       "st.release.global",
                                       "cp.async",
                                       "cp.async.commit_group",
                                       "cp.async.wait_group",
                                       "cp.async.mbarrier.arrive",
                                       "cp.async.bulk.tensor.load",
                                       "cp.async.bulk.tensor.store",
                                       "cp.async.bulk.load",
                                       "cp.async.bulk.store",
                                       "cp.async.bulk.commit_group",
                                       "cp.async.bulk.wait_group",
                                       "wgmma.fence",
                                       "wgmma",
                                       "wgmma.commit_group",
                                       "wgmma.wait_group",
                                       "nothing"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == size_t(Instr::kCount) + 1);
  return kNames[size_t(instr)];
}

namespace {

// Words of one phase against 32 banks; equal words are one broadcast.
int wavefronts(const uint64_t* addresses, int lanes, int bytes) {
  uint64_t words[32 * 4];
  int count = 0;
  for (int l = 0; l < lanes; ++l)
    for (uint64_t w = addresses[l] >> 2; w <= (addresses[l] + bytes - 1) >> 2; ++w) words[count++] = w;
  uint32_t banks = 0;
  bool clash = false;
  for (int i = 0; i < count; ++i) {
    const uint32_t bit = 1u << (words[i] & 31);
    clash |= (banks & bit) != 0;
    banks |= bit;
  }
  if (!clash) return count > 0;
  std::sort(words, words + count);
  count = int(std::unique(words, words + count) - words);
  int load[32] = {}, most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, ++load[words[i] & 31]);
  return most;
}

}  // namespace

void Counters::shared_request(Instr instr, const uint64_t* addresses, int lanes, int bytes) {
  MemoryCount& m = shared[size_t(instr)];
  ++m.requests;
  m.bytes += uint64_t(lanes) * bytes;
  const int phase = bytes <= 4 ? 32 : 128 / bytes;  // lanes per phase: all, half-warps, quarter-warps
  for (int first = 0; first < lanes; first += phase) {
    m.actual += wavefronts(addresses + first, std::min(phase, lanes - first), bytes);
    m.ideal += 1;
  }
}

void Counters::global_request(Instr instr, const uint64_t* addresses, int lanes, int bytes) {
  MemoryCount& m = global[size_t(instr)];
  uint64_t sorted[32];
  std::copy(addresses, addresses + lanes, sorted);
  if (!std::is_sorted(sorted, sorted + lanes)) std::sort(sorted, sorted + lanes);
  uint64_t sectors = 0, distinct = 0;
  for (int l = 0; l < lanes; ++l) {
    if (l && sorted[l] == sorted[l - 1]) continue;
    distinct += bytes;
    if (!l || sorted[l] >> 5 != sorted[l - 1] >> 5) ++sectors;
  }
  ++m.requests;
  m.bytes += uint64_t(lanes) * bytes;
  m.actual += sectors;
  m.ideal += (distinct + 31) / 32;
}

namespace {

void emit(Counters& counters, const AccessEntry& e, const uint64_t* addresses, int lanes) {
  if (e.global) counters.global_request(e.instr, addresses, lanes, e.bytes);
  else counters.shared_request(e.instr, addresses, lanes, e.bytes);
}

// Lanes took different paths: match the n-th access of each site.
void flush_uneven(Counters& counters, Thread* const* lanes) {
  struct Group {
    AccessEntry first;
    int nth, lanes;
    uint64_t addresses[32];
  };
  std::vector<Group> groups;
  for (int l = 0; l < 32; ++l) {
    std::map<std::pair<const void*, bool>, int> nth;
    for (const AccessEntry& e : lanes[l]->log) {
      const int n = nth[{e.site, e.global}]++;
      auto same = [&](const Group& g) {
        return g.nth == n && g.first.site == e.site && g.first.global == e.global;
      };
      auto g = std::find_if(groups.begin(), groups.end(), same);
      if (g == groups.end()) g = groups.insert(groups.end(), Group{e, n, 0, {}});
      g->addresses[g->lanes++] = e.address;
    }
  }
  for (const Group& g : groups) emit(counters, g.first, g.addresses, g.lanes);
}

}  // namespace

void flush_logs(Counters& counters, Thread* const* lanes) {
  const size_t count = lanes[0]->log.size();
  bool even = true;
  for (int l = 1; l < 32; ++l) even &= lanes[l]->log.size() == count;
  for (size_t i = 0; even && i < count; ++i)
    for (int l = 1; l < 32; ++l) even &= lanes[l]->log[i].site == lanes[0]->log[i].site;
  if (even) {
    uint64_t addresses[32];
    for (size_t i = 0; i < count; ++i) {
      for (int l = 0; l < 32; ++l) addresses[l] = lanes[l]->log[i].address;
      emit(counters, lanes[0]->log[i], addresses, 32);
    }
  } else {
    flush_uneven(counters, lanes);
  }
  for (int l = 0; l < 32; ++l) lanes[l]->log.clear();
}

}  // namespace lowbit::emu
