// Warp collectives: the mailbox in which lanes meet, exchanges, matrix loads and mma.
#include <cstring>

#include "../layout/mma_fragment.h"
#include "machine.h"
#include "tensor_sum.h"

namespace lowbit::emu {

Mailbox& my_warp() { return machine->warps[machine->self->warp]; }
Mailbox& my_warpgroup() {
  const size_t group = machine->self->warp / 4;
  if (group >= machine->warpgroup_boxes.size())
    fail("calls a warpgroup instruction, but its warp is in no complete warpgroup of 128 threads");
  return machine->warpgroup_boxes[group];
}

namespace {

// "0-15, 20": the lanes that wait.
std::string who_waits(const Mailbox& box, int first_thread) {
  std::string text;
  for (size_t i = 0; i < box.present.size(); ++i) {
    if (!box.present[i]) continue;
    size_t j = i;
    while (j + 1 < box.present.size() && box.present[j + 1]) ++j;
    text += (text.empty() ? "" : ", ") + std::to_string(first_thread + i) +
            (j > i ? "-" + std::to_string(first_thread + j) : "");
    i = j;
  }
  return text;
}

bool meet(Mailbox& box, int place, int first_thread, Instr instr, uint64_t param, const Slot& slot,
          int waiting_for) {
  const char* kind = box.slots.size() == 32 ? "warp" : "warpgroup";
  if (box.exited) fail("calls %s, but %d threads of its %s have exited", name(instr), box.exited, kind);
  if (box.arrived && box.instr != instr)
    fail("divergent %s: calls %s while threads %s wait in %s", kind, name(instr),
         who_waits(box, first_thread).c_str(), name(box.instr));
  if (box.arrived && box.param != param)
    fail("divergent %s: calls %s with other immediate operands than threads %s", kind, name(instr),
         who_waits(box, first_thread).c_str());
  box.instr = instr;
  box.param = param;
  box.slots[place] = slot;
  box.present[place] = 1;
  if (++box.arrived < int(box.slots.size())) {
    block_self(instr, waiting_for);
    return false;
  }
  box.arrived = 0;
  memset(box.present.data(), 0, box.present.size());
  machine->counters.count(instr);
  for (size_t lane = 0; lane < box.slots.size(); lane += 32)
    flush_logs(machine->counters, &machine->threads[first_thread + lane]);
  return true;
}

void release_others(int first, int count) {
  for (int i = first; i < first + count; ++i)
    if (machine->threads[i] != machine->self) wake(*machine->threads[i]);
}

}  // namespace

bool meet_warp(Instr instr, uint64_t param, Slot slot) {
  const Thread& t = *machine->self;
  return meet(my_warp(), t.lane, 32 * t.warp, instr, param, slot, int(param >> 16));
}
void release_warp() { release_others(32 * machine->self->warp, 32); }

bool meet_warpgroup(Instr instr, uint64_t param, Slot slot) {
  const Thread& t = *machine->self;
  return meet(my_warpgroup(), t.index % 128, t.index / 128 * 128, instr, param, slot, t.warp / 4);
}
void release_warpgroup() { release_others(machine->self->index / 128 * 128, 128); }

namespace {

template <int kElements>
void unpack(int16_t* out, uint32_t word, bool is_signed) {
  constexpr int kBits = 32 / kElements;
  for (int j = 0; j < kElements; ++j) {
    const uint32_t raw = (word >> (kBits * j)) & ((1u << kBits) - 1);
    out[j] = is_signed ? int16_t(int32_t(raw << (32 - kBits)) >> (32 - kBits)) : int16_t(raw);
  }
}

template <int kElements>
void mma_integer(Mailbox& w, bool a_signed, bool b_signed) {
  constexpr int kK = 8 * kElements;
  int16_t a[16][kK], b[8][kK];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* ra = static_cast<const uint32_t*>(w.slots[lane].in0);
    const uint32_t* rb = static_cast<const uint32_t*>(w.slots[lane].in1);
    for (int i = 0; i < 4; ++i)
      unpack<kElements>(&a[fragment::a_row(lane, i)][fragment::a_k(lane, i, 0, kElements)], ra[i], a_signed);
    for (int i = 0; i < 2; ++i)
      unpack<kElements>(&b[fragment::b_col(lane)][fragment::b_k(lane, i, 0, kElements)], rb[i], b_signed);
  }
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t* d = static_cast<uint32_t*>(w.slots[lane].out);
    for (int i = 0; i < 4; ++i) {
      const int16_t *row = a[fragment::d_row(lane, i)], *col = b[fragment::d_col(lane, i)];
      int32_t sum = 0;  // at most 64 * 255 * 255: no overflow; the wrap is in the addition below
      for (int k = 0; k < kK; ++k) sum += int32_t(row[k]) * int32_t(col[k]);
      d[i] += uint32_t(sum);
    }
  }
}

template <int kMantissa>
void mma_float(Mailbox& w, Scaled (*convert)(uint16_t)) {
  Scaled a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* ra = static_cast<const uint32_t*>(w.slots[lane].in0);
    const uint32_t* rb = static_cast<const uint32_t*>(w.slots[lane].in1);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 2; ++j)
        a[fragment::a_row(lane, i)][fragment::a_k(lane, i, j, 2)] = convert(uint16_t(ra[i] >> (16 * j)));
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j)
        b[fragment::b_col(lane)][fragment::b_k(lane, i, j, 2)] = convert(uint16_t(rb[i] >> (16 * j)));
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<float*>(w.slots[lane].out);
    for (int i = 0; i < 4; ++i)
      d[i] = tensor_sum<kMantissa, 16>(a[fragment::d_row(lane, i)], b[fragment::d_col(lane, i)], d[i]);
  }
}

}  // namespace

void mma(Mma kind, void* d, const uint32_t* a, const uint32_t* b) {
  const Instr instr = Instr(int(Instr::kMmaS4) + int(kind));
  if (!meet_warp(instr, 0, {d, a, b})) return;
  Mailbox& w = my_warp();
  switch (kind) {
    case Mma::kS4S4:
      mma_integer<8>(w, true, true);
      break;
    case Mma::kS8S8:
      mma_integer<4>(w, true, true);
      break;
    case Mma::kU8S8:
      mma_integer<4>(w, false, true);
      break;
    case Mma::kS8U8:
      mma_integer<4>(w, true, false);
      break;
    case Mma::kF16F16:
      mma_float<10>(w, scaled_fp16);
      break;
    case Mma::kBf16Bf16:
      mma_float<7>(w, scaled_bf16);
      break;
  }
  release_warp();
}

namespace {

// Runs f as another lane, so that a violation names that lane.
template <class F>
void as_lane(Thread& lane, F f) {
  Thread* self = machine->self;
  machine->self = &lane;
  f(lane);
  machine->self = self;
}

// Calls f(lane, byte of the row, bytes, place in the register) for the lanes that hold row r of an 8 x
// 16-byte matrix.
template <class F>
void each_holder(int r, bool trans, F f) {
  if (!trans)
    for (int q = 0; q < 4; ++q) f(4 * r + q, 4 * q, 4, 0);
  else
    for (int g = 0; g < 8; ++g) f(4 * g + r / 2, 2 * g, 2, 2 * (r % 2));
}

template <bool kStore>
void move_matrix(const void* registers, int matrices, bool trans, uint32_t row) {
  constexpr Instr kInstr = kStore ? Instr::kStmatrix : Instr::kLdmatrix;
  const void* address = reinterpret_cast<const void*>(uintptr_t(row));
  if (!meet_warp(kInstr, uint64_t(matrices) * 2 + trans, {const_cast<void*>(registers), address, nullptr}))
    return;
  Mailbox& w = my_warp();
  Thread* const* lanes = &machine->threads[32 * machine->self->warp];
  uint64_t addresses[32];
  for (int l = 0; l < 8 * matrices; ++l) {
    const uint32_t at = uint32_t(reinterpret_cast<uintptr_t>(w.slots[l].in0));
    addresses[l] = at;
    as_lane(*lanes[l], [&](Thread&) { check_shared_range(at, 16, 16, kInstr); });
    each_holder(l % 8, trans, [&](int lane, int byte, int bytes, int place) {
      uint8_t* r = static_cast<uint8_t*>(w.slots[lane].out) + 4 * (l / 8) + place;
      as_lane(*lanes[lane], [&](Thread& t) {
        if constexpr (kStore) write_shared(t, at + byte, r, bytes, kInstr);
        else read_shared(t, r, at + byte, bytes, kInstr);
      });
    });
  }
  machine->counters.shared_request(kInstr, addresses, 8 * matrices, 16);
  release_warp();
}

}  // namespace

void ldmatrix(uint32_t* r, int matrices, bool trans, uint32_t row) {
  move_matrix<false>(r, matrices, trans, row);
}
void stmatrix(const uint32_t* r, int matrices, bool trans, uint32_t row) {
  check_poisoned_value(r, 4 * matrices, Instr::kStmatrix);
  move_matrix<true>(r, matrices, trans, row);
}

uint32_t shfl(Shfl mode, uint32_t value, int n) {
  uint32_t out = value;
  int from = n;
  if (!meet_warp(Instr::kShfl, uint64_t(mode), {&out, &value, &from})) return out;
  Mailbox& w = my_warp();
  for (int lane = 0; lane < 32; ++lane) {
    const int amount = *static_cast<const int*>(w.slots[lane].in1);
    int source = lane;
    if (mode == Shfl::kXor) source = lane ^ (amount & 31);
    if (mode == Shfl::kIdx) source = amount & 31;
    if (mode == Shfl::kUp && lane - (amount & 31) >= 0) source = lane - (amount & 31);
    if (mode == Shfl::kDown && lane + (amount & 31) < 32) source = lane + (amount & 31);
    memcpy(w.slots[lane].out, w.slots[source].in0, 4);
  }
  release_warp();
  return out;
}

uint32_t redux(const char* op, uint32_t value) {
  uint32_t out = value;
  uint64_t param = 0;
  memcpy(&param, op, 7);  // "add.s32"; the shortest, "or.b32", ends in a zero
  if (!meet_warp(Instr::kRedux, param & 0xffffffffffffull, {&out, &value, nullptr})) return out;
  Mailbox& w = my_warp();
  const std::string which = op;
  uint32_t all = 0;
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t x;
    memcpy(&x, w.slots[lane].in0, 4);
    if (lane == 0) all = x;
    else if (which == "add.s32") all += x;
    else if (which == "max.s32") all = int32_t(x) > int32_t(all) ? x : all;
    else if (which == "min.s32") all = int32_t(x) < int32_t(all) ? x : all;
    else if (which == "max.u32") all = x > all ? x : all;
    else if (which == "or.b32") all |= x;
    else fail("redux.sync.%s is not modelled", op);
  }
  for (int lane = 0; lane < 32; ++lane) memcpy(w.slots[lane].out, &all, 4);
  release_warp();
  return out;
}

uint32_t ballot(bool predicate) {
  uint32_t out = 0, mine = predicate;
  if (!meet_warp(Instr::kVote, 0, {&out, &mine, nullptr})) return out;
  Mailbox& w = my_warp();
  uint32_t all = 0;
  for (int lane = 0; lane < 32; ++lane) all |= *static_cast<const uint32_t*>(w.slots[lane].in0) << lane;
  for (int lane = 0; lane < 32; ++lane) memcpy(w.slots[lane].out, &all, 4);
  release_warp();
  return out;
}

// Which lane is not specified: a random one, the same each time in one launch ("deterministic for a mask").
bool elect_sync() {
  const int elected = int(machine->config->seed * 7 % 32);
  if (meet_warp(Instr::kElect, 0, {})) release_warp();
  return machine->self->lane == elected;
}

// Registers are not modelled: only that the warp does it together.
void setmaxnreg(int registers, bool increase) {
  if (meet_warp(Instr::kSetmaxnreg, uint64_t(registers) * 2 + increase, {})) release_warp();
}

void syncwarp() {
  if (!meet_warp(Instr::kSyncwarp, 0, {})) return;
  join(&machine->threads[32 * machine->self->warp], 32);
  release_warp();
}

}  // namespace lowbit::emu
