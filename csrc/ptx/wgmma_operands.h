// The operand lists of wgmma.h, one specialisation per N and kind: an asm statement must name each register.
// Written by hand once with a loop over N in {8, 16, 32, 64, 96, 128, 192, 256}; legal 8-bit N are 8, 16, 24,
// 32 and multiples of 16 to 256, 16-bit ones all multiples of 8.
#pragma once

namespace lowbit::ptx {

#if !defined(LOWBIT_EMULATE)
// The registers of D, bound by a constraint: "+r" or "+f".
#define LOWBIT_D4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define LOWBIT_D16(c, i) LOWBIT_D4(c, i), LOWBIT_D4(c, i + 4), LOWBIT_D4(c, i + 8), LOWBIT_D4(c, i + 12)
#define LOWBIT_D64(c, i) LOWBIT_D16(c, i), LOWBIT_D16(c, i + 16), LOWBIT_D16(c, i + 32), LOWBIT_D16(c, i + 48)
#define LOWBIT_AB "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(int(scale_d))

#define LOWBIT_D_8(c) LOWBIT_D4(c, 0)
#define LOWBIT_D_16(c) LOWBIT_D4(c, 0), LOWBIT_D4(c, 4)
#define LOWBIT_D_32(c) LOWBIT_D16(c, 0)
#define LOWBIT_D_64(c) LOWBIT_D16(c, 0), LOWBIT_D16(c, 16)
#define LOWBIT_D_96(c) LOWBIT_D16(c, 0), LOWBIT_D16(c, 16), LOWBIT_D16(c, 32)
#define LOWBIT_D_128(c) LOWBIT_D64(c, 0)
#define LOWBIT_D_192(c) LOWBIT_D64(c, 0), LOWBIT_D16(c, 64), LOWBIT_D16(c, 80)
#define LOWBIT_D_256(c) LOWBIT_D64(c, 0), LOWBIT_D64(c, 64)

// and their names in the text
#define LOWBIT_N_8 "%0, %1, %2, %3"
#define LOWBIT_N_16 LOWBIT_N_8 ", %4, %5, %6, %7"
#define LOWBIT_N_32 LOWBIT_N_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LOWBIT_N_64 \
  LOWBIT_N_32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LOWBIT_N_96 \
  LOWBIT_N_64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define LOWBIT_N_128 \
  LOWBIT_N_96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LOWBIT_N_192                                                                 \
  LOWBIT_N_128                                                                       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define LOWBIT_N_256                                                                             \
  LOWBIT_N_192                                                                                   \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define LOWBIT_WGMMA_KIND(name, sum, c, n, shape, tail, A, b_at, p_at)                                      \
  template <>                                                                                               \
  LOWBIT_DEVICE void name<n / 2>(sum(&d)[n / 2], const uint32_t (&a)[4], WgmmaDescriptor b, bool scale_d) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_at                                                   \
                 ", 0;\n"                                                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #n shape " {" LOWBIT_N_##n "}, {" A "}, " b_at         \
                                                                                ", p" tail ";\n}"           \
                 : LOWBIT_D_##n(c)                                                                          \
                 : LOWBIT_AB                                                                                \
                 : "memory");                                                                               \
  }
// Halves: A and B are not negated (1, 1), B is K-major (0).
#define LOWBIT_WGMMA(n, A, b_at, p_at)                                                                       \
  LOWBIT_WGMMA_KIND(wgmma_m64k32_s32_s8_s8, int32_t, "+r", n, "k32.s32.s8.s8", "", A, b_at, p_at)            \
  LOWBIT_WGMMA_KIND(wgmma_m64k16_f32_f16_f16, float, "+f", n, "k16.f32.f16.f16", ", 1, 1, 0", A, b_at, p_at) \
  LOWBIT_WGMMA_KIND(wgmma_m64k16_f32_bf16_bf16, float, "+f", n, "k16.f32.bf16.bf16", ", 1, 1, 0", A, b_at,   \
                    p_at)

LOWBIT_WGMMA(8, "%4, %5, %6, %7", "%8", "%9")
LOWBIT_WGMMA(16, "%8, %9, %10, %11", "%12", "%13")
LOWBIT_WGMMA(32, "%16, %17, %18, %19", "%20", "%21")
LOWBIT_WGMMA(64, "%32, %33, %34, %35", "%36", "%37")
LOWBIT_WGMMA(96, "%48, %49, %50, %51", "%52", "%53")
LOWBIT_WGMMA(128, "%64, %65, %66, %67", "%68", "%69")
LOWBIT_WGMMA(192, "%96, %97, %98, %99", "%100", "%101")
LOWBIT_WGMMA(256, "%128, %129, %130, %131", "%132", "%133")

#undef LOWBIT_WGMMA
#undef LOWBIT_WGMMA_KIND
#undef LOWBIT_AB
#undef LOWBIT_D64
#undef LOWBIT_D16
#undef LOWBIT_D4
#undef LOWBIT_D_8
#undef LOWBIT_D_16
#undef LOWBIT_D_32
#undef LOWBIT_D_64
#undef LOWBIT_D_96
#undef LOWBIT_D_128
#undef LOWBIT_D_192
#undef LOWBIT_D_256
#undef LOWBIT_N_8
#undef LOWBIT_N_16
#undef LOWBIT_N_32
#undef LOWBIT_N_64
#undef LOWBIT_N_96
#undef LOWBIT_N_128
#undef LOWBIT_N_192
#undef LOWBIT_N_256
#else
constexpr bool wgmma_has_n(int n) {
  return n == 8 || n == 16 || n == 32 || n == 64 || n == 96 || n == 128 || n == 192 || n == 256;
}
template <int R>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8(int32_t (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                          bool scale_d) {
  static_assert(wgmma_has_n(2 * R), "wgmma: no such N");
  emu::wgmma(emu::Mma::kS8S8, 2 * R, d, a, b.bits, scale_d);
}
template <int R>
LOWBIT_DEVICE void wgmma_m64k16_f32_f16_f16(float (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                            bool scale_d) {
  static_assert(wgmma_has_n(2 * R), "wgmma: no such N");
  emu::wgmma(emu::Mma::kF16F16, 2 * R, d, a, b.bits, scale_d);
}
template <int R>
LOWBIT_DEVICE void wgmma_m64k16_f32_bf16_bf16(float (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d) {
  static_assert(wgmma_has_n(2 * R), "wgmma: no such N");
  emu::wgmma(emu::Mma::kBf16Bf16, 2 * R, d, a, b.bits, scale_d);
}
#endif

}  // namespace lowbit::ptx
