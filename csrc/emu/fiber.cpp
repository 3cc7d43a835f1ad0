#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace lowbit::emu {

namespace {
constexpr size_t kStackBytes = 256 << 10;  // virtual: pages are taken when touched
constexpr size_t kGuardBytes = 4096;       // an overflow faults instead of writing into the neighbour
}  // namespace

Fiber::~Fiber() {
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::prepare(void (*entry)()) {
  if (!stack_) {
    stack_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                  -1, 0);
    if (stack_ == MAP_FAILED) {
      stack_ = nullptr;
      throw std::bad_alloc();
    }
    mprotect(stack_, kGuardBytes, PROT_NONE);
  }
  getcontext(&start_);
  start_.uc_stack.ss_sp = static_cast<char*>(stack_) + kGuardBytes;
  start_.uc_stack.ss_size = kStackBytes - kGuardBytes;
  start_.uc_link = nullptr;
  makecontext(&start_, entry, 0);
  started_ = false;
}

__attribute__((noinline)) void switch_context(jmp_buf& from, jmp_buf& to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

__attribute__((noinline)) void Fiber::enter(jmp_buf& from) {
  if (started_) return switch_context(from, context_);
  started_ = true;
  if (_setjmp(from) == 0) setcontext(&start_);
}

}  // namespace lowbit::emu
