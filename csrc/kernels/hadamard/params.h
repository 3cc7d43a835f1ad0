// (H_K x H_2^m) transforms of rows on CUDA, plain or quantised before they leave the chip: what the kernels
// take. No torch.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "../quantize/params.h"

namespace lowbit::kernels::hadamard {

struct Params {
  const void* x;  // [rows, n] contiguous; gated: [rows, 2 n], the gate first
  void* y;        // [rows, n] contiguous, may be x; unused when `quantised`
  DType dtype;    // of x and y
  int64_t rows, n;
  int64_t order, two;  // K and 2^m; their product, the block, divides n
  // H_K as the table mixing reads it: [K, K / 4, 4] floats +-1, or null where the config unrolls it. Row (j,
  // g) = (p1, p3, q, s): y[j] += s * ((x0 + p1 x1) + q (x2 + p3 x3)), x0..x3 = inputs 4 g .. 4 g + 3.
  const float* mix;
  bool transposed;  // mix holds the transpose; no unrolled one exists
  float scale;      // multiplied last
  bool quantised;
  bool gated;  // activation(gate) * up is transformed; with `quantised` only
  Activation activation;
  const float* shift;       // [n] subtracted first, or null; with `quantised` only
  quantize::Adjust adjust;  // of the result, on its way to codes; with `quantised` only
  int64_t n_out;            // codes per row; n without adjust.index; with `quantised`
  quantize::Output to;      // with `quantised`; scale null: static codes, then clip is 0
  float* workspace;         // Config::workspace floats, 16-byte aligned
};

struct Config;

Error hadamard_launch(const Params& p, const Config& c, const Device& device, Stream stream);

}  // namespace lowbit::kernels::hadamard
