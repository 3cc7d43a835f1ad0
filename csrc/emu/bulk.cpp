// TMA and bulk copies. A load is in flight until every thread waits (or a random earlier moment); a store
// until its wait.
#include <algorithm>
#include <cstring>

#include "../layout/swizzle.h"
#include "machine.h"

namespace lowbit::emu {

namespace {

int width_of(const TensorMap& map) { return map.swizzle ? 16 << map.swizzle : 0; }

// The 16-byte chunks of a box (or of a plain run of bytes, rows = 0) in shared memory: f(address, row, byte
// in the row).
template <class F>
void each_chunk(const TensorMap& map, uint32_t shared, uint32_t bytes, F f) {
  const uint32_t rows = map.rows ? map.box_rows : 1, row_bytes = map.rows ? map.box_bytes : bytes;
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t c = 0; c < row_bytes; c += 16)
      f(swizzle::apply(shared + r * row_bytes + c, width_of(map)), int(r), int(c));
}

// The part of box row r that lies in the matrix: f(address, first byte in the row of the box, bytes).
template <class F>
void in_bounds(const TensorMap& map, int x, int y, int r, F f) {
  const int64_t row = int64_t(y) + r;
  if (row < 0 || row >= int64_t(map.rows)) return;
  const int64_t first = std::max<int64_t>(x, 0);
  const int64_t last = std::min<int64_t>(int64_t(x) + map.box_bytes, int64_t(map.row_bytes));
  if (first < last)
    f(static_cast<uint8_t*>(const_cast<void*>(map.pointer)) + row * int64_t(map.pitch_bytes) + first,
      int(first - x), uint32_t(last - first));
}

void count_global(Instr instr, const void* p, uint32_t bytes) {
  MemoryCount& m = machine->counters.global[size_t(instr)];
  const uint64_t at = device_address(p);
  ++m.requests;
  m.bytes += bytes;
  m.actual += (at + bytes - 1) / 32 - at / 32 + 1;
  m.ideal += (bytes + 31) / 32;
}

void start_load(BulkLoad load, uint32_t barrier, Instr instr) {
  Machine& m = *machine;
  m.counters.count(instr);
  load.barrier = barrier_index(barrier, instr);
  load.thread = m.self->index;
  load.copy_arrival = false;
  Mbarrier& b = m.mbarriers[load.barrier];
  if (!b.init_fenced)
    fail("%s: the mbarrier at shared+%u was initialised without fence.mbarrier_init", name(instr),
         barrier - m.smem_base);
  load.phase = b.phase;
  ++b.in_flight;
  Record r = record_of(*m.self, 0, instr, kAsyncProxy);
  r.agent = uint16_t(m.barrier_agent(load.barrier));
  r.clock = uint32_t(b.phase) + 1;
  each_chunk(load.map, load.dst, load.bytes,
             [&](uint32_t address, int, int) { write_shared_async(*m.self, address, 16, instr, r); });
  m.loads.push_back(load);
}

void land_bulk_load(const BulkLoad& load) {
  Machine& m = *machine;
  Thread& t = *m.threads[load.thread];
  // The global bytes have been read once the phase is over: an in-place kernel may then write them.
  const Record as{uint32_t(load.phase) + 1,
                  m.cta,
                  uint16_t(m.barrier_agent(load.barrier)),
                  0,
                  kAsyncProxy,
                  load.map.rows ? Instr::kTmaLoad : Instr::kBulkLoad};
  if (!load.map.rows) {
    std::vector<uint8_t> data(load.bytes);
    read_global(t, data.data(), load.src, load.bytes, Instr::kBulkLoad, &as);
    count_global(Instr::kBulkLoad, load.src, load.bytes);
    memcpy(shared_bytes(load.dst), data.data(), load.bytes);
    return;
  }
  std::vector<uint8_t> box(size_t(load.map.box_rows) * load.map.box_bytes);
  for (uint32_t r = 0; r < load.map.box_rows; ++r)
    in_bounds(load.map, load.x, load.y, int(r), [&](uint8_t* p, int first, uint32_t bytes) {
      read_global(t, &box[r * load.map.box_bytes + first], p, bytes, Instr::kTmaLoad, &as);
      count_global(Instr::kTmaLoad, p, bytes);
    });
  each_chunk(load.map, load.dst, load.bytes, [&](uint32_t address, int r, int c) {
    memcpy(shared_bytes(address), &box[size_t(r) * load.map.box_bytes + c], 16);
  });
}

}  // namespace

void land_some_load() {
  Machine& m = *machine;
  const size_t i = (m.random() >> 20) % m.loads.size();
  const BulkLoad load = m.loads[i];
  m.loads.erase(m.loads.begin() + long(i));
  Thread* self = m.self;
  m.self = m.threads[load.thread];
  if (load.copy_arrival) {
    land_copy_arrival(load);
  } else {
    land_bulk_load(load);
    complete_tx(m.mbarriers[load.barrier], load.phase, load.bytes);
  }
  m.self = self;
}

void tma_load_2d(uint32_t dst, const TensorMap& map, int x, int y, uint32_t barrier) {
  const uint32_t bytes = map.box_rows * map.box_bytes;
  check_shared_range(dst, bytes, 128, Instr::kTmaLoad);
  start_load({map, x, y, nullptr, dst, bytes, 0, 0, 0, false}, barrier, Instr::kTmaLoad);
}

void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t barrier) {
  check_shared_range(dst, bytes, 16, Instr::kBulkLoad);
  find_buffer(src, bytes, Instr::kBulkLoad, false);
  if (bytes % 16 || bytes == 0 || reinterpret_cast<uint64_t>(src) % 16)
    fail("cp.async.bulk.load of %u bytes: size and source address must be multiples of 16", bytes);
  start_load({{}, 0, 0, static_cast<const uint8_t*>(src), dst, bytes, 0, 0, 0, false}, barrier,
             Instr::kBulkLoad);
}

namespace {

void start_store(BulkStore store, Instr instr) {
  Machine& m = *machine;
  Thread& t = *m.self;
  m.counters.count(instr);
  store.group = t.store_group;
  each_chunk(store.map, store.src, store.bytes, [&](uint32_t address, int, int) {
    const Place p = shared_place(address, 16, instr);
    check_read(t, p, instr, true, true);
    note_read(t, p, record_of(t, p.mask, instr, kAsyncProxy | kPending));
  });
  t.stores.push_back(store);
}

void finish_store(Thread& t, const BulkStore& store) {
  Machine& m = *machine;
  const Instr instr = store.map.rows ? Instr::kTmaStore : Instr::kBulkStore;
  const uint32_t row_bytes = store.map.rows ? store.map.box_bytes : store.bytes;
  std::vector<uint8_t> box(store.bytes);
  each_chunk(store.map, store.src, store.bytes, [&](uint32_t address, int r, int c) {
    memcpy(&box[size_t(r) * row_bytes + c], shared_bytes(address), 16);
    for (Record& record : m.shadow[(address - m.smem_base) / 16].reads) {
      if (record.agent != t.index || !(record.flags & kPending)) continue;
      record.flags = 0;
      record.clock = t.now;
    }
  });
  auto write = [&](uint8_t* p, const uint8_t* data, uint32_t bytes) {
    write_global(t, p, data, bytes, instr);
    count_global(instr, p, bytes);
  };
  if (!store.map.rows) return write(store.dst, box.data(), store.bytes);
  for (uint32_t r = 0; r < store.map.box_rows; ++r)
    in_bounds(store.map, store.x, store.y, int(r),
              [&](uint8_t* p, int first, uint32_t bytes) { write(p, &box[r * row_bytes + first], bytes); });
}

}  // namespace

void tma_store_2d(const TensorMap& map, int x, int y, uint32_t src) {
  const uint32_t bytes = map.box_rows * map.box_bytes;
  if (x < 0 || y < 0) fail("cp.async.bulk.tensor.store: expected coordinates >= 0, got {%d, %d}", x, y);
  check_shared_range(src, bytes, 128, Instr::kTmaStore);
  find_buffer(map.pointer, 1, Instr::kTmaStore, true);
  start_store({map, x, y, nullptr, src, bytes, 0}, Instr::kTmaStore);
}

void bulk_store(void* dst, uint32_t src, uint32_t bytes) {
  check_shared_range(src, bytes, 16, Instr::kBulkStore);
  find_buffer(dst, bytes, Instr::kBulkStore, true);
  if (bytes % 16 || bytes == 0 || reinterpret_cast<uint64_t>(dst) % 16)
    fail("cp.async.bulk.store of %u bytes: size and destination address must be multiples of 16", bytes);
  start_store({{}, 0, 0, static_cast<uint8_t*>(dst), src, bytes, 0}, Instr::kBulkStore);
}

void bulk_commit_group() {
  machine->counters.count(Instr::kBulkCommit);
  ++machine->self->store_group;
}

// `.read` only promises that the source is free; the emulator writes the destination at the same moment.
void bulk_wait_group(int pending, bool) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kBulkWait);
  size_t kept = 0;
  for (size_t i = 0; i < t.stores.size(); ++i) {
    if (t.stores[i].group + uint32_t(pending) < t.store_group) finish_store(t, t.stores[i]);
    else t.stores[kept++] = t.stores[i];
  }
  t.stores.resize(kept);
}

}  // namespace lowbit::emu
