// Global memory: registered buffers only, bounds, alignment, races inside and between CTAs, read and write
// counts per byte.
#include <cstring>

#include "machine.h"

namespace lowbit::emu {

GlobalBuffer& find_buffer(const void* p, uint64_t bytes, Instr instr, bool write) {
  Machine& m = *machine;
  const uint8_t* at = static_cast<const uint8_t*>(p);
  GlobalBuffer* b = m.last_buffer;
  if (!b || at < b->begin || at >= b->end) {
    b = nullptr;
    for (GlobalBuffer& candidate : m.buffers)
      if (at >= candidate.begin && at < candidate.end) b = &candidate;
  }
  if (!b || at + bytes > b->end) {
    const GlobalBuffer* near = b;
    for (const GlobalBuffer& c : m.buffers)
      if (!near && at + 4096 >= c.begin && at < c.end + 4096) near = &c;
    if (near)
      fail("%s of %llu bytes at %s%+lld is out of bounds: the buffer has %zu bytes", name(instr),
           static_cast<unsigned long long>(bytes), near->spec->name.c_str(),
           static_cast<long long>(at - near->begin), near->spec->bytes);
    fail("%s of %llu bytes at %p is in no registered buffer", name(instr),
         static_cast<unsigned long long>(bytes), p);
  }
  m.last_buffer = b;
  if (write && b->spec->access == Access::kRead)
    fail("%s writes %s+%lld, which is registered as read-only", name(instr), b->spec->name.c_str(),
         static_cast<long long>(at - b->begin));
  return *b;
}

// For counting sectors: device allocations start on 256 bytes, numpy's on 16.
uint64_t device_address(const void* p) {
  const GlobalBuffer* b = machine->last_buffer;
  return (uint64_t(b - machine->buffers.data() + 1) << 40) + reinterpret_cast<uint64_t>(b->begin) % 16 +
         uint64_t(static_cast<const uint8_t*>(p) - b->begin);
}

namespace {

uint8_t atomic_flag(Instr instr) {
  return instr == Instr::kRed || instr == Instr::kAtom || instr == Instr::kLdAcquire ||
                 instr == Instr::kStRelease
             ? kAtomic
             : 0;
}

// Calls f(place, first byte, bytes) for each 16-byte granule of the range.
template <class F>
void each_granule(GlobalBuffer& b, const uint8_t* at, uint32_t bytes, F f) {
  const uint64_t lead = reinterpret_cast<uint64_t>(b.begin) % 16;
  uint64_t offset = uint64_t(at - b.begin);
  while (bytes) {
    const uint32_t in = uint32_t((offset + lead) % 16), n = bytes < 16 - in ? bytes : 16 - in;
    f(Place{&b.shadow[(offset + lead) / 16], uint16_t(((1u << n) - 1) << in), offset - in,
            b.spec->name.c_str()});
    offset += n;
    bytes -= n;
  }
}

}  // namespace

void read_global(Thread& t, void* value, const void* p, uint32_t bytes, Instr instr, const Record* as) {
  GlobalBuffer& b = find_buffer(p, bytes, instr, false);
  const uint8_t* at = static_cast<const uint8_t*>(p);
  uint32_t* reads = b.reads.data() + (at - b.begin);
  for (uint32_t i = 0; i < bytes; ++i) ++reads[i];
  if (!b.shadow.empty()) {
    const uint8_t flags = atomic_flag(instr);
    const bool must_be_written = b.spec->access == Access::kWrite;
    each_granule(b, at, bytes, [&](const Place& place) {
      check_read(t, place, instr, false, must_be_written, flags);
      Record r = as ? *as : record_of(t, place.mask, instr, flags);
      r.mask = place.mask;
      note_read(t, place, r);
    });
  }
  memcpy(value, p, bytes);
}

void write_global(Thread& t, void* p, const void* value, uint32_t bytes, Instr instr) {
  GlobalBuffer& b = find_buffer(p, bytes, instr, true);
  uint8_t* at = static_cast<uint8_t*>(p);
  uint32_t* writes = b.writes.data() + (at - b.begin);
  for (uint32_t i = 0; i < bytes; ++i) ++writes[i];
  const uint8_t flags = atomic_flag(instr);
  each_granule(b, at, bytes, [&](const Place& place) {
    check_write(t, place, instr, false, flags);
    note_write(place, record_of(t, place.mask, instr, flags));
  });
  memcpy(p, value, bytes);
}

namespace {

void check_aligned(const void* p, int bytes, Instr instr) {
  if (reinterpret_cast<uint64_t>(p) % uint64_t(bytes) == 0) return;
  const GlobalBuffer& b = find_buffer(p, 1, instr, false);
  fail("%s of %d bytes at %s+%lld is misaligned: expected a multiple of %d", name(instr), bytes,
       b.spec->name.c_str(), static_cast<long long>(static_cast<const uint8_t*>(p) - b.begin), bytes);
}

}  // namespace

__attribute__((noinline)) void ld_global(void* value, const void* p, int bytes) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kLdGlobal);
  check_aligned(p, bytes, Instr::kLdGlobal);
  read_global(t, value, p, bytes, Instr::kLdGlobal);
  t.log.push_back({__builtin_return_address(0), device_address(p), Instr::kLdGlobal, true, uint8_t(bytes)});
}

__attribute__((noinline)) void st_global(void* p, const void* value, int bytes) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kStGlobal);
  check_aligned(p, bytes, Instr::kStGlobal);
  check_poisoned_value(value, bytes, Instr::kStGlobal);
  write_global(t, p, value, bytes, Instr::kStGlobal);
  t.log.push_back({__builtin_return_address(0), device_address(p), Instr::kStGlobal, true, uint8_t(bytes)});
}

}  // namespace lowbit::emu
