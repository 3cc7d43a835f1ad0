// Words that a caller lends to the calls of its thread.
#include <cstdio>
#include <thread>

#include "../../csrc/ops/tickets.h"

using lowbit::ops::lent_tickets;

static int failures = 0;
static void expect(bool right, const char* what) {
  if (!right) ++failures, std::printf("%s\n", what);
}

int main() {
  uint32_t words[10] = {};
  auto& lent = lent_tickets();
  expect(!lent.take(1, 0), "nothing lent, something given");
  lent.lend(words, 10, 0);
  expect(lent.take(4, 0) == words, "the first words");
  expect(lent.take(3, 0) == words + 4, "words twice");
  expect(!lent.take(3, 1), "words of another card");
  std::thread([] { expect(!lent_tickets().take(1, 0), "words of another thread"); }).join();
  expect(!lent.take(1, 0), "more words than there are");
  expect(lent.asked == 11, "what was asked for");
  lent.lend(nullptr, 0, -1);
  expect(!lent.take(1, 0) && lent.asked == 1, "words after they were taken back");
  std::printf("%d failures\n", failures);
}
