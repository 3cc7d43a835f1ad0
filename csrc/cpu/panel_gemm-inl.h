// The loops of a GEMM that multiplies panels of activations by weights made ready in L1, whatever the
// operands and the instruction: included by the engines, tile_gemm-inl.h (AMX) and dot_gemm-inl.h
// (AVX512_BF16).
//
// Activations are packed into panels of up to 16 rows, { [terms][rows][64 bytes] } x steps of k; several
// terms add up to what 16 bits cannot hold. A piece of the weights of two channel tiles, { [16][64 bytes] }
// x steps, lies in L1 while the panels pass, two at a time. Where the activations of a block of panels leave
// L2, k is cut, and all sums of the block wait in memory between the cuts.
#pragma once

#include <cstdint>

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kTileRows = 16, kTileBytes = 64;

constexpr int64_t kStepBytes = kTileRows * kTileBytes;  // of the weights of a channel tile
constexpr int64_t kMostSteps = 32;                      // that lie there: a power of two
constexpr int64_t kRing = 4;                            // where the panels pass but once
constexpr int64_t kPanelBytesInCache = 1024 * 1024;     // of the activations, while the weights pass
constexpr int64_t kMostPanels = 32;                     // at a time: 64 KiB of sums
constexpr int64_t kPanelSums = kTileRows * 2 * 16;      // of two channel tiles
constexpr int64_t kStepsAhead = 8;                      // of the prefetch

// Panels of equal height, as few as can be.
struct Panels {
  int64_t count, rows, steps, terms;
  Panels(int64_t m, int64_t steps, int64_t terms, int64_t most_rows)
      : count((m + most_rows - 1) / most_rows), rows((m + count - 1) / count), steps(steps), terms(terms) {}
  int64_t step_bytes() const { return terms * rows * kTileBytes; }
  int64_t bytes() const { return steps * step_bytes(); }
};

// Some steps of k for two channel tiles.
struct Piece {
  int64_t tile, tiles, first, last;
  int64_t group_steps;  // of the groups whose sums get a scale; 0: there are none, or the weights have it
  int64_t mask;         // where fewer steps than the piece has lie there at a time: that number less one
  uint8_t* weights;     // [2][kMostSteps][kStepBytes]
  int64_t cut_first, cut_last;  // of k: after its last step comes the first of the next tiles

  // Of all, about `wanted`, in multiples of `unit`.
  static int64_t steps_of(int64_t steps, int64_t wanted, int64_t unit) {
    const int64_t pieces = 2 * steps < 3 * wanted ? 1 : (steps + wanted / 2) / wanted;
    return (steps + unit * pieces - 1) / (unit * pieces) * unit;
  }
  int64_t sum_stride() const { return tiles * 16; }  // from row to row of sums
  uint8_t* at(int64_t step, int64_t t) const {
    return weights + (t * kMostSteps + ((step - first) & mask)) * kStepBytes;
  }
};

// How the loops are cut.
struct Blocks {
  int64_t panels;  // at a time
  int64_t piece;   // steps
  int64_t steps;   // of k while the weights pass, a multiple of `piece`, or all
  int64_t mask;    // as in Piece

  // `ring`: the weights of few panels can be made on the way
  Blocks(const Panels& p, int64_t piece_steps, int64_t piece_unit, bool ring) {
    const int64_t blocks = (p.count + kMostPanels - 1) / kMostPanels;
    panels = (p.count + 2 * blocks - 1) / (2 * blocks) * 2;
    const bool once = ring && p.count <= 2;
    piece = once ? p.steps : Piece::steps_of(p.steps, piece_steps, piece_unit);
    mask = once ? kRing - 1 : kMostSteps - 1;
    const int64_t cuts = once ? 1 : (panels * p.bytes() + kPanelBytesInCache - 1) / kPanelBytesInCache;
    steps = (p.steps + piece * cuts - 1) / (piece * cuts) * piece;
  }
  // Of the sums of n channels, where they wait.
  int64_t kept_words(const Panels& p, int64_t n) const {
    return steps >= p.steps ? 0 : (n + 15) / 16 * panels * p.rows * kTileRows;
  }
};

// A pair of panels' share of asking for weights that will be wanted soon.
struct Share {
  int64_t index, of;
};

template <class Product, int T>
static inline void ask_for_weights(const Product& p, const Piece& piece, int64_t step, Share share) {
  int64_t tile = piece.tile, ahead = step + kStepsAhead;
  if (ahead >= piece.cut_last) ahead = piece.cut_first + (ahead - piece.cut_last), tile += 2;
  if (ahead >= piece.cut_last) return;
  const uint8_t* from = p.codes(tile, ahead);
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t, from += p.tile_codes())
    for (int64_t i = 64 * share.index; i < p.step_codes(); i += 64 * share.of)
      __builtin_prefetch(from + i, 0, 2);
}

template <class Product, int T>
static inline void make_step(const Product& p, const Piece& piece, int64_t step) {
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) p.weights(piece.tile + t, step, !piece.group_steps, piece.at(step, t));
}

// sums of R panels x T channel tiles += a piece. Groups that have a scale are multiplied apart.
template <class Product, int R, int T, bool kMake>
static void multiply_piece(const Product& p, const Piece& piece, const uint8_t* x, Share share,
                           int32_t* sums) {
  using Engine = typename Product::Engine;
  constexpr bool kOnTheWay = kMake && Engine::kMakesOnTheWay;
  if (kMake)
    for (int64_t step = piece.first; step < (kOnTheWay ? piece.first + 1 : piece.last); ++step)
      make_step<Product, T>(p, piece, step);
  if (!piece.group_steps) {
    Engine::template multiply<Product, R, T, kOnTheWay>(p, piece, piece.first, piece.last, x, share,
                                                        piece.first == 0, sums,
                                                        p.panels.rows * piece.sum_stride());
    return;
  }
  alignas(64) int32_t group[2 * kPanelSums];
  for (int64_t first = piece.first; first < piece.last; first += piece.group_steps) {
    const int64_t last = first + piece.group_steps < piece.last ? first + piece.group_steps : piece.last;
    Engine::template multiply<Product, R, T, kOnTheWay>(p, piece, first, last, x, share, true, group,
                                                        p.panels.rows * piece.sum_stride());
    p.add_group(piece, first, group, R * p.panels.rows, sums);
  }
}

template <class Product, bool kMake>
static inline void multiply(const Product& p, const Piece& piece, int64_t panels, const uint8_t* x,
                            Share share, int32_t* sums) {
  if (panels > 1 && piece.tiles > 1) return multiply_piece<Product, 2, 2, kMake>(p, piece, x, share, sums);
  if (panels > 1) return multiply_piece<Product, 2, 1, kMake>(p, piece, x, share, sums);
  if (piece.tiles > 1) return multiply_piece<Product, 1, 2, kMake>(p, piece, x, share, sums);
  multiply_piece<Product, 1, 1, kMake>(p, piece, x, share, sums);
}

// A Product says where the operands come from and where the sums go:
//   Engine                     what multiplies:
//     kRows                      of a panel, at most
//     kMakesOnTheWay             whether the first panels' products have room for making the weights of the
//     next step Config                     made before the first product, destroyed after the last
//     multiply<Product, R, T, making>(product, piece, first, last, x, share, zero, to, second)
//                                steps [first, last) of a piece: the sums of R panels x T channel tiles go to
//                                `to`, those of the second panel `second` further; they begin with zero or
//                                with what is there
//   panels, blocks, x, kTerms  the packed activations
//   kPieceSteps                about as many lie in L1
//   kept                       where the sums of a block wait between cuts of k
//   codes(tile, step)          step_codes() bytes of a channel tile, tile_codes() from the next tile's
//   weights(tile, step, scaled, to)  makes a step of a channel tile, with the scale of its group or without
//   group_steps(tile, tiles)   as a piece of these tiles has it
//   add_group(piece, first step, its sums, rows, sums)
//   write(sums, row, rows, tile, tiles)
template <class Product>
static void run_panel_gemm(const Product& p, int64_t tile_begin, int64_t tile_end) {
  const Panels& panels = p.panels;
  const Blocks& blocks = p.blocks;
  alignas(64) uint8_t weights[2 * kMostSteps * kStepBytes];
  alignas(64) int32_t total[kMostPanels * kPanelSums];
  const typename Product::Engine::Config config(panels.rows);
  const int64_t kept_stride = blocks.kept_words(panels, 16);

  for (int64_t panel = 0; panel < panels.count; panel += blocks.panels) {
    const int64_t end = panel + blocks.panels < panels.count ? panel + blocks.panels : panels.count;
    for (int64_t cut = 0; cut < panels.steps; cut += blocks.steps) {
      const int64_t cut_last = cut + blocks.steps < panels.steps ? cut + blocks.steps : panels.steps;
      for (int64_t tile = tile_begin; tile < tile_end; tile += 2) {
        const int64_t tiles = tile_end - tile < 2 ? 1 : 2, group_steps = p.group_steps(tile, tiles);
        int32_t* to = kept_stride ? p.kept + tile * kept_stride : total;
        for (int64_t first = cut; first < cut_last; first += blocks.piece) {
          const int64_t last = first + blocks.piece < cut_last ? first + blocks.piece : cut_last;
          const Piece piece{tile, tiles, first, last, group_steps, blocks.mask, weights, cut, cut_last};
          for (int64_t i = panel; i < end; i += 2) {
            const int64_t count = end - i < 2 ? 1 : 2, row = i * panels.rows, rows = count * panels.rows;
            const uint8_t* x = p.x + i * panels.bytes();
            int32_t* sums = to + (i - panel) * panels.rows * piece.sum_stride();
            const Share share{(i - panel) / 2, (end - panel + 1) / 2};
            if (i == panel) multiply<Product, true>(p, piece, count, x, share, sums);
            else multiply<Product, false>(p, piece, count, x, share, sums);
            if (last == panels.steps) p.write(sums, row, rows, tile, tiles);
          }
        }
      }
    }
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
