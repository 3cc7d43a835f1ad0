// Happens-before: who has seen what.
#include <cstring>

#include "machine.h"

namespace lowbit::emu {

bool sees(const Thread& t, const Record& r) {
  if (r.cta != machine->cta) {
    if (!t.base->foreign) return false;
    for (const auto& [cta, clock] : *t.base->foreign)
      if (cta == r.cta) return clock->seen(r.agent) >= r.clock;
    return false;
  }
  return r.agent == t.index || t.base->seen(r.agent) >= r.clock;
}

bool sees_async(const Thread& t, const Record& r) {
  if (r.flags & kAsyncProxy) return sees(t, r);
  if (r.cta != machine->cta) return sees(t, r);
  if (r.agent == t.index) return t.own_fenced >= r.clock;
  return t.base->seen(r.agent) >= r.clock && t.base->fenced(r.agent) >= r.clock;
}

void join(Thread* const* threads, int count) {
  ClockRef all(new Clock(*threads[0]->base));
  const Clock* last = threads[0]->base.get();
  for (int i = 1; i < count; ++i) {
    const Clock* base = threads[i]->base.get();
    if (base != last) all->join(*base);
    last = base;
  }
  for (int i = 0; i < count; ++i) {
    Thread& t = *threads[i];
    all->seen(t.index) = t.now++;
    all->fenced(t.index) = t.own_fenced;
  }
  for (int i = 0; i < count; ++i) threads[i]->base = all;
}

ClockRef release(Thread& t) {
  ClockRef clock(new Clock(*t.base));
  clock->seen(t.index) = t.now++;
  clock->fenced(t.index) = t.own_fenced;
  return clock;
}

void acquire(Thread& t, const ClockRef& clock) {
  ClockRef joined(new Clock(*t.base));
  joined->join(*clock);
  t.base = joined;
}

Record record_of(const Thread& t, uint16_t mask, Instr instr, uint8_t flags) {
  return {t.now, machine->cta, uint16_t(t.index), mask, flags, instr};
}

void fence_proxy_async() {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kFenceProxyAsync);
  t.own_fenced = t.now++;
  for (Mbarrier& b : machine->mbarriers)
    if (b.init.agent == t.index) b.init_fenced = true;
}

void fence_mbarrier_init() {
  machine->counters.count(Instr::kFenceMbarrierInit);
  for (Mbarrier& b : machine->mbarriers)
    if (b.init.agent == machine->self->index) b.init_fenced = true;
}

// Alone it orders nothing here: the tickets of memory.h are acq_rel themselves.
void threadfence() { machine->counters.count(Instr::kThreadfence); }

namespace {

Foreign& ticket(const void* p) {
  for (auto& [address, released] : machine->tickets)
    if (address == p) return released;
  machine->tickets.emplace_back(p, Foreign());
  return machine->tickets.back().second;
}

void acquire_ticket(Thread& t, const Foreign& released) {
  if (released.empty()) return;
  ClockRef base(new Clock(*t.base));
  base->join_foreign(released);
  for (const auto& [cta, clock] : released)
    if (cta == machine->cta) base->join(*clock);
  t.base = base;
}

void release_ticket(Thread& t, Foreign& released) {
  const ClockRef clock = release(t);
  Clock merged(0);
  merged.foreign = std::make_shared<const Foreign>(released);
  merged.join_foreign({{machine->cta, clock}});
  if (clock->foreign) merged.join_foreign(*clock->foreign);
  released = *merged.foreign;
}

}  // namespace

uint32_t atom_add_acq_rel_global_u32(uint32_t* p, uint32_t value) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kAtom);
  uint32_t old;
  read_global(t, &old, p, 4, Instr::kAtom);
  acquire_ticket(t, ticket(p));
  const uint32_t sum = old + value;
  write_global(t, p, &sum, 4, Instr::kAtom);
  release_ticket(t, ticket(p));
  return old;
}

uint32_t ld_acquire_global_u32(const uint32_t* p) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kLdAcquire);
  uint32_t value;
  // The same value again: it spins. Others go first; nobody left is a deadlock.
  find_buffer(p, 4, Instr::kLdAcquire, false);
  memcpy(&value, p, 4);
  if (t.spin_address == p && t.spin_value == value) poll_self(Instr::kLdAcquire, -1);
  read_global(t, &value, p, 4, Instr::kLdAcquire);
  t.spin_address = p;
  t.spin_value = value;
  acquire_ticket(t, ticket(p));
  return value;
}

void st_release_global_u32(uint32_t* p, uint32_t value) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kStRelease);
  write_global(t, p, &value, 4, Instr::kStRelease);
  release_ticket(t, ticket(p));
}

__attribute__((noinline)) void red_add_global_s32(int32_t* p, int32_t value) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kRed);
  check_poisoned_value(&value, 4, Instr::kRed);
  int32_t old;
  read_global(t, &old, p, 4, Instr::kRed);
  const int32_t sum = int32_t(uint32_t(old) + uint32_t(value));
  write_global(t, p, &sum, 4, Instr::kRed);
  t.log.push_back({__builtin_return_address(0), device_address(p), Instr::kRed, true, 4});
}

}  // namespace lowbit::emu
