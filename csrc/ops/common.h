// What every op needs of torch's stable ABI: checks that are sentences, allocation, threads.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/dispatch.h"
#include "../numeric/ceil_div.h"
#include "../numeric/int4.h"
#include "workspace.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name before torch 2.12
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace lowbit::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

template <class... Args>
inline void check(bool ok, const Args&... message) {
  if (ok) return;
  std::ostringstream out;
  ((out << message), ...);
  throw std::runtime_error(out.str());
}

inline const char* name_of(ScalarType t) {
  switch (t) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "another dtype";
  }
}

inline Shape shape_of(const Tensor& t) {
  const auto s = t.sizes();
  return Shape(s.begin(), s.end());
}

inline std::string text(const Shape& s) {
  std::string out = "[";
  for (size_t i = 0; i < s.size(); ++i) out += (i ? ", " : "") + std::to_string(s[i]);
  return out + "]";
}

inline void check_dtype(const Tensor& t, ScalarType want, const char* op, const char* arg) {
  check(t.scalar_type() == want, op, ": ", arg, " has dtype ", name_of(t.scalar_type()), ", expected ",
        name_of(want));
}

inline void check_shape(const Tensor& t, const Shape& want, const char* op, const char* arg) {
  const Shape got = shape_of(t);
  check(got == want, op, ": ", arg, " has shape ", text(got), ", expected ", text(want));
}

inline DType float_dtype(ScalarType t, const char* op, const char* arg) {
  check(t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half, op, ": ", arg,
        " has dtype ", name_of(t), ", expected float32, bfloat16 or float16");
  return t == ScalarType::Float ? DType::f32 : t == ScalarType::BFloat16 ? DType::bf16 : DType::f16;
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A contiguous tensor. The C call is cheaper than the dispatcher's aten::empty.
inline Tensor empty(const Shape& shape, ScalarType dtype, int32_t device_type, int32_t index) {
  int64_t strides[16], step = 1;
  check(shape.size() <= 16, "tensor has ", shape.size(), " dimensions, expected at most 16");
  for (size_t i = shape.size(); i-- > 0;) strides[i] = step, step *= shape[i] ? shape[i] : 1;
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides, type,
                                                         device_type, index, &handle));
  return Tensor(handle);
}

inline Tensor empty(const Shape& shape, ScalarType dtype) {
  return empty(shape, dtype, aoti_torch_device_type_cpu(), 0);
}

// The same on the device of `x`.
inline Tensor empty_beside(const Tensor& x, const Shape& shape, ScalarType dtype) {
  return x.is_cuda() ? empty(shape, dtype, aoti_torch_device_type_cuda(), x.get_device_index())
                     : empty(shape, dtype);
}

// Runs f(thread, begin, end) over [0, count) in at most `threads()` pieces of at least `grain`.
inline int64_t threads() { return int64_t(torch::stable::get_num_threads()); }

template <class F>
inline void parallel(int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  if (count <= grain || threads() == 1) return f(int64_t(0), int64_t(0), count);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    f(int64_t(thread), begin, end);
  });
}

// Rows that a thread takes through a whole product with n channels, where there are many for few channels:
// the others' are not fetched from their caches, and threads start once. m: they share out the channels
// instead.
inline int64_t rows_of_part(int64_t m, int64_t n) {
  constexpr int64_t kLeast = 64;
  const int64_t part = ceil_div(ceil_div(m, threads()), 16) * 16;
  return threads() > 1 && part >= kLeast && 2 * m >= n ? part : m;
}

struct Rows {
  int64_t count, length;
};

inline Rows rows_of(const Tensor& t, const char* op, const char* arg) {
  check(t.dim() >= 1, op, ": ", arg, " has no dimensions, expected at least one");
  const int64_t k = t.size(t.dim() - 1);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
  return {rows, k};
}

// The elements of a contiguous fp32 tensor; null without one.
inline const float* floats(const OptTensor& t) {
  return t ? static_cast<const float*>(t->const_data_ptr()) : nullptr;
}

// A bias as contiguous fp32 [n].
inline OptTensor float_bias(const OptTensor& bias, int64_t n, const char* op) {
  if (!bias) return std::nullopt;
  float_dtype(bias->scalar_type(), op, "bias");
  const bool fp32 = bias->scalar_type() == ScalarType::Float;
  const Tensor b = as_contiguous(fp32 ? *bias : torch::stable::to(*bias, ScalarType::Float));
  check_shape(b, {n}, op, "bias");
  return b;
}

// What is added to a result of this shape and dtype, contiguous.
inline OptTensor residual_of(const char* op, const OptTensor& residual, const Shape& shape,
                             ScalarType dtype) {
  if (!residual) return std::nullopt;
  check_dtype(*residual, dtype, op, "residual");
  check_shape(*residual, shape, op, "residual");
  return as_contiguous(*residual);
}

inline void check_clip(const char* op, double clip) {
  check(clip > 0 && clip <= 1, op, ": clip is ", clip, ", expected 0 < clip <= 1");
}

struct Transform {
  int64_t order = 0, two = 0;
  const cpu::MixTable* mix = nullptr;
};

// block: nothing = all of k.
inline Transform transform_of(int64_t k, std::optional<int64_t> block, bool transpose, const char* op) {
  Transform t;
  const int64_t n = block && *block ? *block : k;
  check(n > 0 && k % n == 0, op, ": block is ", n, ", expected a positive divisor of the last dimension ", k);
  check(cpu::split_order(n, &t.order, &t.two), op, ": size ", n,
        " has no constructed Hadamard matrix; use a block that divides it, such as ", n & -n);
  if (t.order > 1) t.mix = cpu::mix_table(t.order, transpose);
  return t;
}

// LOWBIT_CHECKED=1: NaN or infinity in an activation is an error instead of a NaN result.
inline bool checked_mode() {
  static const bool on = [] {
    const char* v = std::getenv("LOWBIT_CHECKED");
    return v && *v && std::string(v) != "0";
  }();
  return on;
}

inline void check_finite(const float* scale, int64_t rows, const char* op, const char* arg = "x") {
  if (!checked_mode()) return;
  for (int64_t i = 0; i < rows; ++i)
    check(scale[i] == scale[i], op, ": ", arg, " has NaN or infinity in row ", i,
          ", expected finite values (LOWBIT_CHECKED)");
}

}  // namespace lowbit::ops
