// wgmma: from issue until the wait that covers it the registers are poison, the operand bytes are being read;
// the sums are computed at that wait, from what shared memory holds then.
#include <algorithm>
#include <cstring>

#include "../layout/mma_fragment.h"
#include "../layout/swizzle.h"
#include "machine.h"
#include "tensor_sum.h"

namespace lowbit::emu {

namespace {

Warpgroup& my_group() { return machine->warpgroups[machine->self->warp / 4]; }
Thread* const* group_threads() { return &machine->threads[machine->self->index / 128 * 128]; }

// The 16-byte chunk `c` (0 or 1) of row n of the operand that the descriptor names.
uint32_t chunk_address(uint64_t descriptor, int n, int c) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, leading = uint32_t(descriptor >> 16 & 0x3fff)
                                                                       << 4;
  const uint32_t stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  const int mode = int(descriptor >> 62);
  if (mode == 0) return start + uint32_t(n / 8) * stride + uint32_t(n % 8) * 16 + uint32_t(c) * leading;
  const int width = 256 >> mode;  // 1: 128 B, 2: 64 B, 3: 32 B
  return swizzle::apply(start + uint32_t(n / 8) * stride + uint32_t(n % 8 * width) + uint32_t(c) * 16, width);
}

HeldRegisters* find_held(std::vector<HeldRegisters>& list, const uint32_t* first) {
  for (HeldRegisters& h : list)
    if (h.where[0] == first) return &h;
  return nullptr;
}

bool intact(const HeldRegisters& h, uint32_t poison) {
  for (const uint32_t* w : h.where)
    for (int i = 0; i < h.each; ++i)
      if (w[i] != poison) return false;
  return true;
}

// Takes the registers away from the kernel, or adds one more user to registers already taken.
void hold(std::vector<HeldRegisters>& list, const std::vector<uint32_t*>& where, int each, uint32_t poison,
          const char* what) {
  if (HeldRegisters* h = find_held(list, where[0])) {
    if (!intact(*h, poison))
      fail("wgmma: %s registers were rewritten while a wgmma on them is in flight", what);
    if (h->each != each) fail("wgmma: %s registers of another shape are in flight at the same place", what);
    ++h->holders;
    return;
  }
  HeldRegisters h{where, each, 1, {}};
  for (uint32_t* w : where) {
    h.values.insert(h.values.end(), w, w + each);
    std::fill(w, w + each, poison);
  }
  list.push_back(std::move(h));
}

// One user less; the last one gives the registers back.
void let_go(std::vector<HeldRegisters>& list, const uint32_t* first, uint32_t poison, const char* what) {
  HeldRegisters* h = find_held(list, first);
  if (--h->holders) return;
  if (!intact(*h, poison))
    fail("wgmma.wait_group: %s registers were written before the wait that covers them", what);
  for (size_t t = 0; t < h->where.size(); ++t) std::copy_n(&h->values[t * h->each], h->each, h->where[t]);
  list.erase(list.begin() + (h - list.data()));
}

void check_operand(const Warpgroup& group, int n, uint64_t descriptor) {
  Machine& m = *machine;
  // Threads that know different things; two of each kind, so that no write is judged by its own writer alone.
  std::vector<const Thread*> views;
  for (int i = 0; i < 128; ++i) {
    const Thread* t = group_threads()[i];
    auto same = [&](const Thread* v) { return v->base.get() == t->base.get(); };
    if (std::count_if(views.begin(), views.end(), same) < 2) views.push_back(t);
  }
  const int agent = m.warpgroup_agent(m.self->index / 128);
  const Record r{group.committed + 1, m.cta, uint16_t(agent), 0xffff, kAsyncProxy, Instr::kWgmma};
  uint64_t addresses[8];
  for (int row = 0; row < n; ++row)
    for (int c = 0; c < 2; ++c) {
      const Place p = shared_place(chunk_address(descriptor, row, c), 16, Instr::kWgmma);
      for (const Thread* t : views) check_read(*t, p, Instr::kWgmma, true, true);
      note_read(*m.self, p, r);
    }
  for (int row = 0; row < n; row += 8)
    for (int c = 0; c < 2; ++c) {
      for (int i = 0; i < 8; ++i) addresses[i] = chunk_address(descriptor, row + i, c);
      m.counters.shared_request(Instr::kWgmma, addresses, 8, 16);
    }
}

// d [t][i] (+)= add(row of a, column of b, d). `read` turns the element j of 32 bytes of k into a number.
template <class Sum, class T, int kK, class Read, class Add>
void multiply(const WgmmaOp& op, const HeldRegisters& operand, HeldRegisters& sums, const Read& read,
              const Add& add) {
  static T a[64][kK], b[256][kK];
  constexpr int kEach = kK / 8;  // elements of a register
  for (int t = 0; t < 128; ++t)
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < kEach; ++j)
        a[fragment::wgmma_a_row(t, i)][fragment::wgmma_a_byte(t, i) * kEach / 4 + j] =
            read(&operand.values[t * 4 + i], j);
  for (int n = 0; n < op.n; ++n)
    for (int c = 0; c < 2; ++c) {
      const uint8_t* p = shared_bytes(chunk_address(op.descriptor, n, c));
      for (int k = 0; k < kK / 2; ++k) b[n][kK / 2 * c + k] = read(p, k);
    }
  const int each = op.n / 2;
  for (int t = 0; t < 128; ++t)
    for (int i = 0; i < each; ++i) {
      const T *row = a[fragment::wgmma_d_row(t, i)], *col = b[fragment::wgmma_d_col(t, i)];
      uint32_t& d = sums.values[t * each + i];
      Sum sum = 0;
      if (op.scale_d) memcpy(&sum, &d, 4);
      sum = add(row, col, sum);
      memcpy(&d, &sum, 4);
    }
}

uint16_t half_at(const void* p, int j) {
  uint16_t bits;
  memcpy(&bits, static_cast<const uint8_t*>(p) + 2 * j, 2);
  return bits;
}

void compute(Warpgroup& group, const WgmmaOp& op) {
  const HeldRegisters& operand = *find_held(group.operands, op.a[0]);
  HeldRegisters& sums = *find_held(group.accumulators, op.d[0]);
  if (op.kind == Mma::kF16F16)
    multiply<float, Scaled, 16>(
        op, operand, sums, [](const void* p, int j) { return scaled_fp16(half_at(p, j)); },
        tensor_sum<10, 16>);
  else if (op.kind == Mma::kBf16Bf16)
    multiply<float, Scaled, 16>(
        op, operand, sums, [](const void* p, int j) { return scaled_bf16(half_at(p, j)); },
        tensor_sum<7, 16>);
  else
    multiply<uint32_t, int16_t, 32>(
        op, operand, sums, [](const void* p, int j) { return static_cast<const int8_t*>(p)[j]; },
        [](const int16_t* row, const int16_t* col, uint32_t sum) {  // unsigned: sums wrap modulo 2^32
          for (int k = 0; k < 32; ++k) sum += uint32_t(row[k] * col[k]);
          return sum;
        });
}

}  // namespace

void wgmma_fence() {
  if (!meet_warpgroup(Instr::kWgmmaFence, 0, {})) return;
  my_group().fenced = true;
  release_warpgroup();
}

void wgmma_commit_group() {
  if (!meet_warpgroup(Instr::kWgmmaCommit, 0, {})) return;
  ++my_group().committed;
  release_warpgroup();
}

void wgmma(Mma kind, int n, void* d, const uint32_t* a, uint64_t descriptor, bool scale_d) {
  const uint64_t shape = (uint64_t(kind) * 512 + uint64_t(n)) * 2 + scale_d;
  if (!meet_warpgroup(Instr::kWgmma, shape, {d, a, &descriptor})) return;
  Machine& m = *machine;
  Mailbox& box = my_warpgroup();
  Warpgroup& group = my_group();
  WgmmaOp op{kind, n, descriptor, scale_d, group.committed, {}, {}};
  const Slot& first = box.slots[0];
  for (int t = 0; t < 128; ++t) {
    const Slot& slot = box.slots[t];
    const uint64_t other = *static_cast<const uint64_t*>(slot.in1);
    if (other != *static_cast<const uint64_t*>(first.in1))
      fail(
          "wgmma: the descriptor differs inside the warpgroup: warp 0 names shared+%lld, warp %d shared+%lld",
          static_cast<long long>((*static_cast<const uint64_t*>(first.in1) & 0x3fff) << 4) - m.smem_base,
          t / 32, static_cast<long long>((other & 0x3fff) << 4) - m.smem_base);
    op.d.push_back(static_cast<uint32_t*>(slot.out));
    op.a.push_back(static_cast<uint32_t*>(const_cast<void*>(slot.in0)));
  }
  if (!group.fenced)
    fail(
        "wgmma without wgmma.fence since the registers could last be touched (start of the kernel or "
        "wgmma.wait_group)");
  check_operand(group, n, descriptor);
  hold(group.accumulators, op.d, n / 2, kPoison, "accumulator");
  hold(group.operands, op.a, 4, kPoisonOperand, "A");
  m.counters.wgmma_columns += uint64_t(n);
  group.pending.push_back(std::move(op));
  release_warpgroup();
}

void wgmma_wait_group(int pending) {
  if (!meet_warpgroup(Instr::kWgmmaWait, uint64_t(pending), {})) return;
  Machine& m = *machine;
  Warpgroup& group = my_group();
  group.fenced = false;
  const uint32_t covered = group.committed > uint32_t(pending) ? group.committed - uint32_t(pending) : 0;
  while (!group.pending.empty() && group.pending.front().group < covered) {
    const WgmmaOp op = std::move(group.pending.front());
    group.pending.erase(group.pending.begin());
    compute(group, op);
    let_go(group.accumulators, op.d[0], kPoison, "accumulator");
    let_go(group.operands, op.a[0], kPoisonOperand, "A");
  }
  const int agent = m.warpgroup_agent(m.self->index / 128);
  ClockRef in, out;
  for (int i = 0; i < 128; ++i) {
    Thread& t = *group_threads()[i];
    if (!in || t.base.get() != in.get()) {
      in = t.base;
      out = ClockRef(new Clock(*in));
      out->seen(agent) = std::max(out->seen(agent), covered);
    }
    t.base = out;
  }
  release_warpgroup();
}

void wgmma_fence_operand(const void* registers, int count) {
  const Thread& t = *machine->self;
  const size_t index = size_t(t.index / 128);
  if (index >= machine->warpgroups.size()) return;
  Warpgroup& group = machine->warpgroups[index];
  const uint32_t* begin = static_cast<const uint32_t*>(registers);
  for (std::vector<HeldRegisters>* list : {&group.accumulators, &group.operands})
    for (const HeldRegisters& h : *list) {
      const uint32_t* held = h.where[t.index % 128];
      if (begin < held + h.each && held < begin + count)
        fail("registers of a wgmma in flight are touched: wgmma.wait_group is missing in front");
    }
}

}  // namespace lowbit::emu
