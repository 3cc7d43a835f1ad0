// The kernels of tests/emu/wrapper_kernels.cuh on a GPU, behind C functions: what machine.py calls to hold
// the emulator against the hardware. Pointers are device pointers; each call waits, and returns null or a
// sentence.
#include "../../csrc/kernels/common/launch.cuh"
#include "../../csrc/ptx/tma_encode.h"
#include "../emu/wrapper_kernels.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace lowbit;
using Words = uint32_t*;
using Bytes = uint8_t*;

template <class... P>
const char* run(void (*kernel)(P...), int blocks, int threads, int smem,
                const typename kernels::Same<P>::Type&... arguments) {
  if (kernels::Error error = kernels::launch(kernel, {blocks}, threads, smem, nullptr, arguments...))
    return error;
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

EXPORT const char* gpu_mma(int kind, Words a, Words b, Words d, int repeat) {
  return run(wrappers::mma_kernel, 1, 32, 0, kind, a, b, d, repeat);
}
EXPORT const char* gpu_ldmatrix(int matrices, bool trans, Bytes bytes, int* rows, Words r) {
  return run(wrappers::ldmatrix_kernel, 1, 32, 640, matrices, trans, bytes, rows, r);
}
EXPORT const char* gpu_warp(Words value, int* n, Words out) {
  return run(wrappers::warp_kernel, 1, 32, 0, value, n, out);
}
EXPORT const char* gpu_cp_async(Bytes src, int* src_bytes, Bytes out) {
  return run(wrappers::cp_async_kernel, 1, 32, 2048, src, src_bytes, out);
}
EXPORT const char* gpu_bits(Words a, Words b, Words c, Words out, int n) {
  return run(wrappers::bits_kernel, 1, 32, 0, a, b, c, out, n);
}
EXPORT const char* gpu_memory(Bytes in, Bytes out) {
  return run(wrappers::memory_kernel, 1, 32, 512, in, out);
}
EXPORT const char* gpu_ticket(int* x, int blocks, int* sum, Words ticket, int* y, bool acquire) {
  return run(wrappers::ticket_kernel, blocks, 32, 0, x, sum, ticket, y, acquire);
}

#if !defined(LOWBIT_WRAPPERS_SM80)

EXPORT const char* gpu_stmatrix(bool trans, Words r, int* rows, Bytes bytes) {
  return run(wrappers::stmatrix_kernel, 1, 32, 640, trans, r, rows, bytes);
}
EXPORT const char* gpu_named_barrier(Words out) {
  return run(wrappers::named_barrier_kernel, 1, 64, 128, out);
}
EXPORT const char* gpu_cp_async_mbarrier(Bytes in, Bytes out) {
  return run(wrappers::cp_async_mbarrier_kernel, 1, 64, 1024, in, out);
}
EXPORT const char* gpu_barrier_life(Bytes in, Words out) {
  return run(wrappers::barrier_life_kernel, 1, 64, 1024, in, out);
}
EXPORT const char* gpu_setmaxnreg(Words in, Words out) {
  return run(wrappers::setmaxnreg_kernel, 1, 384, 0, in, out);
}

namespace {
const char* make_map(ptx::TensorMap* map, Bytes matrix, int rows, int row_bytes, int pitch, int box_rows,
                     int box_bytes, int swizzle) {
  return ptx::encode_tensor_map_2d(map, {matrix, uint64_t(rows), uint64_t(row_bytes), uint64_t(pitch),
                                         uint32_t(box_rows), uint32_t(box_bytes), ptx::Swizzle(swizzle)});
}

template <int N, int kSteps, class Kind = wrappers::Int8>
const char* wgmma(Words a, Bytes tile, typename Kind::Sum* d, bool swizzled, bool accumulate, int repeat) {
  return run(wrappers::wgmma_kernel<N, kSteps, Kind>, 1, 128, N * 32 * kSteps + 1024, a, tile, d, swizzled,
             accumulate, repeat);
}
}  // namespace

EXPORT const char* gpu_tma_load(Bytes matrix, int rows, int row_bytes, int pitch, int box_rows, int box_bytes,
                                int swizzle, int x, int y, Bytes out) {
  ptx::TensorMap map;
  if (const char* error = make_map(&map, matrix, rows, row_bytes, pitch, box_rows, box_bytes, swizzle))
    return error;
  const int bytes = box_rows * box_bytes;
  return run(wrappers::tma_load_kernel, 1, 32, bytes + 2048, map, x, y, bytes, out);
}

EXPORT const char* gpu_bulk(Bytes in, Bytes matrix, int rows, int row_bytes, int pitch, int box_rows,
                            int box_bytes, int swizzle, int x, int y, Bytes out) {
  ptx::TensorMap map;
  if (const char* error = make_map(&map, matrix, rows, row_bytes, pitch, box_rows, box_bytes, swizzle))
    return error;
  const int bytes = box_rows * box_bytes;
  return run(wrappers::bulk_kernel, 1, 32, bytes + 2048, in, bytes, map, x, y, out);
}

EXPORT const char* gpu_wgmma(int n, int steps, Words a, Bytes tile, int* d, bool swizzled, bool accumulate,
                             int repeat) {
#define SHAPE(N, S) \
  if (n == N && steps == S) return wgmma<N, S>(a, tile, d, swizzled, accumulate, repeat)
  SHAPE(8, 4);
  SHAPE(16, 4);
  SHAPE(32, 4);
  SHAPE(64, 4);
  SHAPE(96, 4);
  SHAPE(128, 4);
  SHAPE(192, 4);
  SHAPE(256, 4);
  SHAPE(32, 1);
  SHAPE(32, 2);
  SHAPE(128, 1);
  SHAPE(128, 2);
#undef SHAPE
  return "wgmma: this shape is not compiled";
}

EXPORT const char* gpu_wgmma_half(bool bf16, int n, int steps, Words a, Bytes tile, float* d, bool swizzled,
                                  bool accumulate, int repeat) {
#define SHAPE(N)                                                                      \
  if (n == N && steps == 4)                                                           \
  return bf16 ? wgmma<N, 4, wrappers::Bf16>(a, tile, d, swizzled, accumulate, repeat) \
              : wgmma<N, 4, wrappers::Fp16>(a, tile, d, swizzled, accumulate, repeat)
  SHAPE(8);
  SHAPE(64);
  SHAPE(128);
  SHAPE(256);
#undef SHAPE
  return "wgmma_half: this shape is not compiled";
}

#endif
