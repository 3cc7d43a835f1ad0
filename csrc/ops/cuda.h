// What every CUDA op file needs besides common.h: the card, its guard, torch's current stream, allocation and
// checks. No CUDA header and no symbol of libtorch_cuda: the library must load beside a CPU torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <dlfcn.h>

#include "../kernels/common/device.h"
#include "common.h"
#include "tickets.h"

namespace lowbit::ops {

inline std::string device_name(const Tensor& t) {
  return t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : t.is_cpu() ? "cpu" : "another device";
}

// Every argument given (an absent optional is skipped) is on the card of `first`.
struct Named {
  const char* name;
  const Tensor* tensor;  // nullptr: absent
  Named(const char* name, const Tensor& t) : name(name), tensor(&t) {}
  Named(const char* name, const OptTensor& t) : name(name), tensor(t ? &*t : nullptr) {}
};

inline void check_same_device(const char* op, const Named& first, std::initializer_list<Named> others) {
  for (const Named& other : others) {
    if (!other.tensor) continue;
    const bool same =
        other.tensor->is_cuda() && other.tensor->get_device_index() == first.tensor->get_device_index();
    if (!same)
      check(false, op, ": ", other.name, " is on ", device_name(*other.tensor), ", expected ",
            device_name(*first.tensor), " as ", first.name);
  }
}

// Throws what a launch or a question to the card answered.
inline void check_cuda(kernels::Error error, const char* op) {
  check(!error, op, ": CUDA: ", error ? error : "");
}

// torch's current stream of a card. There is no fallback: the null stream would give wrong answers under side
// streams and graph capture. RTLD_DEFAULT does not see libtorch_cuda (torch loads its libraries locally);
// RTLD_NOLOAD does, where torch has one.
inline kernels::Stream current_stream(int32_t index) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return torch_cuda ? reinterpret_cast<Get>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"))
                      : nullptr;
  }();
  check(get, "lowbit: this torch has no CUDA stream to offer (libtorch_cuda.so is not loaded)");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(index, &stream));
  return stream;
}

// Makes the card of `x` current until the end of the scope, and holds what a launch on it needs.
class OnDevice {
 public:
  OnDevice(const Tensor& x, const char* op) : guard_(index_of(x, op)) {
    check_cuda(kernels::find_device(x.get_device_index(), &device), op);
    check_cuda(kernels::bind_context(device.index), op);
    stream = current_stream(device.index);
  }
  kernels::Device device;
  kernels::Stream stream;

 private:
  static int32_t index_of(const Tensor& x, const char* op) {
    check(x.is_cuda(), op, ": x is on ", device_name(x), ", expected a CUDA device as the other arguments");
    return x.get_device_index();
  }
  torch::stable::accelerator::DeviceGuard guard_;
};

// A contiguous tensor on that card, from torch's allocator on its current stream.
inline Tensor empty_cuda(const Shape& shape, ScalarType dtype, int32_t index) {
  return empty(shape, dtype, aoti_torch_device_type_cuda(), index);
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// The kernels read 16 bytes at a time; only a view into a larger tensor can start elsewhere.
inline Tensor as_aligned(const Tensor& t) {
  return aligned(t.const_data_ptr()) ? t : torch::stable::clone(t);
}

// The elements of t on 16 bytes; `kept` keeps them until the launch.
template <class T>
const T* keep_aligned(const Tensor& t, std::vector<Tensor>& kept) {
  kept.push_back(as_aligned(t));
  return static_cast<const T*>(kept.back().const_data_ptr());
}

// n words that are zero when the next launch runs; `kept` keeps them where they were not lent.
inline uint32_t* zeroed_tickets(int64_t n, int32_t index, std::vector<Tensor>& kept) {
  if (uint32_t* lent = lent_tickets().take(n, index)) return lent;
  Tensor words = empty_cuda({n}, ScalarType::Int, index);
  torch::stable::zero_(words);
  kept.push_back(words);
  return static_cast<uint32_t*>(words.mutable_data_ptr());
}

}  // namespace lowbit::ops
