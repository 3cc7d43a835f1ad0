// Words that are zero, for kernels whose blocks count themselves: a product or an attention whose work is
// split needs some per call. By itself each call takes them from torch's allocator and clears them, a memset.
// A caller of many (a decode step in a CUDA graph) may clear enough for all of them at once and lend them to
// its thread. No torch.
#pragma once

#include <cstdint>

namespace lowbit::ops {

struct LentTickets {
  uint32_t* words = nullptr;  // zeros
  int64_t count = 0;
  int device = -1;
  int64_t asked = 0;  // words that the calls since `lend` wanted, whether there were so many or not

  void lend(uint32_t* to, int64_t n, int card) { words = to, count = n, device = card, asked = 0; }

  // n words that no call before has had, or null.
  uint32_t* take(int64_t n, int card) {
    const int64_t first = asked;
    asked += n;
    return card == device && asked <= count ? words + first : nullptr;
  }
};

inline LentTickets& lent_tickets() {
  static thread_local LentTickets lent;
  return lent;
}

}  // namespace lowbit::ops
