// What the weight-only ops check alike on every device. The sentences name argument, expected, got.
#pragma once

#include <string_view>

#include "../layout/fp_tile.h"
#include "../numeric/format.h"
#include "common.h"

namespace lowbit::ops {

inline Format format_of(std::string_view name, const char* op, const char* arg,
                        std::initializer_list<Format> allowed) {
  std::string names;
  for (const Format f : allowed) {
    if (name == kFormatNames[int(f)]) return f;
    names += (names.empty() ? "" : ", ") + std::string(kFormatNames[int(f)]);
  }
  check(false, op, ": ", arg, " is \"", name, "\", expected one of ", names);
  return Format::kInt4;
}

constexpr std::initializer_list<Format> kFloatFormats = {Format::kE3M2, Format::kE2M3, Format::kE2M1,
                                                         Format::kE1M2, Format::kE3M0};
constexpr std::initializer_list<Format> kWeightOnlyFormats = {Format::kE3M2, Format::kE2M3, Format::kE2M1,
                                                              Format::kE1M2, Format::kE3M0, Format::kInt4};

// Bytes of a row of k codes in the checkpoint.
inline int64_t packed_bytes(int64_t k, Format format) {
  return bits_of(format) == 6 ? (k + 3) / 4 * 3 : (k + 1) / 2;
}

// The pieces of n x k codes that a prepacked weight is made of.
struct FpPieces {
  int64_t n, k;
};
constexpr FpPieces kCpuFpTiles{fp_tile::kN, fp_tile::kK};

// Weight, scales and bias of fp_linear.
struct FpLayer {
  int64_t n, k, group = 0;
  Format format;
  Tensor weight, w_scale;
  OptTensor group_scale, bias;

  FpLayer(const char* op, const FpPieces& pieces, int64_t k, const Tensor& weight_in, std::string_view name,
          const Tensor& w_scale_in, const OptTensor& group_scale_in, const OptTensor& bias_in)
      : k(k), weight(as_contiguous(weight_in)), w_scale(as_contiguous(w_scale_in)) {
    format = format_of(name, op, "format", kWeightOnlyFormats);
    check_dtype(weight, ScalarType::Byte, op, "weight");
    check_dtype(w_scale, ScalarType::Float, op, "w_scale");
    n = w_scale.numel();
    check_shape(weight,
                {ceil_div(n, pieces.n), ceil_div(k, pieces.k), pieces.n * pieces.k * bits_of(format) / 8}, op,
                "weight (tiles of prepack_fp_weight)");
    if (group_scale_in) set_groups(op, pieces, as_contiguous(*group_scale_in));
    bias = float_bias(bias_in, n, op);
  }

 private:
  void set_groups(const char* op, const FpPieces& pieces, const Tensor& tiles) {
    const bool e8m0 = tiles.scalar_type() == ScalarType::Byte;
    check(e8m0 || tiles.scalar_type() == ScalarType::Half, op, ": group_scale has dtype ",
          name_of(tiles.scalar_type()), ", expected uint8 (e8m0, groups of 32) or float16");
    check(tiles.dim() == 3 && tiles.size(0) == ceil_div(n, pieces.n) && tiles.size(2) == pieces.n, op,
          ": group_scale has shape ", text(shape_of(tiles)), ", expected the [", ceil_div(n, pieces.n),
          ", groups, ", pieces.n, "] of prepack_fp_group_scale");
    if (e8m0 && ceil_div(k, 32) == tiles.size(1)) group = 32;
    for (const int64_t g : {128, 64, 32})
      if (!e8m0 && ceil_div(k, g) == tiles.size(1)) group = g;
    check(group != 0, op, ": group_scale has ", tiles.size(1), " groups for K = ", k, ", expected ",
          e8m0 ? "ceil(K / 32)" : "ceil(K / g) with g of 32, 64 or 128");
    group_scale = tiles;
  }
};

}  // namespace lowbit::ops
