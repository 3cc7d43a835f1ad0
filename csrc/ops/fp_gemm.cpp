// Weight-only linear layers in 4- and 6-bit formats, the layouts that their kernels read, and the codec.
#include "fp_gemm.h"

#include <atomic>
#include <cstring>

namespace lowbit::ops {
namespace {

Tensor prepack_fp_weight(const Tensor& weight_in, std::string_view name, int64_t k) {
  constexpr const char* op = "prepack_fp_weight";
  const Format format = format_of(name, op, "format", kWeightOnlyFormats);
  const int bits = bits_of(format);
  check_dtype(weight_in, ScalarType::Byte, op, "weight_packed");
  check(weight_in.dim() == 2, op, ": weight_packed has ", weight_in.dim(),
        " dimensions, expected [N, bytes]");
  check(k >= 0 && weight_in.size(1) == packed_bytes(k, format), op, ": weight_packed has ", weight_in.size(1),
        " bytes per row, expected ", packed_bytes(k, format), " for ", k, " codes of ", name);
  const Tensor weight = as_contiguous(weight_in);
  const int64_t n = weight.size(0), bytes = weight.size(1), k_tiles = ceil_div(k, fp_tile::kK);
  const int64_t tile_bytes = fp_tile::bytes(bits), n_tiles = ceil_div(n, fp_tile::kN);
  Tensor tiles = empty({n_tiles, k_tiles, tile_bytes}, ScalarType::Byte);
  uint8_t* to = static_cast<uint8_t*>(tiles.mutable_data_ptr());
  const uint8_t* from = static_cast<const uint8_t*>(weight.const_data_ptr());
  memset(to, 0, size_t(n_tiles * k_tiles * tile_bytes));
  const int flip = format == Format::kInt4 ? int4::kOffset : 0;  // offset-8 to two's complement
  parallel(n_tiles, 1 + 65536 / (k * 16 + 1), [&](int64_t, int64_t begin, int64_t end) {
    const int64_t last = end * fp_tile::kN < n ? end * fp_tile::kN : n;
    for (int64_t row = begin * fp_tile::kN; row < last; ++row)
      for (int64_t i = 0; i < k; ++i) {
        const int64_t bit = i * bits;
        const uint8_t* at = from + row * bytes + bit / 8;
        const int word = at[0] | (bit % 8 + bits > 8 ? at[1] << 8 : 0);
        const int code = ((word >> bit % 8) & ((1 << bits) - 1)) ^ flip;
        const fp_tile::Place place = fp_tile::place(row % fp_tile::kN, i % fp_tile::kK, bits);
        uint8_t* tile = to + (row / fp_tile::kN * k_tiles + i / fp_tile::kK) * tile_bytes;
        for (int j = 0; j < place.pieces; ++j) {
          const fp_tile::Piece& p = place.piece[j];
          const int piece = ((code >> p.from) & ((1 << p.count) - 1)) << p.at;
          tile[2 * p.word] |= uint8_t(piece), tile[2 * p.word + 1] |= uint8_t(piece >> 8);
        }
      }
  });
  return tiles;
}

template <class T>
void interleave(const Tensor& from_tensor, Tensor& to_tensor, int64_t n, int64_t groups, T one) {
  const T* from = static_cast<const T*>(from_tensor.const_data_ptr());
  T* to = static_cast<T*>(to_tensor.mutable_data_ptr());
  for (int64_t row = 0; row < ceil_div(n, fp_tile::kN) * fp_tile::kN; ++row)
    for (int64_t g = 0; g < groups; ++g)
      to[(row / fp_tile::kN * groups + g) * fp_tile::kN + row % fp_tile::kN] =
          row < n ? from[row * groups + g] : one;
}

Tensor prepack_fp_group_scale(const Tensor& scale_in) {
  constexpr const char* op = "prepack_fp_group_scale";
  const bool is_e8m0 = scale_in.scalar_type() == ScalarType::Byte;
  check(is_e8m0 || scale_in.scalar_type() == ScalarType::Half, op, ": group_scale has dtype ",
        name_of(scale_in.scalar_type()), ", expected uint8 (e8m0) or float16");
  check(scale_in.dim() == 2, op, ": group_scale has ", scale_in.dim(),
        " dimensions, expected [N, K / group]");
  const Tensor scale = as_contiguous(scale_in);
  const int64_t n = scale.size(0), groups = scale.size(1);
  Tensor tiles = empty({ceil_div(n, fp_tile::kN), groups, fp_tile::kN}, scale.scalar_type());
  if (is_e8m0) {
    const uint8_t* code = static_cast<const uint8_t*>(scale.const_data_ptr());
    for (int64_t i = 0; i < n * groups; ++i)
      check(code[i] != e8m0::kNaN, op, ": group_scale[", i / groups, ", ", i % groups,
            "] is 255, the NaN of e8m0, expected 0 to 254");
    interleave<uint8_t>(scale, tiles, n, groups, e8m0::kBias);
  } else {
    interleave<uint16_t>(scale, tiles, n, groups, 0x3c00);
  }
  return tiles;
}

// Each thread takes its rows through the whole product.
void run_parts(const cpu::FpGemmParams& p, int64_t part) {
  const cpu::Kernels& kernels = cpu::active();
  cpu::FpGemmParams one = p;
  one.m = part;
  const int64_t words = (kernels.fp_panel_words(one) + 15) / 16 * 16;
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  Workspace panels(words * threads() * 4);
  parallel(ceil_div(p.m, part), 1, [&](int64_t thread, int64_t begin, int64_t end) {
    for (int64_t row = begin * part; row < end * part && row < p.m; row += part) {
      cpu::FpGemmParams q = p;
      q.m = p.m - row < part ? p.m - row : part;
      q.x = static_cast<const char*>(p.x) + row * p.k * element;
      q.y = static_cast<char*>(p.y) + row * p.n * element;
      if (p.residual) q.residual = static_cast<const char*>(p.residual) + row * p.n * element;
      q.panels = panels.as<float>() + thread * words;
      q.split = kernels.fp_prefers_split(q);
      if (!kernels.fp_pack(q, 0, kernels.fp_panel_count(q)) && q.split) {
        q.split = false;
        kernels.fp_pack(q, 0, kernels.fp_panel_count(q));
      }
      kernels.fp_tiles(q, 0, ceil_div(q.n, fp_tile::kN));
    }
  });
}

Tensor fp_linear(const Tensor& x_in, const Tensor& weight, std::string_view format, const Tensor& w_scale,
                 const OptTensor& group_scale, const OptTensor& bias, const OptTensor& residual_in) {
  constexpr const char* op = "fp_linear";
  const DType dtype = float_dtype(x_in.scalar_type(), op, "x");
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  const FpLayer layer(op, kCpuFpTiles, rows.length, weight, format, w_scale, group_scale, bias);
  Shape shape = shape_of(x);
  shape.back() = layer.n;
  const OptTensor residual = residual_of(op, residual_in, shape, x.scalar_type());
  Tensor y = empty(shape, x.scalar_type());
  if (!rows.count || !layer.n) return y;

  cpu::FpGemmParams p{};
  p.m = rows.count, p.n = layer.n, p.k = rows.length, p.format = layer.format, p.group = layer.group;
  p.weight = static_cast<const uint8_t*>(layer.weight.const_data_ptr());
  if (layer.group_scale) {
    p.group_scale = static_cast<const uint8_t*>(layer.group_scale->const_data_ptr());
    p.scale_fp16 = layer.group_scale->scalar_type() == ScalarType::Half;
  }
  p.dtype = dtype, p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.w_scale = static_cast<const float*>(layer.w_scale.const_data_ptr());
  p.bias = floats(layer.bias);
  if (residual) p.residual = residual->const_data_ptr();

  const cpu::Kernels& kernels = cpu::active();
  if (const int64_t part = rows_of_part(p.m, p.n); part < p.m) {
    run_parts(p, part);
    return y;
  }
  Workspace panels(kernels.fp_panel_words(p) * 4);
  p.panels = panels.as<float>();
  const int64_t count = kernels.fp_panel_count(p), per_panel = p.m / count * p.k + 1;
  p.split = kernels.fp_prefers_split(p);
  std::atomic<bool> fits{true};
  const auto pack = [&](int64_t, int64_t begin, int64_t end) {
    if (!kernels.fp_pack(p, begin, end)) fits = false;
  };
  parallel(count, 1 + 32768 / per_panel, pack);
  if (p.split && !fits) {  // activations of unusual size: the other way, from the start
    p.split = false;
    parallel(count, 1 + 32768 / per_panel, pack);
  }
  // a piece of work below ~30k multiply-adds costs less than waking a thread
  const int64_t per_tile = fp_tile::kN * p.k * p.m + 1;
  parallel(ceil_div(p.n, fp_tile::kN), 1 + 32768 / per_tile,
           [&](int64_t, int64_t begin, int64_t end) { kernels.fp_tiles(p, begin, end); });
  return y;
}

Tensor encode_fp(const Tensor& x_in, std::string_view format, bool ties_away) {
  constexpr const char* op = "encode_fp";
  cpu::EncodeParams p{};
  p.format = format_of(format, op, "format", kFloatFormats);
  p.dtype = float_dtype(x_in.scalar_type(), op, "x");
  const Tensor x = as_contiguous(x_in);
  Tensor codes = empty(shape_of(x), ScalarType::Byte);
  p.x = x.const_data_ptr(), p.ties_away = ties_away;
  p.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  parallel(x.numel(), 65536,
           [&](int64_t, int64_t begin, int64_t end) { cpu::active().encode_fp(p, begin, end); });
  return codes;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("prepack_fp_weight", TORCH_BOX(&prepack_fp_weight));
  m.impl("prepack_fp_group_scale", TORCH_BOX(&prepack_fp_group_scale));
  m.impl("fp_linear", TORCH_BOX(&fp_linear));
  m.impl("encode_fp", TORCH_BOX(&encode_fp));
}
