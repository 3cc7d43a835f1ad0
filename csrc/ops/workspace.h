// Memory that a CPU op needs while it runs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace lowbit::ops {

// What a thread's calls work in, kept from call to call: fresh memory is a page fault every 4 KB, which can
// cost more than the product it is for. Taken and given back in the manner of a stack.
class Arena {
 public:
  static constexpr int64_t kMost = 64 << 20;  // bytes kept

  static Arena& of_thread() {
    static thread_local Arena arena;
    return arena;
  }
  // Null where so much more does not fit; the next call of this size finds it.
  char* take(int64_t bytes) {
    char* at = used_ + bytes <= size_ ? memory_.get() + used_ : nullptr;
    used_ += bytes;
    if (used_ > wanted_) wanted_ = used_;
    return at;
  }
  void give_back(int64_t bytes) {
    used_ -= bytes;
    if (used_ || wanted_ <= size_) return;
    if (wanted_ <= kMost) {
      memory_.reset();
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, size_t(wanted_))));
      size_ = memory_ ? wanted_ : 0;
    }
    wanted_ = size_;
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0, used_ = 0, wanted_ = 0;
};

// Workspace of `bytes` bytes, 64-byte aligned: on the stack where it is small, else in the thread's arena or,
// while that is too small, from the heap.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_((bytes + 63) / 64 * 64) {
    if (bytes_ <= int64_t(sizeof(small_))) {
      bytes_ = 0, data_ = small_;
      return;
    }
    data_ = Arena::of_thread().take(bytes_);
    if (data_) return;
    data_ = heap_ = static_cast<char*>(std::aligned_alloc(64, size_t(bytes_)));
    if (heap_) return;
    Arena::of_thread().give_back(bytes_);
    throw std::bad_alloc();
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    std::free(heap_);
    if (bytes_) Arena::of_thread().give_back(bytes_);
  }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  alignas(64) char small_[40 * 1024];
  int64_t bytes_;  // in the arena's books
  char *data_, *heap_ = nullptr;
};

}  // namespace lowbit::ops
