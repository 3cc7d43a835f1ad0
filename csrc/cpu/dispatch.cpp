#include "dispatch.h"

#if defined(LOWBIT_HAVE_AMX)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

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

// The same with what `use` puts in place of some, as Kernels of `name`.
#define LOWBIT_WITH(isa, use, name_)      \
  namespace isa {                         \
  void use(Kernels&);                     \
  static const Kernels* kernels_##use() { \
    static const Kernels table = [] {     \
      Kernels k = *kernels();             \
      k.name = name_;                     \
      use(k);                             \
      return k;                           \
    }();                                  \
    return &table;                        \
  }                                       \
  }

LOWBIT_TABLE(scalar)
#if defined(LOWBIT_HAVE_X86)
LOWBIT_TABLE(avx2)
LOWBIT_TABLE(avx512)
#endif
#if defined(LOWBIT_HAVE_BF16)
LOWBIT_WITH(avx512, use_bf16, "avx512_bf16")
#endif
#if defined(LOWBIT_HAVE_AMX)
LOWBIT_WITH(avx512, use_tiles, "amx")
#endif
#if defined(LOWBIT_HAVE_SIMDE)
LOWBIT_TABLE(avx512_simde)
LOWBIT_WITH(avx512_simde, use_bf16, "avx512_bf16_simde")
LOWBIT_WITH(avx512_simde, use_tiles, "amx_simde")
#endif

#if defined(LOWBIT_HAVE_AMX)
// Whether the CPU has tiles of int8 and bf16, and the kernel lets this process use them.
static bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h: ARCH_REQ_XCOMP_PERM
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const std::vector<Isa>& isa_table() {
  static const std::vector<Isa> table = [] {
    std::vector<Isa> t;
#if defined(LOWBIT_HAVE_SIMDE)
    t.push_back({"avx512_simde", "AVX2, for SIMDe's AVX-512 (tests only, never chosen by itself)",
                 bool(__builtin_cpu_supports("avx2")), avx512_simde::kernels()});
    t.push_back({"avx512_bf16_simde",
                 "AVX2, for products of bf16 in portable code (tests only, never chosen by itself)",
                 bool(__builtin_cpu_supports("avx2")), avx512_simde::kernels_use_bf16()});
    t.push_back({"amx_simde", "AVX2, for tiles in portable code (tests only, never chosen by itself)",
                 bool(__builtin_cpu_supports("avx2")), avx512_simde::kernels_use_tiles()});
#endif
    t.push_back({"scalar", "any CPU", true, scalar::kernels()});
#if defined(LOWBIT_HAVE_X86)
    __builtin_cpu_init();
    t.push_back(
        {"avx2", "AVX2, FMA, F16C",
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
         avx2::kernels()});
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    t.push_back({"avx512", "AVX-512 F, BW, DQ, VL, VNNI", avx512, avx512::kernels()});
#if defined(LOWBIT_HAVE_BF16)
    t.push_back({"avx512_bf16", "AVX-512 F, BW, DQ, VL, VNNI, BF16",
                 avx512 && __builtin_cpu_supports("avx512bf16"), avx512::kernels_use_bf16()});
#endif
#if defined(LOWBIT_HAVE_AMX)
    t.push_back({"amx", "AVX-512 F, BW, DQ, VL, VNNI and AMX tiles of int8 and bf16",
                 avx512 && may_use_tiles(), avx512::kernels_use_tiles()});
#endif
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
