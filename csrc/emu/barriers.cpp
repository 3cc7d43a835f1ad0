// bar.sync, bar.arrive and mbarrier.
#include "machine.h"

namespace lowbit::emu {

namespace {

// All 32 lanes of the warp have met; counts them in. True when the barrier completes.
bool arrive_at_bar(int id, int threads, bool waits) {
  Machine& m = *machine;
  BlockBarrier& b = m.block_barriers[id];
  if (b.arrived && b.expected != threads)
    fail("bar %d: called with %d threads, while others called it with %d", id, threads, b.expected);
  b.expected = threads;
  b.arrived += 32;
  if (b.arrived > threads) fail("bar %d: %d threads arrive, expected %d", id, b.arrived, threads);
  Thread* const* lanes = &m.threads[32 * m.self->warp];
  if (waits) {
    b.waiting.insert(b.waiting.end(), lanes, lanes + 32);
  } else {
    if (!b.arrived_clock) b.arrived_clock = ClockRef(new Clock(m.agents()));
    for (int i = 0; i < 32; ++i) b.arrived_clock->join(*release(*lanes[i]));
  }
  if (b.arrived < threads) return false;
  b.arrived = 0;
  if (!b.waiting.empty()) {
    if (b.arrived_clock) acquire(*b.waiting[0], b.arrived_clock);
    join(b.waiting.data(), int(b.waiting.size()));
  }
  b.arrived_clock = ClockRef();
  return true;
}

}  // namespace

void bar_sync(int id, int threads) {
  Machine& m = *machine;
  if (id < 0 || id > 15 || threads % 32 || threads <= 0)
    fail("bar.sync %d, %d: expected an id 0..15 and a positive multiple of 32 threads", id, threads);
  if (!meet_warp(Instr::kBarSync, uint64_t(id) << 16 | uint64_t(threads), {})) return;
  BlockBarrier& b = m.block_barriers[id];
  if (!arrive_at_bar(id, threads, true)) return block_self(Instr::kBarSync, id);
  for (Thread* t : b.waiting)
    if (t != m.self) wake(*t);
  b.waiting.clear();
}

void syncthreads() { bar_sync(0, machine->config->block); }

void bar_arrive(int id, int threads) {
  Machine& m = *machine;
  if (id < 0 || id > 15 || threads % 32 || threads <= 0)
    fail("bar.arrive %d, %d: expected an id 0..15 and a positive multiple of 32 threads", id, threads);
  if (!meet_warp(Instr::kBarArrive, uint64_t(id) << 16 | uint64_t(threads), {})) return;
  BlockBarrier& b = m.block_barriers[id];
  const bool complete = arrive_at_bar(id, threads, false);
  for (Thread* t : b.waiting)
    if (complete) wake(*t);
  if (complete) b.waiting.clear();
  release_warp();
}

int barrier_index(uint32_t address, Instr instr) {
  Machine& m = *machine;
  check_shared_range(address, 8, 8, instr);
  const int index = m.barrier_at[(address - m.smem_base) / 8];
  if (index < 0)
    fail("%s at shared+%u: no mbarrier.init has been done there", name(instr), address - m.smem_base);
  const Mbarrier& b = m.mbarriers[index];
  if (!sees(*m.self, b.init))
    fail("%s at shared+%u: %s initialised it with no barrier in between", name(instr), address - m.smem_base,
         agent_name(b.init).c_str());
  return index;
}

namespace {

unsigned where(const Mbarrier& b) { return b.address - machine->smem_base; }

// pending or tx has changed: the phase may be over.
void check_complete(Mbarrier& b) {
  Machine& m = *machine;
  if (b.pending == 0 && b.tx < 0)
    fail(
        "mbarrier at shared+%u: %lld more bytes landed in phase %d than were expected (expect_tx is short or "
        "missing)",
        where(b), static_cast<long long>(-b.tx), b.phase);
  if (b.pending != 0 || b.tx != 0) return;
  if (b.in_flight)
    fail(
        "mbarrier at shared+%u: phase %d completes while %d bulk copies on it are in flight (expect_tx is "
        "short or "
        "missing)",
        where(b), b.phase, b.in_flight);
  const int index = int(&b - m.mbarriers.data());
  b.gathering->seen(m.barrier_agent(index)) = uint32_t(b.phase) + 1;
  b.done = b.gathering;
  b.gathering = ClockRef(new Clock(m.agents()));
  b.memo_in = b.memo_out = ClockRef();
  ++b.phase;
  b.pending = b.count;
  size_t kept = 0;
  for (auto& [thread, target] : b.blocked) {
    if (target >= b.phase) {
      b.blocked[kept++] = {thread, target};
      continue;
    }
    acquire(*thread, b.done);
    wake(*thread);
  }
  b.blocked.resize(kept);
}

void arrive(Mbarrier& b, uint32_t bytes) {
  Thread& t = *machine->self;
  Mbarrier::Waiter& w = b.waiters[t.index];
  if (w.arrived_phase == b.phase)
    fail("mbarrier.arrive at shared+%u: the thread has already arrived in phase %d (double arrive)", where(b),
         b.phase);
  w.arrived_phase = b.phase;
  if (b.pending == 0)
    fail("mbarrier.arrive at shared+%u: more arrivals than the count of %d in phase %d", where(b), b.count,
         b.phase);
  ++t.arrivals;
  b.tx += bytes;
  --b.pending;
  b.gathering->join(*release(t));
  check_complete(b);
}

}  // namespace

void arrive_for_copy(Mbarrier& b, const ClockRef& clock) {
  if (b.pending == 0)
    fail("cp.async.mbarrier.arrive at shared+%u: more arrivals than the count of %d in phase %d", where(b),
         b.count, b.phase);
  --b.pending;
  b.gathering->join(*clock);
  check_complete(b);
}

void complete_tx(Mbarrier& b, int phase, uint32_t bytes) {
  if (b.phase != phase)
    fail(
        "mbarrier at shared+%u: a bulk copy issued in phase %d lands in phase %d (expect_tx is short or "
        "missing)",
        where(b), phase, b.phase);
  --b.in_flight;
  b.tx -= bytes;
  check_complete(b);
}

void mbarrier_init(uint32_t address, int count) {
  Machine& m = *machine;
  Thread& t = *m.self;
  m.counters.count(Instr::kMbarrierInit);
  check_shared_range(address, 8, 8, Instr::kMbarrierInit);
  int16_t& at = m.barrier_at[(address - m.smem_base) / 8];
  if (at >= 0)
    fail("mbarrier.init at shared+%u: the object is live (mbarrier.inval first)", address - m.smem_base);
  if (count < 1 || count >= 1 << 20) fail("mbarrier.init: expected a count of 1 .. 2^20 - 1, got %d", count);
  const Place p = shared_place(address, 8, Instr::kMbarrierInit);
  check_write(t, p, Instr::kMbarrierInit, false);
  note_write(p, record_of(t, p.mask, Instr::kMbarrierInit));
  if (m.mbarriers.size() == kMaxMbarriers)
    fail("mbarrier.init: the emulator holds %d per block", kMaxMbarriers);
  if (m.mbarriers.capacity() < kMaxMbarriers) m.mbarriers.reserve(kMaxMbarriers);  // references stay valid
  at = int16_t(m.mbarriers.size());
  Mbarrier b;
  b.address = address;
  b.live = true;
  b.count = b.pending = count;
  b.init = record_of(t, 0, Instr::kMbarrierInit);
  b.gathering = ClockRef(new Clock(m.agents()));
  b.waiters.resize(m.threads.size());
  m.mbarriers.push_back(std::move(b));
}

void mbarrier_inval(uint32_t address) {
  Machine& m = *machine;
  m.counters.count(Instr::kMbarrierInval);
  Mbarrier& b = m.mbarriers[barrier_index(address, Instr::kMbarrierInval)];
  if (b.in_flight || !b.blocked.empty())
    fail("mbarrier.inval at shared+%u: %d copies in flight and %zu threads waiting", where(b), b.in_flight,
         b.blocked.size());
  b.live = false;
  m.barrier_at[(address - m.smem_base) / 8] = -1;
}

void mbarrier_arrive(uint32_t address) {
  machine->counters.count(Instr::kMbarrierArrive);
  arrive(machine->mbarriers[barrier_index(address, Instr::kMbarrierArrive)], 0);
}

void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
  machine->counters.count(Instr::kMbarrierArrive);
  machine->counters.count(Instr::kMbarrierExpectTx);
  if (bytes >= 1u << 20) fail("mbarrier.arrive.expect_tx: expected fewer than 2^20 bytes, got %u", bytes);
  arrive(machine->mbarriers[barrier_index(address, Instr::kMbarrierArrive)], bytes);
}

void mbarrier_expect_tx(uint32_t address, uint32_t bytes) {
  machine->counters.count(Instr::kMbarrierExpectTx);
  Mbarrier& b = machine->mbarriers[barrier_index(address, Instr::kMbarrierExpectTx)];
  b.tx += bytes;
  if (b.tx >= 1 << 20) fail("mbarrier.expect_tx at shared+%u: the count of bytes passes 2^20 - 1", where(b));
}

namespace {

// Which phase a wait with this parity means for this thread. A thread that has never waited means phase 0, or
// the one before it; later, the next phase, or the same again.
int target_phase(Mbarrier& b, uint32_t parity) {
  const Thread& t = *machine->self;
  Mbarrier::Waiter& w = b.waiters[t.index];
  if (parity > 1) fail("mbarrier.try_wait at shared+%u: expected parity 0 or 1, got %u", where(b), parity);
  if (w.seen == -2) {
    const int last = b.phase - 1;
    return uint32_t(last & 1) == parity ? last : b.phase;
  }
  if (uint32_t((w.seen + 1) & 1) == parity) return w.seen + 1;
  if (w.arrivals_then != t.arrivals)
    fail(
        "mbarrier.try_wait at shared+%u with parity %u: stale phase, this thread has consumed phase %d of "
        "that parity "
        "already and arrived since (the parity was not flipped)",
        where(b), parity, w.seen);
  return w.seen;
}

// True when the wait is over. Hardware compares parities only, so a phase two flips back looks like the open
// one.
bool passed(Mbarrier& b, int target) {
  if (b.phase > target + 1)
    fail(
        "mbarrier.try_wait at shared+%u: stale phase, it waits for phase %d but phase %d is open: two flips "
        "alias",
        where(b), target, b.phase);
  return b.phase == target + 1;
}

void consume(Mbarrier& b, int target) {
  Thread& t = *machine->self;
  b.waiters[t.index].seen = target;
  b.waiters[t.index].arrivals_then = t.arrivals;
}

void acquire_done(Mbarrier& b) {
  Thread& t = *machine->self;
  if (!b.done) return;
  if (b.memo_in.get() != t.base.get() || !b.memo_in) {
    b.memo_in = t.base;
    acquire(t, b.done);
    b.memo_out = t.base;
  }
  t.base = b.memo_out;
}

}  // namespace

bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity) {
  Machine& m = *machine;
  m.counters.count(Instr::kMbarrierWait);
  const int index = barrier_index(address, Instr::kMbarrierWait);
  Mbarrier& b = m.mbarriers[index];
  const int target = target_phase(b, parity);
  if (!passed(b, target)) {
    poll_self(Instr::kMbarrierWait, index);
    if (!passed(b, target)) return false;
  }
  acquire_done(b);
  consume(b, target);
  return true;
}

void mbarrier_wait_parity(uint32_t address, uint32_t parity) {
  Machine& m = *machine;
  m.counters.count(Instr::kMbarrierWait);
  const int index = barrier_index(address, Instr::kMbarrierWait);
  Mbarrier& b = m.mbarriers[index];
  const int target = target_phase(b, parity);
  if (passed(b, target)) {
    acquire_done(b);
  } else {
    b.blocked.emplace_back(m.self, target);
    block_self(Instr::kMbarrierWait, index);
    passed(b, target);  // it may have flipped again before this thread looked
  }
  consume(b, target);
}

}  // namespace lowbit::emu
