#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace lowbit::cpu {

// What the families of one instruction set add to its table.
#define LOWBIT_TABLE(isa)               \
  namespace isa {                       \
  void add_quantize(Kernels&);          \
  void add_hadamard(Kernels&);          \
  void add_int_gemm(Kernels&);          \
  void add_fp_gemm(Kernels&);           \
  void add_kv_cache(Kernels&);          \
  void add_fused_rows(Kernels&);        \
  void add_attention(Kernels&);         \
  static const Kernels* kernels() {     \
    static const Kernels table = [] {   \
      Kernels k{};                      \
      k.name = #isa;                    \
      add_quantize(k), add_hadamard(k); \
      add_int_gemm(k), add_fp_gemm(k);  \
      add_kv_cache(k);                  \
      add_fused_rows(k);                \
      add_attention(k);                 \
      return k;                         \
    }();                                \
    return &table;                      \
  }                                     \
  }

LOWBIT_TABLE(scalar)
#if defined(LOWBIT_HAVE_X86)
LOWBIT_TABLE(avx2)
LOWBIT_TABLE(avx512)
#endif
#if defined(LOWBIT_HAVE_SIMDE)
LOWBIT_TABLE(avx512_simde)
#endif

const std::vector<Isa>& isa_table() {
  static const std::vector<Isa> table = [] {
    std::vector<Isa> t;
#if defined(LOWBIT_HAVE_SIMDE)
    t.push_back({"avx512_simde", "AVX2, for SIMDe's AVX-512 (tests only, never chosen by itself)",
                 bool(__builtin_cpu_supports("avx2")), avx512_simde::kernels()});
#endif
    t.push_back({"scalar", "any CPU", true, scalar::kernels()});
#if defined(LOWBIT_HAVE_X86)
    __builtin_cpu_init();
    t.push_back(
        {"avx2", "AVX2, FMA, F16C",
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
         avx2::kernels()});
    t.push_back({"avx512", "AVX-512 F, BW, DQ, VL, VNNI",
                 __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512vnni"),
                 avx512::kernels()});
#endif
    return t;
  }();
  return table;
}

namespace {

const Kernels* find(const std::string& name) {
  std::string known;
  for (const Isa& isa : isa_table()) {
    if (name == isa.name) {
      if (isa.supported) return isa.kernels;
      throw std::runtime_error("LOWBIT_FORCE_ISA: this CPU lacks " + std::string(isa.features) +
                               ", which isa '" + name + "' needs");
    }
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw std::runtime_error("LOWBIT_FORCE_ISA: expected one of " + known + ", got '" + name + "'");
}

const Kernels*& slot() {
  static const Kernels* chosen = [] {
    const char* forced = std::getenv("LOWBIT_FORCE_ISA");
    if (forced && *forced) return find(forced);
    const Kernels* best = nullptr;
    for (const Isa& isa : isa_table())
      if (isa.supported) best = isa.kernels;
    return best;
  }();
  return chosen;
}

}  // namespace

const Kernels& active() { return *slot(); }

void set_active(const std::string& name) { slot() = find(name); }

}  // namespace lowbit::cpu
