// Attention of many queries over the keys up to themselves, in AMX tiles of bf16.
//
// Tiles have queries in their columns: scores are S^T = K Q^T, results O^T = V^T P^T. So a query's softmax
// stays in one lane, and two rows of probabilities are one row of the next product's operand. Floats are sums
// of bf16 numbers (`terms_of`), and products of terms are left out where they lie below the last bit.
#pragma once

#include "amx.h"
#include "bf16_terms-inl.h"
#include "hadamard-inl.h"  // store_some

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kTileSize = kTileRows * kTileBytes;
constexpr int64_t kKeyStep = 32, kHeadStep = 32;  // keys and elements of a head that one tile row holds
constexpr int64_t kBlockSteps = 2, kKeyBlock = kBlockSteps * kKeyStep;  // whose scores are there at a time
constexpr int64_t kQueries = 32;                                        // two tiles of them
constexpr int64_t kMostAtOnce = 4;                                      // blocks of them
constexpr int64_t kFewestQueries = 8;

// Rows to columns, 16 x 16.
static inline void transpose(V (&r)[16]) {
  V t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2)
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  const auto low = [](V a, V b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](V a, V b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = low(t[i], t[i + 2]), r[i + 1] = high(t[i], t[i + 2]);
    r[i + 2] = low(t[i + 1], t[i + 3]), r[i + 3] = high(t[i + 1], t[i + 3]);
  }
  const auto quarters = [](V a, V b, auto which) {
    return _mm512_castsi512_ps(
        _mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), which.value));
  };
  const std::integral_constant<int, 0x88> even;
  const std::integral_constant<int, 0xdd> odd;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const V a = quarters(r[i], r[4 + i], even), b = quarters(r[8 + i], r[12 + i], even);
    const V c = quarters(r[i], r[4 + i], odd), d = quarters(r[8 + i], r[12 + i], odd);
    t[i] = quarters(a, b, even), t[8 + i] = quarters(a, b, odd);
    t[4 + i] = quarters(c, d, even), t[12 + i] = quarters(c, d, odd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Elements i .. i + 31 of row[n] times a factor, as terms: 64 bytes each, a tile apart.
template <int kTerms, class T>
static inline void put_terms(const T* row, int64_t i, int64_t n, uint8_t* to, float factor = 1) {
  for (int64_t half = 0; half < 2; ++half) {
    V left = mul(lanes_of(row, i + half * kLanes, n), set1(factor));
#pragma GCC unroll 3
    for (int term = 0; term < kTerms; ++term)
      store_half(to + term * kTileSize + half * 32, next_term<true>(left));
  }
}

// The sums of two panels x kTiles += all products of terms i of a and j of b with i + j < kLimit. Terms of a
// panel lie behind one another, the second panel `second` behind the first; terms of b are pairs of tiles.
template <int kA, int kB, int kLimit, int kTiles>
static inline void multiply_terms(const uint8_t* a, int64_t second, const uint8_t* b) {
#pragma GCC unroll 3
  for (int i = 0; i < kA; ++i) {
    tile_load<kActivations>(a + i * kTileSize, kTileBytes);
    tile_load<kActivations + 1>(a + second + i * kTileSize, kTileBytes);
    const int end = kLimit - i < kB ? kLimit - i : kB;
#pragma GCC unroll 3
    for (int j = 0; j < end; ++j) {
      tile_load<kWeights>(b + 2 * j * kTileSize, kTileBytes);
      dot_bf16<0, 0>();
      dot_bf16<1, 0>();
      if constexpr (kTiles > 1) {
        tile_load<kWeights + 1>(b + (2 * j + 1) * kTileSize, kTileBytes);
        dot_bf16<0, 1>();
        dot_bf16<1, 1>();
      }
    }
  }
}

// 2^x of numbers up to 0, nearly, clamped to -126: relative error below 2^-23. Eight at a time hide the
// latency of each step.
constexpr int kAtOnce = 8;
static inline void power_of_two(V (&x)[kAtOnce]) {
  const V magic = set1(12582912.f);  // 1.5 * 2^23: a sum with it has the nearest integer in its lowest bits
  V n[kAtOnce], p[kAtOnce];
  const auto each = [](auto f) {
#pragma GCC unroll 8
    for (int i = 0; i < kAtOnce; ++i) f(i);
  };
  each([&](int i) { x[i] = max(x[i], set1(-126.f)); });
  each([&](int i) { n[i] = add(x[i], magic); });
  each([&](int i) { p[i] = sub(n[i], magic); });
  each([&](int i) { x[i] = sub(x[i], p[i]); });
  each([&](int i) { p[i] = _mm512_fmadd_ps(x[i], set1(1.535334425e-04f), set1(1.339887368e-03f)); });
  for (const float c : {9.618437423e-03f, 5.550332473e-02f, 2.402264791e-01f, 6.931472029e-01f, 1.f})
    each([&](int i) { p[i] = _mm512_fmadd_ps(p[i], x[i], set1(c)); });
  each([&](int i) {
    const I exponent = _mm512_slli_epi32(_mm512_castps_si512(n[i]), 23);
    x[i] = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p[i]), exponent));
  });
}

template <class T, int kTerms>
class CausalTiles {
 public:
  explicit CausalTiles(const CausalAttentionParams& p)
      : p(p),
        group(p.heads / p.kv_heads),
        head_steps((p.d + kHeadStep - 1) / kHeadStep),
        key_steps((p.keys + kKeyStep - 1) / kKeyStep),
        blocks((p.queries * group + kQueries - 1) / kQueries),
        at_once(blocks_at_once(p.batch * p.kv_heads * blocks / p.threads)),
        items((blocks + at_once - 1) / at_once) {}

  int64_t packed_bytes() const { return p.batch * p.kv_heads * key_steps * 2 * part(); }
  int64_t scratch_bytes() const { return at_once * (query_bytes() + result_bytes()); }

  // Keys 32 step .. 32 step + 31 of a kv head, counted through the batch: two panels of 16, each
  // { [terms] } x steps of the head; then their values, transposed: panels of 16 elements, [terms].
  void pack(int64_t head, int64_t step) const {
    const int64_t first = step * kKeyStep;
    for (int64_t i = 0; i < kKeyStep; ++i)
      for (int64_t s = 0; s < head_steps; ++s) {
        uint8_t* to =
            packed(head, step) + ((i / 16 * head_steps + s) * kTerms) * kTileSize + i % 16 * kTileBytes;
        put_terms<kTerms>(row_of(p.k, head, first + i), s * kHeadStep, first + i < p.keys ? p.d : 0, to);
      }
    for (int64_t j = 0; j < 2 * head_steps; ++j)
      for (int64_t half = 0; half < 2; ++half) {
        V r[16];
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t t = first + half * 16 + i;
          r[i] = lanes_of(row_of(p.v, head, t), j * 16, t < p.keys ? p.d : 0);
        }
        transpose(r);
        uint8_t* to = packed(head, step) + part() + j * kTerms * kTileSize + half * 32;
        for (int64_t i = 0; i < 16; ++i, to += kTileBytes)
          for (int term = 0; term < kTerms; ++term) store_half(to + term * kTileSize, next_term<true>(r[i]));
      }
  }

  // Blocks of queries of a kv head, side by side, so that keys and values are fetched once for them. A query
  // is a token and one of the heads that share the kv head. Items of few and of many keys take turns, so that
  // halves of all are equal work.
  void attend(int64_t item, uint8_t* scratch) const {
    const int64_t head = item / items, i = item % items;
    const int64_t first = (i % 2 ? items - 1 - i / 2 : i / 2) * at_once;
    const int64_t count = first + at_once < blocks ? at_once : blocks - first;
    Block block[kMostAtOnce];
    for (int64_t j = 0; j < count; ++j) {
      uint8_t* at = scratch + j * (query_bytes() + result_bytes());
      Block& b = block[j];
      b.first = (first + j) * kQueries, b.end = key_of(b.first + kQueries - 1) + 1;
      b.tiles = p.queries * group - b.first > kLanes ? 2 : 1;
      b.query = at, b.result = reinterpret_cast<float*>(at + query_bytes());
      for (int tile = 0; tile < b.tiles; ++tile) load_queries(head, tile, b);
    }
    for (int64_t key = 0; key < block[count - 1].end; key += kKeyBlock)
      for (int64_t j = 0; j < count; ++j) {
        if (key >= block[j].end) continue;
        if (block[j].tiles > 1) attend_keys<2>(head, key, block[j]);
        else attend_keys<1>(head, key, block[j]);
      }
    for (int64_t j = 0; j < count; ++j)
      for (int tile = 0; tile < block[j].tiles; ++tile) store_results(head, tile, block[j]);
  }

  const CausalAttentionParams& p;
  const int64_t group, head_steps, key_steps, blocks, at_once, items;  // the last three: of a kv head

 private:
  static constexpr int kWeightTerms = kTerms < 2 ? 2 : kTerms;  // of a probability

  struct Block {
    int64_t first, end, tiles;  // its first query, the keys that one of its queries sees
    uint8_t* query;             // { [terms][2 tiles] } x steps of the head
    float* result;              // [d, up to a multiple of 32][kQueries]
    V most[2], sum[2];
    I position[2];  // of a lane's query among the keys
  };
  struct Scores {
    alignas(64) float score[kKeyBlock][kQueries];
    alignas(64) uint8_t weight[kBlockSteps][kWeightTerms][2][kTileSize];  // of a step of keys
  };

  static int64_t blocks_at_once(int64_t per_thread) {
    return per_thread < 16 ? 1 : per_thread < 32 ? per_thread / 8 : kMostAtOnce;
  }
  int64_t query_bytes() const { return head_steps * kTerms * 2 * kTileSize; }
  int64_t result_bytes() const { return head_steps * kHeadStep * kQueries * 4; }
  int64_t part() const { return 2 * head_steps * kTerms * kTileSize; }
  uint8_t* packed(int64_t head, int64_t step) const {
    return p.packed + (head * key_steps + step) * 2 * part();
  }
  const T* row_of(const void* x, int64_t head, int64_t t) const {
    const int64_t b = head / p.kv_heads, h = head % p.kv_heads;
    return static_cast<const T*>(x) + ((b * p.keys + t) * p.kv_heads + h) * p.d;
  }
  // Where a lane's query or result is, in elements; lanes past the last have the last one's.
  int64_t query_of(int64_t head, int64_t lane) const {
    const int64_t i = lane_of(lane), b = head / p.kv_heads, h = head % p.kv_heads;
    return ((b * p.queries + i / group) * p.heads + h * group + i % group) * p.d;
  }
  int64_t lane_of(int64_t lane) const { return lane < p.queries * group ? lane : p.queries * group - 1; }
  int64_t key_of(int64_t lane) const { return p.keys - p.queries + lane_of(lane) / group; }

  template <int kTiles>
  void attend_keys(int64_t head, int64_t key, Block& b) const {
    Scores w;
    const int64_t left = (b.end - key + kKeyStep - 1) / kKeyStep,
                  steps = left < kBlockSteps ? left : kBlockSteps;
    const uint8_t* at = packed(head, key / kKeyStep);
    score<kTiles>(at, steps, b, w);
    for (int tile = 0; tile < kTiles; ++tile) {
      if (key + steps * kKeyStep > key_of(b.first) + 1) weigh<true>(key, steps, tile, b, w);
      else weigh<false>(key, steps, tile, b, w);
    }
    add_values<kTiles>(at + part(), steps, key == 0, b, w);
  }

  void load_queries(int64_t head, int64_t tile, Block& b) const {
    const int64_t first = b.first + tile * kLanes;
    alignas(64) int32_t position[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) position[i] = int32_t(key_of(first + i));
    b.position[tile] = load512(position);
    b.most[tile] = set1(-__builtin_inff()), b.sum[tile] = set1(0.f);
    for (int64_t s = 0; s < head_steps; ++s) {
      alignas(64) uint8_t rows[kTerms][kTileSize];
      for (int64_t i = 0; i < kLanes; ++i) {
        const T* q = static_cast<const T*>(p.q) + query_of(head, first + i);
        put_terms<kTerms>(q, s * kHeadStep, p.d, rows[0] + i * kTileBytes,
                          std::copysign(1.f, p.softmax_scale));
      }
      for (int term = 0; term < kTerms; ++term) {  // pairs of elements are 32 bits
        V r[16];
        for (int i = 0; i < 16; ++i) r[i] = load(reinterpret_cast<const float*>(rows[term]) + i * kLanes);
        transpose(r);
        float* to = reinterpret_cast<float*>(b.query + ((s * kTerms + term) * 2 + tile) * kTileSize);
        for (int i = 0; i < 16; ++i) store(to + i * kLanes, r[i]);
      }
    }
  }

  // score = K Q^T
  template <int kTiles>
  void score(const uint8_t* keys, int64_t steps, const Block& b, Scores& w) const {
    for (int64_t step = 0; step < steps; ++step) {
      each_sum<2, kTiles>([](auto i) { tile_zero<i.value>(); });
      for (int64_t s = 0; s < head_steps; ++s)
        multiply_terms<kTerms, kTerms, kTerms == 3 ? 3 : 2 * kTerms - 1, kTiles>(
            keys + step * 2 * part() + s * kTerms * kTileSize, head_steps * kTerms * kTileSize,
            b.query + s * kTerms * 2 * kTileSize);
      each_sum<2, kTiles>([&](auto i) {
        tile_store<i.value>(&w.score[step * kKeyStep + i.value / 2 * 16][i.value % 2 * 16], kQueries * 4);
      });
    }
  }

  // weight = exp(scale * (score - the largest so far)), as terms; what was summed before is put on the same
  // footing
  template <bool kMasked>
  void weigh(int64_t key, int64_t steps, int tile, Block& block, Scores& w) const {
    const int64_t count = steps * kKeyStep;
    const auto seen = [&](int64_t t) {
      return _mm512_cmple_epi32_mask(_mm512_set1_epi32(int32_t(key + t)), block.position[tile]);
    };
    V most[4];
    for (V& v : most) v = block.most[tile];
    for (int64_t t = 0; t < count; ++t) {
      V s = load(&w.score[t][tile * kLanes]);
      if (kMasked) s = _mm512_mask_blend_ps(seen(t), set1(-__builtin_inff()), s);
      most[t % 4] = max(most[t % 4], s);
    }
    most[0] = max(max(most[0], most[1]), max(most[2], most[3]));
    const V scale = set1(std::fabs(p.softmax_scale) * 1.44269504f), level = mul(most[0], scale);
    V x[kAtOnce] = {sub(mul(block.most[tile], scale), level)};
    power_of_two(x);
    const V factor = x[0];
    if (key && _mm512_cmp_ps_mask(factor, set1(1.f), _CMP_NEQ_UQ))
      for (int64_t i = 0; i < head_steps * kHeadStep; ++i) {
        float* at = block.result + i * kQueries + tile * kLanes;
        store(at, mul(load(at), factor));
      }
    V sum = mul(block.sum[tile], factor);
    const I upper = _mm512_set1_epi32(int32_t(0xffff0000));
    for (int64_t t = 0; t < count; t += kAtOnce) {
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i)
        x[i] = _mm512_fmsub_ps(load(&w.score[t + i][tile * kLanes]), scale, level);
      power_of_two(x);
      if (kMasked)
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) x[i] = _mm512_maskz_mov_ps(seen(t + i), x[i]);
      sum = add(sum, add(add(add(x[0], x[1]), add(x[2], x[3])), add(add(x[4], x[5]), add(x[6], x[7]))));
      uint8_t* to = w.weight[t / kKeyStep][0][tile] + t % kKeyStep / 2 * kTileBytes;
#pragma GCC unroll 3
      for (int term = 0; term < kWeightTerms; ++term, to += 2 * kTileSize)
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; i += 2) {
          const I a = _mm512_castps_si512(x[i]), b = _mm512_and_si512(_mm512_castps_si512(x[i + 1]), upper);
          _mm512_store_si512(to + i / 2 * kTileBytes, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
          x[i] = sub(x[i], _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
          x[i + 1] = sub(x[i + 1], _mm512_castsi512_ps(b));
        }
    }
    block.most[tile] = most[0], block.sum[tile] = sum;
  }

  // result += V^T weight
  template <int kTiles>
  void add_values(const uint8_t* values, int64_t steps, bool zero, const Block& b, const Scores& w) const {
    for (int64_t s = 0; s < head_steps; ++s) {
      const auto at = [&](int i) { return b.result + (s * kHeadStep + i / 2 * 16) * kQueries + i % 2 * 16; };
      each_sum<2, kTiles>([&](auto i) {
        if (zero) tile_zero<i.value>();
        else tile_load<i.value>(at(i.value), kQueries * 4);
      });
      for (int64_t step = 0; step < steps; ++step)
        multiply_terms<kTerms, kWeightTerms, kWeightTerms, kTiles>(
            values + step * 2 * part() + 2 * s * kTerms * kTileSize, kTerms * kTileSize,
            w.weight[step][0][0]);
      each_sum<2, kTiles>([&](auto i) { tile_store<i.value>(at(i.value), kQueries * 4); });
    }
  }

  void store_results(int64_t head, int64_t tile, const Block& b) const {
    const V inverse = div(set1(1.f), b.sum[tile]);
    for (int64_t j = 0; j < p.d; j += 16) {
      V r[16];
      for (int i = 0; i < 16; ++i) r[i] = mul(load(b.result + (j + i) * kQueries + tile * kLanes), inverse);
      transpose(r);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t lane = b.first + tile * kLanes + i;
        if (lane >= p.queries * group) break;
        T* y = static_cast<T*>(p.y) + query_of(head, lane) + j;
        if (p.d - j < kLanes) store_some(y, r[i], p.d - j);
        else store(y, r[i]);
      }
    }
  }
};

// f(CausalTiles) of the call's dtype
template <class F>
static inline auto with_causal_tiles(const CausalAttentionParams& p, const F& f) {
  if (p.dtype == DType::f32) return f(CausalTiles<float, terms_of(DType::f32)>(p));
  if (p.dtype == DType::f16) return f(CausalTiles<f16, terms_of(DType::f16)>(p));
  return f(CausalTiles<bf16, terms_of(DType::bf16)>(p));
}

static CausalWork tile_causal_work(const CausalAttentionParams& p) {
  if (p.queries < kFewestQueries) return {};
  return with_causal_tiles(p, [&](const auto& tiles) {
    const int64_t heads = p.batch * p.kv_heads;
    return CausalWork{tiles.packed_bytes(), tiles.scratch_bytes(), heads * tiles.key_steps,
                      heads * tiles.items};
  });
}

static void tile_causal_pack(const CausalAttentionParams& p, int64_t begin, int64_t end) {
  with_causal_tiles(p, [&](const auto& tiles) {
    for (int64_t i = begin; i < end; ++i) tiles.pack(i / tiles.key_steps, i % tiles.key_steps);
  });
}

static void tile_causal_items(const CausalAttentionParams& p, uint8_t* scratch, int64_t begin, int64_t end) {
  const TileConfig config(kTileRows);
  with_causal_tiles(p, [&](const auto& tiles) {
    for (int64_t i = begin; i < end; ++i) tiles.attend(i, scratch);
  });
}

}  // namespace lowbit::cpu::LOWBIT_ISA
