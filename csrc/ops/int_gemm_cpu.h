// The integer GEMM on the CPU: a checked layer, its workspace, its threads.
#pragma once

#include "int_gemm.h"

namespace lowbit::ops {

struct CpuLayer : LinearLayer {
  cpu::GemmParams p{};

  template <class... Args>
  explicit CpuLayer(const char* op, const Args&... args) : LinearLayer(op, kCpuTiles, args...) {
    p.m = m, p.k = k, p.n = n, p.weight_int8 = int8, p.group = group;
    p.weight = static_cast<const uint8_t*>(weight.const_data_ptr());
    p.w_scale = static_cast<const float*>(w_scale.const_data_ptr());
    if (group_scale) p.group_scale = static_cast<const uint8_t*>(group_scale->const_data_ptr());
    if (bias) p.bias = static_cast<const float*>(bias->const_data_ptr());
    // the 32-bit sum of K products of at most 128 * 128 (or 8 * 128) in magnitude
    check_depth(op, int8 || group_scale ? 131071 : 2097151);
  }

  void add(const Addends& a) {
    if (a.residual) p.residual = a.residual->const_data_ptr();
    if (!a.rank) return;
    p.rank = a.rank;
    p.low_rank = static_cast<const float*>(a.low_rank->const_data_ptr());
    p.low_rank_up = static_cast<const float*>(a.low_rank_up->const_data_ptr());
  }

  void run(Tensor& y, DType dtype) {
    run(y, dtype, [](int64_t, int64_t, int64_t) {});
  }

  // make_codes(thread, row_begin, row_end) makes p.x.
  template <class MakeCodes>
  void run(Tensor& y, DType dtype, const MakeCodes& make_codes) {
    p.y = y.mutable_data_ptr(), p.y_dtype = dtype;
    if (!p.m || !p.n) return;
    const int64_t part = rows_of_part(p.m, p.n);
    if (part < p.m) return run_parts(part, make_codes);
    const cpu::Kernels& kernels = cpu::active();
    Workspace panels(kernels.gemm_panel_words(p) * 4);
    p.panels = panels.as<int32_t>();
    const int64_t count = kernels.gemm_panel_count(p), per_panel = (p.m / count) * p.k + 1;
    parallel(p.m, 1 + 32768 / (p.k + 1), make_codes);
    parallel(count, 1 + 65536 / per_panel,
             [&](int64_t, int64_t begin, int64_t end) { kernels.gemm_pack(p, begin, end); });
    // a piece of work below ~100k multiply-adds costs less than waking a thread
    const int64_t per_tile = tile::kN * p.k * p.m + 1;
    const int64_t tiles = ceil_div(p.n, tile::kN);
    parallel(tiles, 1 + 131072 / per_tile,
             [&](int64_t, int64_t begin, int64_t end) { kernels.gemm_tiles(p, begin, end); });
  }

 private:
  template <class MakeCodes>
  void run_parts(int64_t part, const MakeCodes& make_codes) {
    const cpu::Kernels& kernels = cpu::active();
    cpu::GemmParams one = p;
    one.m = part;
    const int64_t words = (kernels.gemm_panel_words(one) + 15) / 16 * 16;
    Workspace panels(words * threads() * 4);
    parallel(ceil_div(p.m, part), 1, [&](int64_t thread, int64_t begin, int64_t end) {
      for (int64_t row = begin * part; row < end * part && row < p.m; row += part) {
        cpu::GemmParams q = p;
        q.m = p.m - row < part ? p.m - row : part;
        make_codes(thread, row, row + q.m);
        const int64_t element = p.y_dtype == DType::f32 ? 4 : 2, skipped = row * p.n * element;
        q.x += row * p.x_stride, q.y = static_cast<char*>(p.y) + skipped;
        if (p.x_scale) q.x_scale += row;
        if (p.low_rank) q.low_rank += row * p.rank;
        if (p.residual) q.residual = static_cast<const char*>(p.residual) + skipped;
        q.panels = panels.as<int32_t>() + thread * words;
        kernels.gemm_pack(q, 0, kernels.gemm_panel_count(q));
        kernels.gemm_tiles(q, 0, ceil_div(q.n, tile::kN));
      }
    });
  }
};

}  // namespace lowbit::ops
