// cp.async: poison until the issuing thread waits.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace lowbit::emu {

__attribute__((noinline)) void cp_async(int bytes, int src_bytes, uint32_t dst, const void* src) {
  Machine& m = *machine;
  Thread& t = *m.self;
  m.counters.count(Instr::kCpAsync);
  if (src_bytes < 0 || src_bytes > bytes)
    fail("cp.async: expected src_bytes 0 .. %d, got %d", bytes, src_bytes);
  GlobalBuffer& b = find_buffer(src, std::max(src_bytes, 1), Instr::kCpAsync, false);
  if (reinterpret_cast<uint64_t>(src) % uint64_t(bytes))
    fail("cp.async of %d bytes from %s+%lld is misaligned: expected a multiple of %d", bytes,
         b.spec->name.c_str(), static_cast<long long>(static_cast<const uint8_t*>(src) - b.begin), bytes);
  const Place p = shared_place(dst, bytes, Instr::kCpAsync);
  check_write(t, p, Instr::kCpAsync, false);
  note_write(p, record_of(t, p.mask, Instr::kCpAsync, kPending));
  for (int i = 0; i < bytes; i += 4) memcpy(shared_bytes(dst) + i, &kPoison, 4);
  t.copies.push_back(
      {dst, static_cast<const uint8_t*>(src), bytes, src_bytes, t.copy_group, t.copy_serial++, -1});
  const void* site = __builtin_return_address(0);
  if (src_bytes) t.log.push_back({site, device_address(src), Instr::kCpAsync, true, uint8_t(bytes)});
  t.log.push_back({site, dst, Instr::kCpAsync, false, uint8_t(bytes)});
}

void land_cp_async(Thread& t, const CpAsync& op) {
  Machine& m = *machine;
  uint8_t data[16] = {};
  Record as = record_of(t, 0, Instr::kCpAsync);
  if (op.barrier >= 0) {
    as.agent = uint16_t(m.barrier_agent(op.barrier));
    as.clock = uint32_t(m.mbarriers[op.barrier].phase) + 1;
  }
  if (op.src_bytes) read_global(t, data, op.src, op.src_bytes, Instr::kCpAsync, &as);
  memcpy(shared_bytes(op.dst), data, op.bytes);
  const uint16_t mask = uint16_t(((1u << op.bytes) - 1) << (op.dst % 16));
  for (Record& r : m.shadow[(op.dst - m.smem_base) / 16].writes) {
    if (r.agent != t.index || !(r.flags & kPending) || !(r.mask & mask)) continue;
    r.flags = 0;
    r.agent = as.agent;
    r.clock = as.clock;
  }
}

namespace {

template <class Done>
void land_copies(Thread& t, Done done) {
  size_t kept = 0;
  for (size_t i = 0; i < t.copies.size(); ++i) {
    if (done(t.copies[i])) land_cp_async(t, t.copies[i]);
    else t.copies[kept++] = t.copies[i];
  }
  t.copies.resize(kept);
}

}  // namespace

void cp_async_commit_group() {
  machine->counters.count(Instr::kCpAsyncCommit);
  ++machine->self->copy_group;
}

void cp_async_wait_group(int pending) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kCpAsyncWait);
  land_copies(t, [&](const CpAsync& op) { return op.group + uint32_t(pending) < t.copy_group; });
}

void cp_async_wait_all() {
  machine->counters.count(Instr::kCpAsyncWait);
  land_copies(*machine->self, [](const CpAsync&) { return true; });
}

void cp_async_mbarrier_arrive_noinc(uint32_t barrier) {
  Machine& m = *machine;
  Thread& t = *m.self;
  m.counters.count(Instr::kCpAsyncArrive);
  const int index = barrier_index(barrier, Instr::kCpAsyncArrive);
  for (CpAsync& op : t.copies)
    if (op.barrier < 0) op.barrier = index;
  BulkLoad arrival{};
  arrival.barrier = index;
  arrival.bytes = t.copy_serial;
  arrival.thread = t.index;
  arrival.copy_arrival = true;
  m.loads.push_back(arrival);
}

void land_copy_arrival(const BulkLoad& arrival) {
  Machine& m = *machine;
  land_copies(*m.threads[arrival.thread], [&](const CpAsync& op) { return op.serial < arrival.bytes; });
  arrive_for_copy(m.mbarriers[arrival.barrier], ClockRef(new Clock(m.agents())));
}

}  // namespace lowbit::emu
