// From transformed rows in the tile to codes or floats: scaled, picked by an index, times a factor,
// minus a shift where there is one.
#pragma once

#include "../quantize/adjust.cuh"
#include "rows.cuh"

namespace lowbit::kernels::hadamard {

// Half a chunk at e of the tile, times the scale; zeros from `count` on. An odd n has blocks of one element.
template <bool kShared>
LOWBIT_DEVICE void get_scaled(const Work<kShared>& w, const Params& p, int e, int count, float* x) {
  ptx::Vector<float, 4> v{};
  if (p.n % 4 == 0) {
    if (count > 0) v = w.tile.template load_at<4>(Tile<kShared>::place(e));
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i)
      if (i < count) v[i] = w.tile.template load_at<1>(Tile<kShared>::place(e + i))[0];
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = ptx::mul_rn(v[i], p.scale);
}

LOWBIT_DEVICE bool adjusted(const quantize::Adjust& a) { return a.index || a.factor || a.shift; }

template <bool kWide, bool kShared>
LOWBIT_DEVICE void get_adjusted(const Work<kShared>& w, const Params& p, int begin, int k, int count,
                                float (&x)[kChunk]) {
  if (p.adjust.index) {
    quantize::gather_chunk<kWide>(x, p.adjust, int(p.n), k, count, [&](int e) {
      return ptx::mul_rn(w.tile.template load_at<1>(Tile<kShared>::place(begin + e))[0], p.scale);
    });
  } else {
    get_scaled(w, p, begin + k, count - k, x);
    get_scaled(w, p, begin + k + 4, count - k - 4, x + 4);
  }
  quantize::multiply_factor<kWide>(x, p.adjust.factor, k, count);
  if (p.adjust.shift) quantize::subtract_shift<kWide>(x, p.adjust.shift, k, count);
}

// What becomes the codes k .. k + 7 of the row that begins at `begin` of the tile; zeros from `count` on.
template <bool kShared>
LOWBIT_DEVICE void get_values(const Work<kShared>& w, const Launch& a, int begin, int k, int count,
                              float (&x)[kChunk]) {
  if (!adjusted(a.p.adjust)) {
    get_scaled(w, a.p, begin + k, count - k, x);
    get_scaled(w, a.p, begin + k + 4, count - k - 4, x + 4);
  } else if (a.c.wide_adjust) {
    get_adjusted<true>(w, a.p, begin, k, count, x);
  } else {
    get_adjusted<false>(w, a.p, begin, k, count, x);
  }
}

// Rows of floats need no maximum: chunk by chunk, whosever row it is.
template <bool kShared>
LOWBIT_DEVICE void store_float_rows(const Work<kShared>& w, const Launch& a) {
  const quantize::Output& to = a.p.to;
  const int n = int(a.p.n), chunks = a.c.chunks;
  LOWBIT_NO_UNROLL
  for (int at = ptx::thread_index(); at < w.count / n * chunks; at += ptx::thread_count()) {
    const int row = at / chunks, chunk = at % chunks;
    float x[kChunk];
    get_values(w, a, row * n, chunk * kChunk, int(a.p.n_out), x);
    uint8_t* y = static_cast<uint8_t*>(to.q) + (w.index * a.c.tile_rows + row) * to.stride;
    if (a.c.wide_codes) quantize::store_floats<true>(to, y, chunk, x);
    else quantize::store_floats<false>(to, y, chunk, x);
  }
}

// Rows of at most 1024, several per tile: each by a part of a warp, that holds it in registers.
template <bool kShared>
LOWBIT_DEVICE void quantize_short_rows(const Work<kShared>& w, const Launch& a) {
  const quantize::Team& team = a.c.team;
  const int row = ptx::thread_index() / team.size, thread = ptx::thread_index() % team.size;
  const bool active = row < w.count / int(a.p.n);
  const int begin = active ? row * int(a.p.n) : 0, count = active ? int(a.p.n_out) : 0;
  const auto load = [&](float (&x)[4][kChunk], int) {
    LOWBIT_UNROLL
    for (int c = 0; c < 4; ++c) get_values(w, a, begin, (thread + c * team.size) * kChunk, count, x[c]);
  };
  quantize::quantize_rows<4, false>(quantize::RowCoder{a.p.to, int(a.p.n_out), a.c.wide_codes}, team,
                                    a.c.chunks, w.index * a.c.tile_rows + row, active,
                                    ptx::dynamic_smem<uint32_t>(), load);
}

// One row by the whole block; the largest magnitude is known from the last stage, if nothing changes it
// since. Rounding is monotonic, so the scaled maximum is the maximum of the scaled.
template <bool kShared>
LOWBIT_DEVICE void quantize_long_row(const Work<kShared>& w, const Launch& a) {
  const Params& p = a.p;
  const int n = int(p.n_out), threads = ptx::thread_count();
  const int64_t row = w.index;
  const quantize::RowCoder coder{p.to, n, a.c.wide_codes};
  quantize::Scale s{1.f, 1.f};
  if (!coder.fixed()) {
    uint32_t most = w.most;
    if (adjusted(p.adjust)) {
      most = 0;
      LOWBIT_NO_UNROLL
      for (int chunk = ptx::thread_index(); chunk < a.c.chunks; chunk += threads) {
        float x[kChunk];
        get_values(w, a, 0, chunk * kChunk, n, x);
        most = quantize::max_magnitude(most, x);
      }
    } else {
      most = ptx::bit_cast<uint32_t>(ptx::mul_rn(ptx::bit_cast<float>(most), p.scale));
    }
    s = coder.scale(quantize::team_max(most, a.c.team, ptx::dynamic_smem<uint32_t>()));
    if (ptx::thread_index() == 0) ptx::st_global(coder.scales() + row, s.scale);
  }
  uint8_t* q = coder.row(row);
  LOWBIT_NO_UNROLL
  for (int first = 0; first < a.c.chunks; first += threads) {  // collective: whole warps go round
    const int chunk = first + ptx::thread_index();
    float x[kChunk];
    get_values(w, a, 0, chunk * kChunk, n, x);
    coder.store(q, chunk, x, s.inverse, chunk < a.c.chunks);
  }
}

}  // namespace lowbit::kernels::hadamard
