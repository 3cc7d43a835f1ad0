// What ptx/ calls when LOWBIT_EMULATE is defined: one function per instruction, plain types only. The calling
// fiber is the CUDA thread. Functions that load or store are out of line on purpose: the return address names
// the access site, by which the lanes of a warp are grouped into one request (counters.cpp).
#pragma once

#include <cstdint>

namespace lowbit::emu {

enum class Mma { kS4S4, kS8S8, kU8S8, kS8U8, kF16F16, kBf16Bf16 };
enum class Shfl { kXor, kIdx, kUp, kDown };

// The parameters that cuTensorMapEncodeTiled would bake; swizzle 0 none, 1 32 B, 2 64 B, 3 128 B.
struct TensorMap {
  const void* pointer;
  uint64_t rows, row_bytes, pitch_bytes;
  uint32_t box_rows, box_bytes, swizzle;
};

// Indices.
uint32_t dynamic_smem_base();
int thread_index();
int thread_count();
int block_index(int axis);
int grid_size(int axis);
void count_call(const char* name);

// Warp collectives.
void mma(Mma kind, void* d, const uint32_t* a, const uint32_t* b);
void ldmatrix(uint32_t* r, int matrices, bool trans, uint32_t row);
void stmatrix(const uint32_t* r, int matrices, bool trans, uint32_t row);
uint32_t shfl(Shfl mode, uint32_t value, int n);
uint32_t redux(const char* op, uint32_t value);
uint32_t ballot(bool predicate);
bool elect_sync();
void setmaxnreg(int registers, bool increase);

// Barriers and fences.
void syncthreads();
void syncwarp();
void bar_sync(int id, int threads);
void bar_arrive(int id, int threads);
void fence_proxy_async();
void threadfence();

void mbarrier_init(uint32_t address, int count);
void mbarrier_inval(uint32_t address);
void mbarrier_arrive(uint32_t address);
void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_expect_tx(uint32_t address, uint32_t bytes);
bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity);
void mbarrier_wait_parity(uint32_t address, uint32_t parity);
void fence_mbarrier_init();

// Memory.
void ld_global(void* value, const void* p, int bytes);
void st_global(void* p, const void* value, int bytes);
void ld_shared(void* value, uint32_t address, int bytes);
void st_shared(uint32_t address, const void* value, int bytes);
void red_add_global_s32(int32_t* p, int32_t value);
uint32_t atom_add_acq_rel_global_u32(uint32_t* p, uint32_t value);
uint32_t ld_acquire_global_u32(const uint32_t* p);
void st_release_global_u32(uint32_t* p, uint32_t value);

void cp_async(int bytes, int src_bytes, uint32_t dst, const void* src);
void cp_async_commit_group();
void cp_async_wait_group(int pending);
void cp_async_wait_all();
void cp_async_mbarrier_arrive_noinc(uint32_t barrier);

void tma_load_2d(uint32_t dst, const TensorMap& map, int x, int y, uint32_t barrier);
void tma_store_2d(const TensorMap& map, int x, int y, uint32_t src);
void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t barrier);
void bulk_store(void* dst, uint32_t src, uint32_t bytes);
void bulk_commit_group();
void bulk_wait_group(int pending, bool read_only);

// Warpgroup collectives.
void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(int pending);
void wgmma_fence_operand(const void* registers, int count);
void wgmma(Mma kind, int n, void* d, const uint32_t* a, uint64_t descriptor, bool scale_d);  // s8, f16, bf16

// Arithmetic.
uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector);
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int lut);
int32_t dp4a(uint32_t a, uint32_t b, int32_t c);
uint32_t cvt_pack_sat(int32_t a, int32_t b, uint32_t c, int bits);
float sqrt_rn(float a);
float fma_rn(float a, float b, float c);
float max_f32(float a, float b);
float min_f32(float a, float b);
float rint_f32(float a);
float ex2(float a);
uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c);
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);
float cvt_rn_f32_s32(int32_t a);
int32_t cvt_rni_s32_f32(float a);

}  // namespace lowbit::emu
