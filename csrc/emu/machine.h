// The state of one launch: threads, warps, barriers, shadow memory. Internal to emu/.
#pragma once

#include <string>
#include <vector>

#include "api.h"
#include "clock.h"
#include "counters.h"
#include "fiber.h"
#include "launch.h"

namespace lowbit::emu {

constexpr uint32_t kPoison = 0xBAD1BEEFu;         // bytes in flight, wgmma registers in flight
constexpr uint32_t kPoisonOperand = 0xBAD2BEEFu;  // A registers of a wgmma in flight

// One access that later ones must be ordered after: by whom, when, which bytes of a 16-byte granule.
struct Record {
  uint32_t clock;
  uint32_t cta;
  uint16_t agent;
  uint16_t mask;
  uint8_t flags;
  Instr instr;
};
enum : uint8_t {
  kAsyncProxy = 1,  // done by the TMA unit or the tensor core
  kAtomic = 2,
  kPending = 4,  // in flight until its own thread waits; clock not yet known
};

struct Granule {
  std::vector<Record> writes, reads;
};

struct CpAsync {
  uint32_t dst;
  const uint8_t* src;
  int bytes, src_bytes;
  uint32_t group, serial;
  int barrier;  // >= 0: an mbarrier that cp.async.mbarrier.arrive tied it to
};

struct BulkStore {
  TensorMap map;  // rows = 0: one-dimensional
  int x, y;
  uint8_t* dst;
  uint32_t src, bytes, group;
};

enum class State : uint8_t { kReady, kBlocked, kPolling, kExited };

struct Thread {
  Fiber fiber;
  int index = 0, lane = 0, warp = 0;
  State state = State::kExited;
  Instr waiting = Instr::kCount;
  int waiting_for = -1;  // barrier id or index, for the report of a deadlock

  ClockRef base;            // what this thread knows of others
  uint32_t now = 1;         // its own clock; grows at each release
  uint32_t own_fenced = 0;  // its writes up to here are visible to the async proxy

  std::vector<CpAsync> copies;
  uint32_t copy_group = 0, copy_serial = 0;  // committed groups; cp.async so far
  std::vector<BulkStore> stores;
  uint32_t store_group = 0;
  uint32_t arrivals = 0;               // mbarrier arrives so far
  const void* spin_address = nullptr;  // of the last ld.acquire, and what it read
  uint32_t spin_value = 0;
  std::vector<AccessEntry> log;
};

struct Slot {
  void* out;
  const void* in0;
  const void* in1;
};

// Where the lanes of a warp, or the threads of a warpgroup, meet.
struct Mailbox {
  Instr instr = Instr::kCount;
  uint64_t param = 0;
  int arrived = 0, exited = 0;
  std::vector<uint8_t> present;
  std::vector<Slot> slots;
};

struct BlockBarrier {
  int expected = 0, arrived = 0;
  std::vector<Thread*> waiting;
  ClockRef arrived_clock;  // what the bar.arrive callers released
};

struct Mbarrier {
  uint32_t address = 0;
  bool live = false, init_fenced = false;
  int count = 0, pending = 0;
  int64_t tx = 0;
  int phase = 0;  // the phase now open; completed ones are phase - 1 and older
  Record init{};
  ClockRef gathering, done;  // releases of the open phase; of the last completed one
  ClockRef memo_in, memo_out;
  struct Waiter {
    int seen = -2;               // last phase waited for; -2: never
    int arrived_phase = -1;      // last phase arrived in
    uint32_t arrivals_then = 0;  // the thread's arrivals at that wait
  };
  std::vector<Waiter> waiters;
  std::vector<std::pair<Thread*, int>> blocked;
  int in_flight = 0;  // bulk loads issued in the open phase and not landed
};

struct BulkLoad {
  TensorMap map;  // rows = 0: one-dimensional
  int x, y;
  const uint8_t* src;
  uint32_t dst, bytes;
  int barrier, phase;
  int thread;
  bool copy_arrival;  // not a load: a cp.async.mbarrier.arrive.noinc of `thread`; bytes = its cp.async before
};

struct WgmmaOp {
  Mma kind;
  int n;
  uint64_t descriptor;
  bool scale_d;
  uint32_t group;
  std::vector<uint32_t*> d;
  std::vector<uint32_t*> a;
};

// Registers that the tensor core holds: their values, while the kernel's own copy is poison.
struct HeldRegisters {
  std::vector<uint32_t*> where;  // per thread
  int each;                      // registers per thread
  int holders;                   // wgmmas in flight that use them
  std::vector<uint32_t> values;
};

struct Warpgroup {
  bool fenced = false;
  uint32_t committed = 0;
  std::vector<WgmmaOp> pending;
  std::vector<HeldRegisters> accumulators, operands;
};

struct GlobalBuffer {
  const Buffer* spec;
  uint8_t *begin, *end;
  std::vector<uint32_t> reads, writes;  // per byte
  std::vector<Granule> shadow;          // writable buffers only
};

struct Machine {
  const LaunchConfig* config = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<GlobalBuffer> buffers;
  GlobalBuffer* last_buffer = nullptr;
  std::vector<std::pair<const void*, Foreign>> tickets;  // atomics that release and acquire
  Counters counters;

  // The CTA now running.
  uint32_t cta = 0;
  int block[3] = {0, 0, 0};
  uint32_t smem_base = 0;
  std::vector<uint8_t> smem;
  std::vector<Granule> shadow;      // per 16 bytes of smem
  std::vector<int16_t> barrier_at;  // per 8 bytes of smem: live mbarrier, or -1
  std::vector<Thread*> threads;
  std::vector<Mailbox> warps, warpgroup_boxes;
  std::vector<Warpgroup> warpgroups;
  std::vector<BlockBarrier> block_barriers;
  std::vector<Mbarrier> mbarriers;
  std::vector<BulkLoad> loads;  // in flight
  int exited = 0, idle_rounds = 0;
  bool async_early = false;

  // The scheduler.
  jmp_buf main_context;
  std::vector<Thread*> ready;
  Thread* self = nullptr;
  std::string failure;
  uint64_t random_state = 1;

  uint64_t random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
  }
  int agents() const { return int(threads.size()) + kMaxMbarriers + kMaxWarpgroups; }
  int barrier_agent(int i) const { return int(threads.size()) + i; }
  int warpgroup_agent(int i) const { return int(threads.size()) + kMaxMbarriers + i; }
};

extern Machine* machine;

// machine.cpp: the scheduler and the words.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string thread_name(const Thread& t);
std::string agent_name(const Record& r);
void block_self(Instr waiting, int waiting_for = -1);
void poll_self(Instr waiting, int waiting_for);
void wake(Thread& t);
void deadlock();
void check_exit(Thread& t);

// Collectives (warp.cpp). True in the last lane to arrive, which does the work for all and then calls
// release_*.
bool meet_warp(Instr instr, uint64_t param, Slot slot);
void release_warp();
bool meet_warpgroup(Instr instr, uint64_t param, Slot slot);
void release_warpgroup();
Mailbox& my_warp();
Mailbox& my_warpgroup();

// Order (order.cpp).
bool sees(const Thread& t, const Record& r);
bool sees_async(const Thread& t, const Record& r);
void join(Thread* const* threads, int count);  // all of them release and acquire
ClockRef release(Thread& t);
void acquire(Thread& t, const ClockRef& clock);
Record record_of(const Thread& t, uint16_t mask, Instr instr, uint8_t flags = 0);

// Shadow (shadow.cpp). Address ranges of at most 16 bytes inside one granule; `what` of the message is the
// instr.
struct Place {
  Granule* granule;
  uint16_t mask;
  uint64_t offset;    // in shared memory or in the buffer
  const char* space;  // "shared" or the buffer's name
};
void check_read(const Thread& t, const Place& p, Instr instr, bool async, bool must_be_written,
                uint8_t flags = 0);
void check_write(const Thread& t, const Place& p, Instr instr, bool async, uint8_t flags = 0);
void note_read(const Thread& t, const Place& p, const Record& r);
void note_write(const Place& p, const Record& r);

// Memory (shared.cpp, global.cpp).
Place shared_place(uint32_t address, int bytes, Instr instr);
uint8_t* shared_bytes(uint32_t address);
void check_shared_range(uint32_t address, uint32_t bytes, uint32_t alignment, Instr instr);
void read_shared(Thread& t, void* value, uint32_t address, int bytes, Instr instr);
void write_shared(Thread& t, uint32_t address, const void* value, int bytes, Instr instr);
void write_shared_async(const Thread& t, uint32_t address, int bytes, Instr instr, const Record& r);
GlobalBuffer& find_buffer(const void* p, uint64_t bytes, Instr instr, bool write);
uint64_t device_address(const void* p);  // of the buffer that was last found
// `as`: the read counts as done by that agent at that time, not by t now.
void read_global(Thread& t, void* value, const void* p, uint32_t bytes, Instr instr,
                 const Record* as = nullptr);
void write_global(Thread& t, void* p, const void* value, uint32_t bytes, Instr instr);
void check_poisoned_value(const void* value, int bytes, Instr instr);

// Async engines (barriers.cpp, copies.cpp, bulk.cpp).
int barrier_index(uint32_t address, Instr instr);
void complete_tx(Mbarrier& b, int phase, uint32_t bytes);
void arrive_for_copy(Mbarrier& b, const ClockRef& clock);
void land_cp_async(Thread& t, const CpAsync& op);
void land_copy_arrival(const BulkLoad& arrival);
void land_some_load();

}  // namespace lowbit::emu
