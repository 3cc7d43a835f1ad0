// Fibers: makecontext starts one, _setjmp and _longjmp switch (no system call, some 20 ns). A fiber that has
// finished its kernel waits for the next one, so starting costs once per process.
#pragma once

#include <csetjmp>
#include <ucontext.h>

namespace lowbit::emu {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // `entry` must never return: it ends by switching elsewhere. Called again after a fiber was abandoned in
  // mid-kernel.
  void prepare(void (*entry)());

  // Leaves `from` and continues in this fiber; comes back when somebody enters `from`.
  void enter(jmp_buf& from);

  jmp_buf& context() { return context_; }

 private:
  void* stack_ = nullptr;
  bool started_ = false;
  jmp_buf context_;
  ucontext_t start_;
};

// Saves the present place in `from` and continues at `to`.
void switch_context(jmp_buf& from, jmp_buf& to);

}  // namespace lowbit::emu
