// TMA and bulk copies (PTX 9.7.9.25.4, 9.7.9.27): issued by one thread, done by the async proxy. sm_90.
// Loads complete on an mbarrier; stores complete by bulk groups of the issuing thread.
// A box always counts its full byte number on the mbarrier, also at the edge, where the missing bytes are
// written as zeros.
#pragma once

#include "common.h"

namespace lowbit::ptx {

enum class Swizzle : uint8_t { kNone = 0, k32B = 1, k64B = 2, k128B = 3 };

// A matrix of bytes: `rows` rows of `row_bytes`, `pitch_bytes` apart. int4 and int8 are both just bytes here.
struct TensorMap2d {
  const void* pointer;
  uint64_t rows, row_bytes, pitch_bytes;
  uint32_t box_rows, box_bytes;
  Swizzle swizzle;
};

// The bytes of a CUtensorMap; under emulation the parameters themselves. Filled by encode_tensor_map_2d
// (tma_encode.h), passed to the kernel as `const LOWBIT_GRID_CONSTANT TensorMap map`.
#if !defined(LOWBIT_EMULATE)
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128);
#else
using TensorMap = emu::TensorMap;
#endif

// L2 eviction priority as a cache-hint operand: the 64-bit policies that createpolicy.fractional makes with
// fraction 1.0, as constants, the way CUTLASS spells them (cute/arch/copy_sm90_desc.hpp, TMA::CacheHintSm90).
enum class L2Hint : uint64_t {
  kEvictNormal = 0x1000000000000000ull,
  kEvictFirst = 0x12F0000000000000ull,
  kEvictLast = 0x14F0000000000000ull,
};

// cp.async.bulk.tensor.2d load (9.7.9.27.1.2). x: byte in the row, y: row; may be negative. dst 128-byte
// aligned (1024 for the 128 B swizzle). The mbarrier must expect box_rows * box_bytes.
template <class T>
LOWBIT_DEVICE void cp_async_bulk_tensor_2d_load(smem_ptr<T> dst, const TensorMap& map, int x, int y,
                                                smem_ptr<uint64_t> barrier,
                                                L2Hint hint = L2Hint::kEvictNormal) {
#if !defined(LOWBIT_EMULATE)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst.address),
      "l"(&map), "r"(x), "r"(y), "r"(barrier.address), "l"(static_cast<uint64_t>(hint))
      : "memory");
#else
  (void)hint;
  emu::tma_load_2d(dst.address, map, x, y, barrier.address);
#endif
}

// cp.async.bulk.tensor.2d store (9.7.9.27.1.2). x, y not negative; what hangs over the far edge is dropped.
template <class T>
LOWBIT_DEVICE void cp_async_bulk_tensor_2d_store(const TensorMap& map, int x, int y, smem_ptr<T> src) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
               "r"(x), "r"(y), "r"(src.address)
               : "memory");
#else
  emu::tma_store_2d(map, x, y, src.address);
#endif
}

// cp.async.bulk global -> shared (9.7.9.25.4.1). dst, src and bytes are multiples of 16.
template <class T, class U>
LOWBIT_DEVICE void cp_async_bulk_load(smem_ptr<T> dst, const U* src, uint32_t bytes,
                                      smem_ptr<uint64_t> barrier, L2Hint hint = L2Hint::kEvictNormal) {
#if !defined(LOWBIT_EMULATE)
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
      "[%3], %4;" ::"r"(dst.address),
      "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(barrier.address), "l"(static_cast<uint64_t>(hint))
      : "memory");
#else
  (void)hint;
  emu::bulk_load(dst.address, src, bytes, barrier.address);
#endif
}

// cp.async.bulk shared -> global (9.7.9.25.4.1).
template <class T, class U>
LOWBIT_DEVICE void cp_async_bulk_store(U* dst, smem_ptr<T> src, uint32_t bytes) {
#if !defined(LOWBIT_EMULATE)
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(dst)),
      "r"(src.address), "r"(bytes)
      : "memory");
#else
  emu::bulk_store(dst, src.address, bytes);
#endif
}

// cp.async.bulk.commit_group (9.7.9.25.4.3): this thread's stores so far form a group.
LOWBIT_DEVICE void cp_async_bulk_commit_group() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emu::bulk_commit_group();
#endif
}

// cp.async.bulk.wait_group (9.7.9.25.4.4): at most kPending newest groups are not complete.
template <int kPending>
LOWBIT_DEVICE void cp_async_bulk_wait_group() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emu::bulk_wait_group(kPending, false);
#endif
}

// .read: the source bytes may be written again; the global bytes may still be on their way. Enough before
// exit.
template <int kPending>
LOWBIT_DEVICE void cp_async_bulk_wait_group_read() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#else
  emu::bulk_wait_group(kPending, true);
#endif
}

// prefetch.tensormap (9.7.9.16): a hint, once per CTA.
LOWBIT_DEVICE void prefetch_tensormap(const TensorMap& map) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
  (void)map;
  emu::count_call("prefetch.tensormap");
#endif
}

}  // namespace lowbit::ptx
