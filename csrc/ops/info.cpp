// What the library tells about itself, and the little it is told: a plain C interface, for lowbit._ext and
// ctypes.
#include <cstring>
#include <exception>
#include <string>

#include "../cpu/dispatch.h"
#include "../kernels/common/device.h"
#include "../kernels/fp_gemm/config.h"
#include "../kernels/int_gemm/config.h"
#include "tickets.h"

#define LOWBIT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
thread_local std::string answer;

const char* keep(std::string s) {
  answer = std::move(s);
  return answer.c_str();
}
}  // namespace

// One line per instruction set: name, "1" or "0" for supported, features; separated by tabs.
LOWBIT_EXPORT const char* lowbit_isas() {
  std::string out;
  for (const auto& isa : lowbit::cpu::isa_table())
    out += std::string(isa.name) + "\t" + (isa.supported ? "1" : "0") + "\t" + isa.features + "\n";
  return keep(out);
}

// The name in use, or "error: " and a sentence.
LOWBIT_EXPORT const char* lowbit_active_isa() {
  try {
    return keep(lowbit::cpu::active().name);
  } catch (const std::exception& e) {
    return keep(std::string("error: ") + e.what());
  }
}

// Lends words of a card to the calls of this thread (ops/tickets.h); null takes them back. Returns how many
// words were asked for since the last such call.
LOWBIT_EXPORT int64_t lowbit_lend_tickets(void* words, int64_t count, int device) {
  auto& lent = lowbit::ops::lent_tickets();
  const int64_t asked = lent.asked;
  lent.lend(static_cast<uint32_t*>(words), count, device);
  return asked;
}

// Null on success, else a sentence.
LOWBIT_EXPORT const char* lowbit_set_isa(const char* name) {
  try {
    lowbit::cpu::set_active(name);
    return nullptr;
  } catch (const std::exception& e) {
    return keep(e.what());
  }
}

// The architectures of the compiled CUDA kernels, such as "80,90a"; empty without kernels.
LOWBIT_EXPORT const char* lowbit_cuda_archs() {
#if defined(LOWBIT_CUDA)
  return LOWBIT_CUDA;
#else
  return "";
#endif
}

// What the kernels see of a card: sm, multiprocessors, shared bytes per block, separated by tabs; or "error:
// " and a sentence.
LOWBIT_EXPORT const char* lowbit_cuda_device([[maybe_unused]] int index) {
#if defined(LOWBIT_CUDA)
  lowbit::kernels::Device d;
  if (const char* error = lowbit::kernels::find_device(index, &d))
    return keep(std::string("error: ") + error);
  return keep(std::to_string(d.sm) + "\t" + std::to_string(d.multiprocessors) + "\t" +
              std::to_string(d.shared_bytes));
#else
  return "error: no CUDA kernels are compiled in";
#endif
}

// Which kernel a card with compute capability sm / 10 and so many multiprocessors runs for a linear layer.
// weight: 0 int4, 1 int4 with group scales, 2 int8.
LOWBIT_EXPORT const char* lowbit_explain_gemm(int m, int n, int k, int weight, int activation_bits, int sm,
                                              int multiprocessors, int shared_bytes) {
  namespace gemm = lowbit::kernels::int_gemm;
  const lowbit::kernels::Device device{sm, multiprocessors, shared_bytes, 0};
  const auto kind = gemm::Weight(weight);
  const auto codes = gemm::codes_for(kind, activation_bits, sm);
  return keep(gemm::explain(gemm::choose(m, n, k, kind, codes, device), codes, device));
}

// The same for a weight-only layer: activations in fp16 or bf16. weight: as layout/fp_fragment.h numbers
// them.
LOWBIT_EXPORT const char* lowbit_explain_fp_gemm(int m, int n, int k, int weight, int grouped, int sm,
                                                 int multiprocessors, int shared_bytes) {
  namespace gemm = lowbit::kernels::fp_gemm;
  const lowbit::kernels::Device device{sm, multiprocessors, shared_bytes, 0};
  if (gemm::by_torch(m, k, device))
    return keep("torch's matmul on the weight as fp16 or bf16, written in panels: from " +
                std::to_string(gemm::crossover(device)) + " tokens on");
  const auto kind = gemm::Weight(weight);
  return keep(gemm::explain(gemm::choose(m, n, k, kind, grouped != 0, device), kind, grouped != 0, device));
}
