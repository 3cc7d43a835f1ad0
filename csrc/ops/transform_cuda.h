// Rows on a card: quantised, after a shift and a Hadamard transform where there is one.
#pragma once

#include <map>
#include <mutex>

#include "../kernels/hadamard/config.h"
#include "../kernels/quantize/params.h"
#include "cuda.h"

namespace lowbit::ops {

// The signs of H_K as the table mixing reads them (kernels/hadamard/params.h), kept on the card for the life
// of the process. Made at the first call for a card, K and direction: that call copies from the host and
// waits, so it cannot be captured in a CUDA graph (a warm-up call before the capture makes it).
inline const float* mix_on_device(int64_t order, bool transpose, const kernels::Device& device) {
  static std::mutex mutex;
  static auto* known =
      new std::map<std::tuple<int, int64_t, bool>, Tensor>;  // never freed: CUDA may end first
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(device.index, order, transpose);
  auto found = known->find(key);
  if (found == known->end()) {
    const cpu::MixTable* table = cpu::mix_table(order, transpose);
    Tensor host = empty({order * order / 4, 4}, ScalarType::Float);
    float* to = static_cast<float*>(host.mutable_data_ptr());
    for (int64_t i = 0; i < order * order / 4; ++i) {
      const int c = table->combination[i];
      *to++ = c & 4 ? -1.f : 1.f, *to++ = c & 2 ? -1.f : 1.f, *to++ = c & 1 ? -1.f : 1.f,
      *to++ = table->sign[i];
    }
    const torch::stable::Device card(torch::headeronly::DeviceType::CUDA,
                                     torch::stable::DeviceIndex(device.index));
    found = known->emplace(key, torch::stable::to(host, card)).first;
  }
  return static_cast<const float*>(found->second.const_data_ptr());
}

// Fills in the transform and launches. `kept` keeps the workspace.
inline void run_hadamard(const char* op, kernels::hadamard::Params& p, const Transform& t, bool transpose,
                         const OnDevice& on) {
  p.order = t.order, p.two = t.two, p.transposed = transpose;
  const kernels::hadamard::Config c = kernels::hadamard::choose(p, on.device);
  if (c.mix == kernels::hadamard::Mix::kTable) p.mix = mix_on_device(p.order, transpose, on.device);
  OptTensor workspace;
  if (c.workspace) {
    workspace = empty_cuda({c.workspace}, ScalarType::Float, on.device.index);
    p.workspace = static_cast<float*>(workspace->mutable_data_ptr());
  }
  check_cuda(kernels::hadamard::hadamard_launch(p, c, on.device, on.stream), op);
}

// x [rows, length] contiguous -> to. block: as in transform_of; nothing = no transform.
inline void quantise_rows(const char* op, const Tensor& x, const Rows& rows, DType dtype,
                          const OptTensor& shift, const std::optional<Transform>& transform,
                          const kernels::quantize::Output& to, const OnDevice& on) {
  if (!rows.count) return;
  const float* subtract = shift ? static_cast<const float*>(shift->const_data_ptr()) : nullptr;
  if (transform && rows.length) {
    kernels::hadamard::Params p{};
    p.x = x.const_data_ptr(), p.dtype = dtype, p.rows = rows.count, p.n = rows.length;
    p.scale = float(1.0 / __builtin_sqrt(double(transform->order * transform->two)));
    p.quantised = true, p.shift = subtract, p.n_out = p.n, p.to = to;
    return run_hadamard(op, p, *transform, false, on);
  }
  kernels::quantize::Params p{};
  p.x = x.const_data_ptr(), p.dtype = dtype, p.rows = rows.count, p.k = p.x_stride = rows.length;
  p.shift = subtract, p.to = to;
  check_cuda(kernels::quantize::quantize_launch(p, on.device, on.stream), op);
}

}  // namespace lowbit::ops
