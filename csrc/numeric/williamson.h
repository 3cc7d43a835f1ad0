// Williamson's Hadamard matrices of order 4 n: rows (r, i) and columns (c, j), r and c below 4, i and j below
// n, hold W[j - i mod n][r][c], where W[d] is the array
//     a  b  c  d
//    -b  a -d  c
//    -c  d  a -b
//    -d -c  b  a
// of four signs that d and n - d share. They are all + for d = 0; else three of them are equal (Williamson),
// which makes W[d] a quaternion of norm 4, and those differ by units: W[d] = W[1] S[d], S[d] a permutation
// with signs. So
//     y[., i] = W[0] x[., i] + W[1] sum over d = 1 .. n - 1 of S[d] x[., i + d]
// costs n + 7 additions per element instead of 4 n.
#pragma once

#include <cstdint>

namespace lowbit {

// Signs of a, b, c, d, found by search: bit d <= n / 2 is set where the sign of d is -.
struct WilliamsonSeed {
  int n;
  uint32_t minus[4];
};
inline constexpr WilliamsonSeed kWilliamsonSeeds[] = {{23, {0xe88, 0x538, 0x5dc, 0x192}},
                                                      {29, {0x7614, 0x3794, 0x305a, 0xe24}},
                                                      {39, {0x4d6fc, 0xc62fa, 0x2bcdc, 0x5f724}},
                                                      {43, {0x1bde14, 0xba530, 0x354c6, 0x2cd01c}}};

struct WilliamsonArray {
  int sign[4][4];
};

constexpr const WilliamsonSeed* williamson_seed(int64_t n) {
  for (const auto& seed : kWilliamsonSeeds)
    if (seed.n == n) return &seed;
  return nullptr;
}

constexpr WilliamsonArray williamson_array(const WilliamsonSeed& seed, int d) {  // W[d], 0 <= d < n
  constexpr int which[4][4] = {{0, 1, 2, 3}, {1, 0, 3, 2}, {2, 3, 0, 1}, {3, 2, 1, 0}};
  constexpr int sign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};
  const int bit = d < seed.n - d ? d : seed.n - d;
  WilliamsonArray w{};
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 4; ++c)
      w.sign[r][c] = (seed.minus[which[r][c]] >> bit & 1) ? -sign[r][c] : sign[r][c];
  return w;
}

// S[d]: input c goes to output `to`.
struct WilliamsonUnit {
  int to;
  bool minus;
};
constexpr WilliamsonUnit williamson_unit(const WilliamsonSeed& seed, int d, int c) {
  const WilliamsonArray one = williamson_array(seed, 1), w = williamson_array(seed, d);
  WilliamsonUnit unit{-1, false};
  for (int r = 0; r < 4; ++r) {  // W[1]^T W[d] / 4
    int sum = 0;
    for (int k = 0; k < 4; ++k) sum += one.sign[k][r] * w.sign[k][c];
    if (sum == 4 || sum == -4) unit = {r, sum < 0};
  }
  return unit;
}

// The same as constants of types, for nvcc lets a kernel call no constexpr function of the host: input kInput
// of S[d], row kRow of W[d].
template <int kN, int kD, int kInput>
struct WilliamsonTerm {
  static constexpr WilliamsonUnit unit = williamson_unit(*williamson_seed(kN), kD, kInput);
  static constexpr int to = unit.to;
  static constexpr bool minus = unit.minus;
};
template <int kN, int kD, int kRow>
struct WilliamsonRow {
  static constexpr WilliamsonArray w = williamson_array(*williamson_seed(kN), kD);
  static constexpr int sign0 = w.sign[kRow][0], sign1 = w.sign[kRow][1], sign2 = w.sign[kRow][2],
                       sign3 = w.sign[kRow][3];
};

constexpr int kWilliamsonN = 43;  // the one that has such code: 11008 = 172 x 64

}  // namespace lowbit
