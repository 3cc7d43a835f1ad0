// Every instruction set that this machine has (and SIMDe's, where built) against scalar, bit for bit, on
// buffers of exactly the promised size: under AddressSanitizer a read or write past an end stops the program.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/layout/weight_tile.h"
#include "../../csrc/numeric/ceil_div.h"

using namespace lowbit;
using namespace lowbit::cpu;

static std::mt19937 rng(7);
static int failures = 0;

template <class T>
struct Buffer {  // malloc of exactly n elements, 64-byte aligned start where asked
  explicit Buffer(int64_t n) : size(n), p(static_cast<T*>(std::malloc(size_t(n) * sizeof(T) + !n))) {
    std::memset(p, 0xA5, size_t(n) * sizeof(T));
  }
  ~Buffer() { std::free(p); }
  Buffer(const Buffer&) = delete;
  bool operator==(const Buffer& o) const { return !std::memcmp(p, o.p, size_t(size) * sizeof(T)); }
  int64_t size;
  T* p;
};

static void expect(bool same, const char* isa, const char* what, int64_t a, int64_t b, int64_t c) {
  if (same) return;
  if (++failures < 30)
    std::printf("%s differs from scalar: %s %ld %ld %ld\n", isa, what, long(a), long(b), long(c));
}

static void fill(Buffer<float>& b, float scale) {
  std::normal_distribution<float> d(0.f, scale);
  for (int64_t i = 0; i < b.size; ++i) b.p[i] = d(rng);
}

static void fill_bytes(void* p, int64_t n, int low, int high) {
  std::uniform_int_distribution<int> d(low, high);
  for (int64_t i = 0; i < n; ++i) static_cast<int8_t*>(p)[i] = int8_t(d(rng));
}

static void gemm(const Kernels& k, GemmParams p, Buffer<float>& y) {
  Buffer<int32_t> panels(k.gemm_panel_words(p));
  p.panels = panels.p, p.y = y.p;
  k.gemm_pack(p, 0, k.gemm_panel_count(p));
  const int64_t tiles = ceil_div(p.n, tile::kN), cut = tiles / 3;  // as if by two threads
  k.gemm_tiles(p, 0, cut);
  k.gemm_tiles(p, cut, tiles);
}

static void test_gemm(const Kernels& scalar, const Kernels& isa) {
  for (const bool int8 : {false, true})
    for (const int64_t m : {1, 2, 3, 4, 5, 12, 13, 31, 97, 300})
      for (const int64_t n : {1, 15, 16, 17, 33, 80})
        for (const int64_t k : {1, 8, 9, 33, 64, 72, 520, 1030}) {
          if (m > 13 && (n > 33 || (k > 520 && n != 33))) continue;
          if (m > 97 && (n != 33 || k < 520)) continue;
          const int64_t bytes = int8 ? tile::kInt8Bytes : tile::kInt4Bytes, stride = ceil_div(k, 8) * 8;
          Buffer<uint8_t> w(ceil_div(n, 16) * ceil_div(k, 8) * bytes);
          fill_bytes(w.p, w.size, -128, 127);
          Buffer<float> w_scale(n), x_scale(m), bias(n), a(m * n), b(m * n);
          fill(w_scale, 1.f), fill(x_scale, 1.f), fill(bias, 100.f);
          for (const int max_code : {8, 127, 128}) {
            Buffer<int8_t> x(m * stride);
            fill_bytes(x.p, x.size, max_code == 127 ? -127 : -max_code, max_code == 8 ? 7 : 127);
            if (m == 5) std::memset(x.p, max_code == 127 ? -127 : -max_code, size_t(x.size));  // the extreme
            if (m == 5 && !int8) std::memset(w.p, 0, size_t(w.size));  // all weights -8
            for (int64_t r = 0; r < m; ++r)
              for (int64_t i = k; i < stride; ++i) x.p[r * stride + i] = 0;
            for (const int64_t group : {0, 32, 128}) {
              if (group && int8) continue;
              Buffer<uint8_t> scale(group ? ceil_div(n, 16) * ceil_div(k, group) * 16 : 0);
              fill_bytes(scale.p, scale.size, 1, 16);
              GemmParams p{};
              p.m = m, p.n = n, p.k = k, p.weight = w.p, p.weight_int8 = int8;
              p.group_scale = group ? scale.p : nullptr, p.group = group;
              p.x = x.p, p.x_stride = stride, p.max_code = max_code;
              p.w_scale = w_scale.p, p.x_scale = x_scale.p, p.bias = bias.p, p.y_dtype = DType::f32;
              gemm(scalar, p, a), gemm(isa, p, b);
              expect(a == b, isa.name, int8 ? "gemm int8" : "gemm int4", m, n, k);
            }
          }
        }
}

constexpr Format kFp4[] = {Format::kE2M1, Format::kE1M2, Format::kE3M0};

static void test_fp4_gemm(const Kernels& scalar, const Kernels& isa) {
  for (const Format format : kFp4)
    for (const int max_code : {7, 12, 64, 128})
      for (const int64_t m : {1, 4, 5, 13, 40})
        for (const int64_t k : {1, 8, 33, 72, 520, 1030}) {
          const int64_t n = 33, stride = ceil_div(k, 8) * 8;
          Buffer<uint8_t> w(ceil_div(n, 16) * ceil_div(k, 8) * tile::kInt4Bytes);
          fill_bytes(w.p, w.size, -128, 127);
          Buffer<float> w_scale(n), a(m * n), b(m * n);
          fill(w_scale, 1.f);
          Buffer<int8_t> x(m * stride);
          fill_bytes(x.p, x.size, -max_code, max_code == 128 ? 127 : max_code);
          if (m == 5)  // the extreme: every product has one sign
            std::memset(x.p, -max_code, size_t(x.size)), std::memset(w.p, 0xff, size_t(w.size));
          for (int64_t r = 0; r < m; ++r)
            for (int64_t i = k; i < stride; ++i) x.p[r * stride + i] = 0;
          GemmParams p{};
          p.m = m, p.n = n, p.k = k, p.weight = w.p, p.fp4 = fp4_table(format), p.w_factor = 0.25f;
          p.x = x.p, p.x_stride = stride, p.max_code = max_code, p.w_scale = w_scale.p,
          p.y_dtype = DType::f32;
          gemm(scalar, p, a), gemm(isa, p, b);
          expect(a == b, isa.name, "gemm fp4", m, max_code, k);
        }
}

static void test_fp4_rows(const Kernels& scalar, const Kernels& isa) {
  for (const Format format : kFp4)
    for (const int64_t k : {1, 7, 16, 33, 255, 256, 257, 600}) {
      const int64_t rows = 4, bytes = (k + 1) / 2;
      Buffer<float> x(rows * k), power(k), sa(rows), sb(rows);
      fill(x, 3.f);
      for (int64_t i = 0; i < k; ++i) power.p[i] = i % 3 ? 0.5f : 4.f;
      std::memset(x.p, 0, size_t(k) * 4);  // a zero row
      Buffer<uint8_t> qa(rows * bytes), qb(rows * bytes);
      for (const int variant : {0, 1, 2, 3}) {  // powers, a given scale, both
        QuantizeFp4Params p{};
        p.x = x.p, p.k = k, p.power = variant & 1 ? power.p : nullptr, p.format = format, p.clip = 0.9f;
        p.fixed_scale = variant & 2 ? 0.7f : 0.f;
        p.q = qa.p, p.scale = sa.p;
        scalar.quantize_fp4_rows(p, 0, rows);
        p.q = qb.p, p.scale = sb.p;
        isa.quantize_fp4_rows(p, 0, rows);
        expect(qa == qb && sa == sb, isa.name, "quantize fp4", k, variant, int(format));
      }
    }
}

static void test_rows(const Kernels& scalar, const Kernels& isa) {
  for (const int64_t k : {1, 7, 8, 15, 16, 17, 33, 64, 80, 96, 128, 256, 576, 1024}) {
    const int64_t rows = 5;
    Buffer<float> x(rows * k), shift(k);
    fill(x, 3.f), fill(shift, 1.f);
    std::memset(x.p, 0, size_t(k) * 4);  // a zero row
    int64_t order = 0, two = 0;
    const bool transformable = split_order(k, &order, &two);
    for (const int variant : {0, 1, 2, 3})  // plain, shift, hadamard, both
      for (const int bits : {4, 8}) {
        if (variant >= 2 && !transformable) continue;
        const bool packed = bits == 4 && variant != 1;
        const int64_t stride = packed ? (k + 1) / 2 : k + 3;
        Buffer<int8_t> qa(rows * stride), qb(rows * stride);
        Buffer<float> sa(rows), sb(rows);
        QuantizeParams p{};
        p.x = x.p, p.k = p.x_stride = k, p.shift = variant & 1 ? shift.p : nullptr, p.bits = bits,
        p.clip = 0.9f;
        if (variant & 2) p.order = order, p.two = two, p.mix = order > 1 ? mix_table(order, false) : nullptr;
        p.packed = packed, p.q_stride = stride;
        Buffer<float> work(isa.quantize_scratch(p));
        p.q = qa.p, p.scale = sa.p;
        scalar.quantize_rows(p, work.p, 0, rows);
        p.q = qb.p, p.scale = sb.p;
        isa.quantize_rows(p, work.p, 0, rows);
        expect(qa == qb && sa == sb, isa.name, "quantize", k, variant, bits);
      }
    if (transformable) {
      Buffer<float> a(rows * k), b(rows * k),
          work(isa.hadamard_scratch({nullptr, nullptr, DType::f32, k, order, two, nullptr, 1.f}));
      HadamardParams p{x.p, a.p, DType::f32, k, order, two, order > 1 ? mix_table(order, true) : nullptr,
                       0.3f};
      scalar.hadamard_rows(p, work.p, 0, rows);
      p.y = b.p;
      isa.hadamard_rows(p, work.p, 0, rows);
      expect(a == b, isa.name, "hadamard", k, order, two);
    }
    Buffer<uint8_t> pa(rows * ((k + 1) / 2)), pb(rows * ((k + 1) / 2));
    Buffer<uint16_t> ca(rows * 2), cb(rows * 2);
    Buffer<float> ya(rows * k), yb(rows * k);
    Kv4Params p{x.p, ya.p, DType::f32, k, 0.95f, pa.p, ca.p};
    scalar.kv4_quantize_rows(p, 0, rows), scalar.kv4_dequantize_rows(p, 0, rows);
    p.packed = pb.p, p.params = cb.p, p.y = yb.p;
    isa.kv4_quantize_rows(p, 0, rows), isa.kv4_dequantize_rows(p, 0, rows);
    expect(pa == pb && ca == cb && ya == yb, isa.name, "kv4", k, 0, 0);
  }
}

// The three fused row ops with every option in turn; rows of x are a gate and an up, n each.
static void test_fused_rows(const Kernels& scalar, const Kernels& isa) {
  for (const int64_t n : {1, 2, 7, 8, 9, 16, 33, 64, 65, 127, 128, 576, 1000, 1025, 2100})
    for (int option = 0; option < 32; ++option) {
      const int64_t rows = 3, k = option & 1 ? n + 3 : n;
      const int bits = option & 2 ? 4 : 8;
      Buffer<float> x(rows * 2 * n), residual(rows * n), sum_a(rows * n), sum_b(rows * n);
      Buffer<float> weight(k), step(k), shift(k), scale_a(rows), scale_b(rows);
      for (Buffer<float>* b : {&x, &residual, &weight, &step, &shift}) fill(*b, 3.f);
      Buffer<int32_t> index(k);
      for (int64_t j = 0; j < k; ++j) index.p[j] = int32_t(rng() % uint64_t(n));
      const int64_t bytes = bits == 4 ? (k + 1) / 2 : k;
      Buffer<int8_t> a(rows * bytes), b(rows * bytes);
      FusedRowsParams p{};
      p.x = x.p, p.dtype = option & 16 ? DType::f32 : DType::bf16, p.n = n;
      p.eps = 1e-6f, p.gain_offset = 1.f, p.gelu = option & 4;
      RowCodesParams& c = p.codes;
      c.k = k, c.index = option & 1 ? index.p : nullptr, c.bits = bits, c.clip = 0.9f;
      c.inverse_step = option & 4 ? step.p : nullptr, c.shift = option & 8 ? shift.p : nullptr;
      c.static_scale = option & 8;
      for (const int op : {0, 1, 2, 3, 4}) {  // static, gated, both transformed, norm
        const auto kernel = op == 4  ? &Kernels::norm_rows
                            : op % 2 ? &Kernels::gated_rows
                                     : &Kernels::static_rows;
        p.order = p.two = 0, p.mix = nullptr, p.weight = nullptr, p.residual = nullptr;
        if (op == 2 || op == 3) {
          if (!split_order(n, &p.order, &p.two)) continue;
          if (p.order > 1) p.mix = mix_table(p.order, false);
        }
        if (op == 4) p.weight = weight.p, p.residual = option & 4 ? residual.p : nullptr;
        Buffer<float> work_a(scalar.fused_rows_scratch(p)), work_b(isa.fused_rows_scratch(p));
        c.q = a.p, c.scale = scale_a.p, p.sum = sum_a.p;
        (scalar.*kernel)(p, work_a.p, 0, rows);
        c.q = b.p, c.scale = scale_b.p, p.sum = sum_b.p;
        (isa.*kernel)(p, work_b.p, 0, rows);
        const bool same = a == b && scale_a == scale_b && sum_a == sum_b;
        expect(same, isa.name, "fused rows", n, option, op);
      }
    }
}

int main() {
  const Kernels* scalar = nullptr;
  for (const Isa& isa : isa_table())
    if (!std::strcmp(isa.name, "scalar")) scalar = isa.kernels;
  for (const Isa& isa : isa_table()) {
    if (!isa.supported) continue;
    test_gemm(*scalar, *isa.kernels);
    test_rows(*scalar, *isa.kernels);
    test_fp4_gemm(*scalar, *isa.kernels);
    test_fp4_rows(*scalar, *isa.kernels);
    test_fused_rows(*scalar, *isa.kernels);
    std::printf("%s: done\n", isa.name);
  }
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
