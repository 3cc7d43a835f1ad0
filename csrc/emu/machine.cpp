// The scheduler: fibers of one CTA in random order, the report of a deadlock, launch().
#include "machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>

namespace lowbit::emu {

Machine* machine = nullptr;

namespace {

// Threads live as long as the process: their fibers are reused by every launch.
std::vector<std::unique_ptr<Thread>>& pool() {
  static std::vector<std::unique_ptr<Thread>> threads;
  return threads;
}

void run_next(jmp_buf& from);

void fiber_main() {
  for (;;) {
    Thread& t = *machine->self;
    try {
      (*machine->kernel)();
      check_exit(t);
      t.state = State::kExited;
      ++machine->exited;
      while (machine->exited < int(machine->threads.size()) && machine->ready.empty()) deadlock();
    } catch (const Violation& violation) {
      machine->failure = violation.what();
    } catch (const std::exception& error) {
      machine->failure = std::string("the kernel threw: ") + error.what();
    }
    if (!machine->failure.empty() || machine->exited == int(machine->threads.size()))
      switch_context(t.fiber.context(), machine->main_context);
    else run_next(t.fiber.context());
  }
}

void run_next(jmp_buf& from) {
  std::vector<Thread*>& ready = machine->ready;
  const size_t i = machine->random() % ready.size();
  Thread* next = ready[i];
  ready[i] = ready.back();
  ready.pop_back();
  machine->self = next;
  if (&next->fiber.context() != &from) next->fiber.enter(from);
}

// Leaves the running fiber until somebody wakes it. `self` is this thread again on return.
void yield() {
  Thread& t = *machine->self;
  if (machine->async_early && !machine->loads.empty() && machine->random() % 32 == 0) land_some_load();
  while (machine->ready.empty()) deadlock();
  run_next(t.fiber.context());
}

}  // namespace

void wake(Thread& t) {
  t.state = State::kReady;
  machine->idle_rounds = 0;
  machine->ready.push_back(&t);
}

void block_self(Instr waiting, int waiting_for) {
  Thread& t = *machine->self;
  t.state = State::kBlocked;
  t.waiting = waiting;
  t.waiting_for = waiting_for;
  yield();
}

void poll_self(Instr waiting, int waiting_for) {
  Thread& t = *machine->self;
  t.state = State::kPolling;
  t.waiting = waiting;
  t.waiting_for = waiting_for;
  yield();
}

// Nobody can run. Bytes in flight land now, at the last moment; else whoever polls looks again; else it is a
// deadlock.
void deadlock() {
  Machine& m = *machine;
  const bool landed = !m.loads.empty();
  if (landed) land_some_load();
  if (!m.ready.empty()) return;
  for (Thread* t : m.threads)
    if (t->state == State::kPolling) {
      t->state = State::kReady;
      m.ready.push_back(t);
    }
  if (landed || (!m.ready.empty() && ++m.idle_rounds < 1000)) return;
  std::map<std::string, std::vector<int>> groups;
  for (const Thread* t : m.threads) {
    std::string what = "have exited";
    if (t->state != State::kExited) {
      what = std::string("wait in ") + name(t->waiting);
      if (t->waiting == Instr::kLdAcquire) what += " for another block, which may not run at the same time";
      if (t->waiting == Instr::kMbarrierWait) {
        const Mbarrier& b = m.mbarriers[t->waiting_for];
        what += " on the mbarrier at shared+" + std::to_string(b.address - m.smem_base) + " (phase " +
                std::to_string(b.phase) + " open, " + std::to_string(b.pending) + " of " +
                std::to_string(b.count) + " arrivals and " + std::to_string(b.tx) + " bytes missing)";
      } else if (t->waiting == Instr::kBarSync) {
        const BlockBarrier& b = m.block_barriers[t->waiting_for];
        what += " " + std::to_string(t->waiting_for) + " (" + std::to_string(b.arrived) + " of " +
                std::to_string(b.expected) + " threads)";
      }
    }
    groups[what].push_back(t->index);
  }
  std::string text;
  for (const auto& [what, who] : groups) {
    text += text.empty() ? "" : "; ";
    text += who.size() == 1 ? "thread " + std::to_string(who[0])
                            : std::to_string(who.size()) + " threads (" + std::to_string(who.front()) +
                                  " .. " + std::to_string(who.back()) + ")";
    text += " " + what;
  }
  throw Violation("block (" + std::to_string(m.block[0]) + ", " + std::to_string(m.block[1]) + ", " +
                  std::to_string(m.block[2]) + "): deadlock: " + text);
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  const Machine& m = *machine;
  std::string where = "block (" + std::to_string(m.block[0]) + ", " + std::to_string(m.block[1]) + ", " +
                      std::to_string(m.block[2]) + ")";
  if (m.self) where += " " + thread_name(*m.self);
  throw Violation(where + ": " + text);
}

std::string thread_name(const Thread& t) {
  return "thread " + std::to_string(t.index) + " (warp " + std::to_string(t.warp) + " lane " +
         std::to_string(t.lane) + ")";
}

std::string agent_name(const Record& r) {
  const int threads = int(machine->threads.size());
  std::string text;
  if (r.agent < threads) text = thread_name(*machine->threads[r.agent]);
  else if (r.agent < threads + kMaxMbarriers) text = "the copy unit";
  else text = "the tensor core of warpgroup " + std::to_string(r.agent - threads - kMaxMbarriers);
  return r.cta == machine->cta ? text : text + " of block " + std::to_string(r.cta);
}

void check_exit(Thread& t) {
  Machine& m = *machine;
  size_t untied = 0;
  for (const CpAsync& op : t.copies) untied += op.barrier < 0;
  if (untied) fail("exits with %zu cp.async not waited for (cp.async.wait_group is missing)", untied);
  if (!t.stores.empty())
    fail("exits with %zu bulk stores not waited for (cp.async.bulk.wait_group is missing)", t.stores.size());
  Warpgroup* group = t.warp / 4 < int(m.warpgroups.size()) ? &m.warpgroups[t.warp / 4] : nullptr;
  if (group && !group->pending.empty())
    fail("exits with %zu wgmma not waited for (wgmma.wait_group is missing)", group->pending.size());
  for (Mailbox* box : {&m.warps[t.warp], group ? &m.warpgroup_boxes[t.warp / 4] : nullptr}) {
    if (!box) continue;
    if (box->arrived) fail("exits in front of %s, where %d other lanes wait", name(box->instr), box->arrived);
    ++box->exited;
  }
}

namespace {

void start_block(const LaunchConfig& c, uint32_t index) {
  Machine& m = *machine;
  m.cta = index;
  m.block[0] = int(index % c.grid_x);
  m.block[1] = int(index / c.grid_x % c.grid_y);
  m.block[2] = int(index / c.grid_x / c.grid_y);
  std::fill(m.smem.begin(), m.smem.end(), uint8_t(0xCD));
  for (Granule& g : m.shadow) {
    g.writes.clear();
    g.reads.clear();
  }
  std::fill(m.barrier_at.begin(), m.barrier_at.end(), int16_t(-1));
  m.mbarriers.clear();
  m.loads.clear();
  m.block_barriers.assign(16, {});
  m.warps.assign(c.block / 32, {});
  m.warpgroup_boxes.assign(c.block / 128, {});
  m.warpgroups.assign(c.block / 128, {});
  for (Mailbox& w : m.warps) w.slots.resize(32), w.present.assign(32, 0);
  for (Mailbox& w : m.warpgroup_boxes) w.slots.resize(128), w.present.assign(128, 0);
  m.exited = m.idle_rounds = 0;
  m.ready = m.threads;
  const ClockRef nothing(new Clock(m.agents()));
  for (Thread* t : m.threads) {
    t->base = nothing;
    t->now = 1;
    t->own_fenced = t->copy_group = t->copy_serial = t->store_group = t->arrivals = 0;
    t->copies.clear();
    t->stores.clear();
    t->log.clear();
    t->spin_address = nullptr;
    t->state = State::kReady;
  }
}

void run_block() {
  Machine& m = *machine;
  run_next(m.main_context);
  m.self = nullptr;
  if (!m.failure.empty()) throw Violation(m.failure);
  for (size_t w = 0; w < m.warps.size(); ++w) flush_logs(m.counters, &m.threads[32 * w]);
  while (!m.loads.empty()) {  // nobody waited: land them, so that their barrier checks still happen
    const int barrier = m.loads.front().barrier;
    const uint32_t address = m.mbarriers[barrier].address - m.smem_base;
    fail("the block exits with bulk copies in flight on the mbarrier at shared+%u", address);
  }
}

void check_config(const LaunchConfig& c, const std::vector<Buffer>& buffers) {
  auto refuse = [](const std::string& text) { throw Violation("launch: " + text); };
  if (c.block < 32 || c.block > 1024 || c.block % 32)
    refuse("block: expected a multiple of 32 up to 1024, got " + std::to_string(c.block));
  if (c.smem_bytes > c.max_smem_bytes)
    refuse("smem_bytes: expected at most " + std::to_string(c.max_smem_bytes) + ", got " +
           std::to_string(c.smem_bytes));
  if (c.grid_x < 1 || c.grid_y < 1 || c.grid_z < 1 || c.grid_y > 65535 || c.grid_z > 65535)
    refuse("grid: expected at least 1, and y, z at most 65535");
  if (c.smem_base_mod % 16 || c.smem_base_mod < 0 || c.smem_base_mod >= 1024)
    refuse("smem_base_mod: expected a multiple of 16 below 1024, got " + std::to_string(c.smem_base_mod));
  for (const Buffer& b : buffers)
    if (b.bytes && !b.data) refuse("buffer " + b.name + " has no data");
}

void prepare(Machine& m, const LaunchConfig& c, const std::vector<Buffer>& buffers) {
  m.random_state = c.seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  for (int i = 0; i < 8; ++i) m.random();
  m.async_early = c.async_early < 0 ? (m.random() >> 20) % 2 : c.async_early;
  // The hardware's window is 256 KiB; any base that leaves room is as good as another.
  const uint32_t rooms = ((1u << 18) - c.smem_bytes - 1024) / 1024;
  m.smem_base = 1024 * (1 + uint32_t(m.random() >> 20) % (rooms > 1 ? rooms - 1 : 1)) + c.smem_base_mod;
  m.smem.resize(c.smem_bytes);
  m.shadow.resize((c.smem_bytes + 15) / 16);
  m.barrier_at.resize((c.smem_bytes + 7) / 8);
  for (const Buffer& b : buffers) {
    GlobalBuffer g{&b, static_cast<uint8_t*>(b.data), static_cast<uint8_t*>(b.data) + b.bytes, {}, {}, {}};
    g.reads.resize(b.bytes);
    if (b.access != Access::kRead) {
      g.writes.resize(b.bytes);
      g.shadow.resize(b.bytes / 16 + 2);
    }
    m.buffers.push_back(std::move(g));
  }
  while (int(pool().size()) < c.block) {
    auto t = std::make_unique<Thread>();
    t->index = int(pool().size());
    t->warp = t->index / 32;
    t->lane = t->index % 32;
    t->fiber.prepare(fiber_main);
    pool().push_back(std::move(t));
  }
  for (int i = 0; i < c.block; ++i) m.threads.push_back(pool()[i].get());
}

Report make_report(const Machine& m) {
  Report r;
  for (int i = 0; i < int(Instr::kCount); ++i) {
    const char* key = name(Instr(i));
    if (m.counters.instructions[i]) r.instructions[key] = m.counters.instructions[i];
    if (m.counters.shared[i].requests) r.shared[key] = m.counters.shared[i];
    if (m.counters.global[i].requests) r.global[key] = m.counters.global[i];
  }
  for (const auto& [key, count] : m.counters.calls) r.instructions[key] = count;
  if (m.counters.wgmma_columns) r.instructions["wgmma.columns"] = m.counters.wgmma_columns;
  for (const GlobalBuffer& b : m.buffers) {
    BufferCount c;
    auto summarise = [](const std::vector<uint32_t>& v, uint64_t& sum, uint32_t& low, uint32_t& high) {
      for (uint32_t x : v) sum += x;
      if (!v.empty())
        low = *std::min_element(v.begin(), v.end()), high = *std::max_element(v.begin(), v.end());
    };
    summarise(b.reads, c.bytes_read, c.read_min, c.read_max);
    summarise(b.writes, c.bytes_written, c.write_min, c.write_max);
    r.buffers[b.spec->name] = c;
  }
  return r;
}

}  // namespace

Report launch(const LaunchConfig& config, const std::vector<Buffer>& buffers,
              const std::function<void()>& kernel) {
  if (machine) throw Violation("launch: the emulator runs one kernel at a time");
  check_config(config, buffers);
  Machine m;
  m.config = &config;
  m.kernel = &kernel;
  machine = &m;
  struct Reset {
    ~Reset() {
      for (Thread* t : machine->threads) {
        t->base = ClockRef();
        if (t->state != State::kExited) t->fiber.prepare(fiber_main);  // abandoned in mid-kernel
        t->state = State::kExited;
      }
      machine = nullptr;
    }
  } reset;
  prepare(m, config, buffers);
  std::vector<uint32_t> order(uint64_t(config.grid_x) * config.grid_y * config.grid_z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = uint32_t(i);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[m.random() % i]);
  for (uint32_t index : order) {
    start_block(config, index);
    run_block();
  }
  return make_report(m);
}

uint32_t dynamic_smem_base() { return machine->smem_base; }
int thread_index() { return machine->self->index; }
int thread_count() { return machine->config->block; }
int block_index(int axis) { return machine->block[axis]; }
int grid_size(int axis) {
  const LaunchConfig& c = *machine->config;
  return axis == 0 ? c.grid_x : axis == 1 ? c.grid_y : c.grid_z;
}
void count_call(const char* name) { ++machine->counters.calls[name]; }

}  // namespace lowbit::emu
