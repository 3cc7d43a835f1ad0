// Shared memory: bounds, alignment, races, initialised bytes.
#include <cstring>

#include "machine.h"

namespace lowbit::emu {

void check_shared_range(uint32_t address, uint32_t bytes, uint32_t alignment, Instr instr) {
  const Machine& m = *machine;
  const long long offset = static_cast<long long>(address) - m.smem_base;
  if (offset < 0 || offset + bytes > static_cast<long long>(m.smem.size()))
    fail("%s of %u bytes at shared%+lld is out of bounds: the block has %zu bytes of dynamic shared memory",
         name(instr), bytes, offset, m.smem.size());
  if (address % alignment)
    fail("%s of %u bytes at shared+%lld (absolute 0x%x) is misaligned: expected a multiple of %u",
         name(instr), bytes, offset, address, alignment);
}

Place shared_place(uint32_t address, int bytes, Instr instr) {
  Machine& m = *machine;
  check_shared_range(address, bytes, bytes, instr);
  const uint32_t offset = address - m.smem_base;
  const uint16_t mask = uint16_t(((1u << bytes) - 1) << (address % 16));
  if (!m.mbarriers.empty() && m.barrier_at[offset / 8] >= 0)
    fail("%s touches the live mbarrier at shared+%u", name(instr), offset / 8 * 8);
  if (bytes == 16 && !m.mbarriers.empty() && m.barrier_at[offset / 8 + 1] >= 0)
    fail("%s touches the live mbarrier at shared+%u", name(instr), offset / 8 * 8 + 8);
  return {&m.shadow[offset / 16], mask, offset, "shared memory"};
}

uint8_t* shared_bytes(uint32_t address) { return machine->smem.data() + (address - machine->smem_base); }

void read_shared(Thread& t, void* value, uint32_t address, int bytes, Instr instr) {
  const Place p = shared_place(address, bytes, instr);
  check_read(t, p, instr, false, true);
  note_read(t, p, record_of(t, p.mask, instr));
  memcpy(value, shared_bytes(address), bytes);
}

void write_shared(Thread& t, uint32_t address, const void* value, int bytes, Instr instr) {
  const Place p = shared_place(address, bytes, instr);
  check_write(t, p, instr, false);
  note_write(p, record_of(t, p.mask, instr));
  memcpy(shared_bytes(address), value, bytes);
}

// The async proxy starts to write: checked as the issuing thread, poison until it lands.
void write_shared_async(const Thread& t, uint32_t address, int bytes, Instr instr, const Record& r) {
  const Place p = shared_place(address, bytes, instr);
  check_write(t, p, instr, true);
  Record mine = r;
  mine.mask = p.mask;
  note_write(p, mine);
  for (int i = 0; i < bytes; i += 4) memcpy(shared_bytes(address) + i, &kPoison, 4);
}

void check_poisoned_value(const void* value, int bytes, Instr instr) {
  const Machine& m = *machine;
  const size_t group = m.self->warp / 4;
  if (group >= m.warpgroups.size() || m.warpgroups[group].pending.empty()) return;
  for (int i = 0; i + 4 <= bytes; i += 4) {
    uint32_t word;
    memcpy(&word, static_cast<const char*>(value) + i, 4);
    if (word == kPoison || word == kPoisonOperand)
      fail("%s takes a register of a wgmma in flight: the accumulator is read before wgmma.wait_group",
           name(instr));
  }
}

__attribute__((noinline)) void ld_shared(void* value, uint32_t address, int bytes) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kLdShared);
  read_shared(t, value, address, bytes, Instr::kLdShared);
  t.log.push_back({__builtin_return_address(0), address, Instr::kLdShared, false, uint8_t(bytes)});
}

__attribute__((noinline)) void st_shared(uint32_t address, const void* value, int bytes) {
  Thread& t = *machine->self;
  machine->counters.count(Instr::kStShared);
  check_poisoned_value(value, bytes, Instr::kStShared);
  write_shared(t, address, value, bytes, Instr::kStShared);
  t.log.push_back({__builtin_return_address(0), address, Instr::kStShared, false, uint8_t(bytes)});
}

}  // namespace lowbit::emu
