// The operand lists of wgmma.h, one specialisation per N: an asm statement must name each register. Written
// by hand once with a loop over N in {8, 16, 32, 64, 96, 128, 192, 256}; legal 8-bit N are 8, 16, 24, 32 and
// multiples of 16 to 256.
#pragma once

namespace lowbit::ptx {

#if !defined(LOWBIT_EMULATE)
#define LOWBIT_D4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define LOWBIT_D16(i) LOWBIT_D4(i), LOWBIT_D4(i + 4), LOWBIT_D4(i + 8), LOWBIT_D4(i + 12)
#define LOWBIT_D64(i) LOWBIT_D16(i), LOWBIT_D16(i + 16), LOWBIT_D16(i + 32), LOWBIT_D16(i + 48)
#define LOWBIT_AB "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(int(scale_d))

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<4>(int32_t (&d)[4], const uint32_t (&a)[4], WgmmaDescriptor b,
                                             bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {"
      "%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, %8, p;\n}"
      : LOWBIT_D4(0)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<8>(int32_t (&d)[8], const uint32_t (&a)[4], WgmmaDescriptor b,
                                             bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, p;\n}"
      : LOWBIT_D4(0), LOWBIT_D4(4)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<16>(int32_t (&d)[16], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p;\n}"
      : LOWBIT_D16(0)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<32>(int32_t (&d)[32], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p;\n}"
      : LOWBIT_D16(0), LOWBIT_D16(16)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<48>(int32_t (&d)[48], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
      "{%48, %49, %50, %51}, %52, p;\n}"
      : LOWBIT_D16(0), LOWBIT_D16(16), LOWBIT_D16(32)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<64>(int32_t (&d)[64], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p;\n}"
      : LOWBIT_D64(0)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<96>(int32_t (&d)[96], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "{%96, %97, %98, %99}, %100, p;\n}"
      : LOWBIT_D64(0), LOWBIT_D16(64), LOWBIT_D16(80)
      : LOWBIT_AB
      : "memory");
}

template <>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8<128>(int32_t (&d)[128], const uint32_t (&a)[4], WgmmaDescriptor b,
                                               bool scale_d) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "{%128, %129, %130, %131}, %132, p;\n}"
      : LOWBIT_D64(0), LOWBIT_D64(64)
      : LOWBIT_AB
      : "memory");
}

#undef LOWBIT_D4
#undef LOWBIT_D16
#undef LOWBIT_D64
#undef LOWBIT_AB
#else
template <int R>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8(int32_t (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                          bool scale_d) {
  constexpr int n = 2 * R;
  static_assert(n == 8 || n == 16 || n == 32 || n == 64 || n == 96 || n == 128 || n == 192 || n == 256,
                "wgmma: no such N");
  emu::wgmma(n, d, a, b.bits, scale_d);
}
#endif

}  // namespace lowbit::ptx
