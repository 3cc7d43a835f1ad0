// Compiled for the AVX-512 sets: what a CPU with AMX does better. LOWBIT_ISA and LOWBIT_VEC as in
// int_gemm.cpp.
#include LOWBIT_VEC
#include "causal_attention_amx-inl.h"
#include "fp_gemm_amx-inl.h"
#include "int_gemm_amx-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void use_tiles(Kernels& k) {
  k.gemm_panel_words = tile_gemm_panel_words;
  k.gemm_panel_count = tile_gemm_panel_count;
  k.gemm_pack = tile_gemm_pack;
  k.gemm_tiles = tile_gemm_tiles;
  k.fp_panel_words = tile_fp_panel_words;
  k.fp_panel_count = tile_fp_panel_count;
  k.fp_pack = tile_fp_pack;
  k.fp_tiles = tile_fp_tiles;
  k.causal_work = tile_causal_work;
  k.causal_pack = tile_causal_pack;
  k.causal_items = tile_causal_items;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
