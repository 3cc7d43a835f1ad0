// Construction of Hadamard matrices: Sylvester doubling, Paley I and II over GF(p^k), Williamson.
// The same numbering of field elements and the same order of attempts as lowbit.reference, so the same
// matrices.
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../numeric/williamson.h"
#include "dispatch.h"

namespace lowbit::cpu {
namespace {

using Matrix = std::vector<int8_t>;  // [k, k]

struct Field {
  int64_t p = 0, degree = 0, q = 0;
  std::vector<std::vector<int>> digits;  // of each element, base p, lowest first

  bool init(int64_t size) {
    q = size;
    for (p = 2; p * p <= q && q % p; ++p) {}
    if (p * p > q) p = q;
    int64_t rest = q;
    while (rest % p == 0) rest /= p, ++degree;
    if (rest != 1) return false;
    for (int64_t e = 0; e < q; ++e) {
      std::vector<int> d(degree);
      int64_t v = e;
      for (auto& x : d) x = int(v % p), v /= p;
      digits.push_back(d);
    }
    return true;
  }

  // product modulo x^degree + mod
  int64_t multiply(int64_t a, int64_t b, const std::vector<int>& mod) const {
    std::vector<int> prod(2 * degree - 1);
    for (int64_t i = 0; i < degree; ++i)
      for (int64_t j = 0; j < degree; ++j) prod[i + j] = int((prod[i + j] + digits[a][i] * digits[b][j]) % p);
    for (int64_t i = 2 * degree - 2; i >= degree; --i)
      for (int64_t j = 0; j < degree; ++j)
        prod[i - degree + j] = int(((prod[i - degree + j] - prod[i] * mod[j]) % p + p) % p);
    int64_t e = 0;
    for (int64_t i = degree - 1; i >= 0; --i) e = e * p + prod[i];
    return e;
  }

  bool irreducible(const std::vector<int>& mod) const {
    if (degree == 1) return true;
    for (int64_t a = 1; a < q; ++a)
      for (int64_t b = 1; b < q; ++b)
        if (multiply(a, b, mod) == 0) return false;
    return true;
  }

  // chi(a - b), chi the quadratic character
  Matrix residues() const {
    std::vector<int> chi;
    for (int64_t m = 0; m < q; ++m) {
      chi.assign(q, -1);
      chi[0] = 0;
      int64_t squares = 0;
      bool zero = false;
      for (int64_t a = 1; a < q; ++a) {
        const int64_t s = multiply(a, a, digits[m]);
        if (s == 0) zero = true;
        else if (chi[s] < 0) chi[s] = 1, ++squares;
      }
      if (!zero && squares == (q - 1) / 2 && irreducible(digits[m])) break;
    }
    Matrix out(q * q);
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = 0; b < q; ++b) {
        int64_t e = 0;
        for (int64_t i = degree - 1; i >= 0; --i) e = e * p + (digits[a][i] - digits[b][i] + p) % p;
        out[a * q + b] = int8_t(chi[e]);
      }
    return out;
  }
};

Matrix paley1(int64_t k) {  // I + [[0, 1], [-1, Q]], q = 3 mod 4
  Field f;
  const int64_t q = k - 1;
  if (q % 4 != 3 || !f.init(q)) return {};
  const Matrix r = f.residues();
  Matrix h(k * k);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j)
      h[i * k + j] = int8_t(i == j ? 1 : i == 0 ? 1 : j == 0 ? -1 : r[(i - 1) * q + j - 1]);
  return h;
}

Matrix paley2(
    int64_t k) {  // C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]], C = [[0, 1], [1, Q]], q = 1 mod 4
  Field f;
  const int64_t c = k / 2, q = c - 1;
  if (k % 4 || q % 4 != 1 || q < 5 || !f.init(q)) return {};
  const Matrix r = f.residues();
  constexpr int on[2][2] = {{1, 1}, {1, -1}}, off[2][2] = {{1, -1}, {-1, -1}};
  Matrix h(k * k);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) {
      const int64_t a = i / 2, b = j / 2;
      const int v = a == b ? 0 : (a == 0 || b == 0) ? 1 : r[(a - 1) * q + b - 1];
      h[i * k + j] = int8_t(a == b ? off[i % 2][j % 2] : v * on[i % 2][j % 2]);
    }
  return h;
}

Matrix williamson(int64_t k) {
  const int n = int(k / 4);
  const WilliamsonSeed* seed = k % 4 ? nullptr : williamson_seed(n);
  if (!seed) return {};
  Matrix h(k * k);
  for (int d = 0; d < n; ++d) {
    const WilliamsonArray w = williamson_array(*seed, d);
    for (int i = 0; i < n; ++i)
      for (int r = 0; r < 4; ++r)
        for (int c = 0; c < 4; ++c) h[(r * n + i) * k + c * n + (i + d) % n] = int8_t(w.sign[r][c]);
  }
  return h;
}

const Matrix& matrix(int64_t k) {  // empty: not constructible. Guarded by the caller's lock.
  static std::map<int64_t, Matrix> known;
  if (const auto it = known.find(k); it != known.end()) return it->second;
  Matrix h;
  if (k == 1) h = {1};
  if (k > 2 && (k & (k - 1))) {
    h = paley1(k);
    if (h.empty()) h = paley2(k);
    if (h.empty()) h = williamson(k);
  }
  if (h.empty() && k % 2 == 0 && (k == 2 || k % 4 == 0)) {
    const Matrix& half = matrix(k / 2);
    if (!half.empty()) {
      const int64_t n = k / 2;
      h.resize(k * k);
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < k; ++j)
          h[i * k + j] = int8_t((i >= n && j >= n ? -1 : 1) * half[(i % n) * n + j % n]);
    }
  }
  return known[k] = std::move(h);
}

std::mutex lock;

}  // namespace

const MixTable* mix_table(int64_t k, bool transpose) {
  struct Kept {
    std::vector<uint8_t> combination;
    std::vector<float> sign;
    MixTable table;
  };
  static std::map<std::pair<int64_t, bool>, std::unique_ptr<Kept>> kept;
  const std::lock_guard<std::mutex> guard(lock);
  auto& slot = kept[{k, transpose}];
  if (!slot) {
    const Matrix& h = matrix(k);
    if (h.empty() || k % 4) return nullptr;
    slot = std::make_unique<Kept>();
    for (int64_t j = 0; j < k; ++j)
      for (int64_t i = 0; i < k; i += 4) {
        int8_t s[4];
        for (int64_t c = 0; c < 4; ++c) s[c] = h[transpose ? (i + c) * k + j : j * k + i + c];
        slot->combination.push_back(uint8_t(4 * (s[1] != s[0]) + 2 * (s[3] != s[2]) + (s[2] != s[0])));
        slot->sign.push_back(s[0]);
      }
    slot->table = {slot->combination.data(), slot->sign.data(), transpose};
  }
  return &slot->table;
}

bool split_order(int64_t order, int64_t* k, int64_t* two) {
  if (order < 1) return false;
  *two = order & -order;
  *k = order / *two;
  if (*k == 1) return true;
  const std::lock_guard<std::mutex> guard(lock);
  while (*two > 1) {
    *k *= 2, *two /= 2;
    if (*k % 4 == 0 && !matrix(*k).empty()) return true;
  }
  return false;
}

}  // namespace lowbit::cpu
