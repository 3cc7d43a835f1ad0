// The signs of H_K for the K whose mixing is unrolled: bit i of row j is set where H[j, i] = -1.
// Written by the construction of cpu/hadamard_matrix.cpp; tests/emu/test_hadamard.py compares them with it.
#pragma once

#include <cstdint>

namespace lowbit {

template <int kOrder>
struct HadamardSigns;

template <>
struct HadamardSigns<12> {
  static constexpr uint64_t row[12] = {0x000, 0x475, 0x8e9, 0x1d3, 0x3a5, 0x749,
                                       0xe91, 0xd23, 0xa47, 0x48f, 0x91d, 0x23b};
};

template <>
struct HadamardSigns<20> {
  static constexpr uint64_t row[20] = {0x00000, 0x615e5, 0xc2bc9, 0x85793, 0x0af27, 0x15e4d, 0x2bc99,
                                       0x57931, 0xaf261, 0x5e4c3, 0xbc985, 0x7930b, 0xf2615, 0xe4c2b,
                                       0xc9857, 0x930af, 0x2615f, 0x4c2bd, 0x98579, 0x30af3};
};

template <>
struct HadamardSigns<28> {
  static constexpr uint64_t row[28] = {0x0000000, 0x4a37785, 0x90ecf89, 0x255bb83, 0x513ac2f, 0x866784f,
                                       0x28dd41f, 0x8956d71, 0x323da71, 0x44eb4f1, 0x6ef0929, 0xd9f1243,
                                       0xb770495, 0x7585d45, 0xcf09e19, 0xba83ca3, 0xadae225, 0x7b4e0c9,
                                       0xd69e113, 0xe1251bb, 0xe248767, 0xe092add, 0x0ba89d7, 0x13c333d,
                                       0x07946eb, 0x5c44ab7, 0x9c191ed, 0x3c2275b};
};

template <>
struct HadamardSigns<36> {
  static constexpr uint64_t row[36] = {
      0x000000002, 0xaaaaaaaab, 0x0cfc3f308, 0xa656959ae, 0x33f0fcc20, 0x995a566ba, 0xcfc3f3080, 0x656959aea,
      0x3f0fcc20c, 0x95a566ba6, 0xfc3f30830, 0x56959ae9a, 0xf0fcc20cc, 0x5a566ba66, 0xc3f30833c, 0x6959ae996,
      0x0fcc20cfc, 0xa566ba656, 0x3f30833f0, 0x959ae995a, 0xfcc20cfc0, 0x566ba656a, 0xf30833f0c, 0x59ae995a6,
      0xcc20cfc3c, 0x66ba65696, 0x30833f0fc, 0x9ae995a56, 0xc20cfc3f0, 0x6ba65695a, 0x0833f0fcc, 0xae995a566,
      0x20cfc3f30, 0xba656959a, 0x833f0fcc0, 0xe995a566a};
};

template <>
struct HadamardSigns<44> {
  static constexpr uint64_t row[44] = {
      0x00000000000, 0x6b10747dca5, 0xd620e8fb949, 0xac41d1f7293, 0x5883a3ee527, 0xb10747dca4d, 0x620e8fb949b,
      0xc41d1f72935, 0x883a3ee526b, 0x10747dca4d7, 0x20e8fb949ad, 0x41d1f729359, 0x83a3ee526b1, 0x0747dca4d63,
      0x0e8fb949ac5, 0x1d1f7293589, 0x3a3ee526b11, 0x747dca4d621, 0xe8fb949ac41, 0xd1f72935883, 0xa3ee526b107,
      0x47dca4d620f, 0x8fb949ac41d, 0x1f72935883b, 0x3ee526b1075, 0x7dca4d620e9, 0xfb949ac41d1, 0xf72935883a3,
      0xee526b10747, 0xdca4d620e8f, 0xb949ac41d1f, 0x72935883a3f, 0xe526b10747d, 0xca4d620e8fb, 0x949ac41d1f7,
      0x2935883a3ef, 0x526b10747dd, 0xa4d620e8fb9, 0x49ac41d1f73, 0x935883a3ee5, 0x26b10747dcb, 0x4d620e8fb95,
      0x9ac41d1f729, 0x35883a3ee53};
};

template <>
struct HadamardSigns<52> {
  static constexpr uint64_t row[52] = {
      0x0000000000002, 0xaaaaaaaaaaaab, 0xc3cf33cf0f008, 0x69659965a5aae, 0x0ffccf303f020, 0xa556659a95aba,
      0x3f333cccfc080, 0x9599966656aea, 0xfc0cf33ff0200, 0x56a659955abaa, 0xf0f3ccf3c3800, 0x5a59665969eaa,
      0x3ccf3c3c02c3c, 0x96659696ab696, 0xf33cc0fc080fc, 0x59966a56aea56, 0xccf333f0203f0, 0x6659995aba95a,
      0x33ccffc080fc0, 0x9966556aea56a, 0xcf33cf0e00f0c, 0x659965a7aa5a6, 0x3cf0f00b0f3cc, 0x965a5aada5966,
      0xf303f0203ff30, 0x59a95aba9559a, 0xcccfc080fcccc, 0x66656aea56666, 0x33ff0203f033c, 0x9955aba95a996,
      0xcf3c3803c3cf0, 0x65969ea96965a, 0xc3c02c3cf33cc, 0x696ab69659966, 0x0fc080ffccf30, 0xa56aea556659a,
      0x3f0203f333ccc, 0x95aba95999666, 0xfc080fc0cf33c, 0x56aea56a65996, 0xf0e00f0f3ccf0, 0x5a7aa5a59665a,
      0x00b0f3ccf3c3c, 0xaada596659696, 0x0203ff33cc0fc, 0xaba9559966a56, 0x080fcccf333f0, 0xaea566659995a,
      0x203f033ccffc0, 0xba95a9966556a, 0x803c3cf33cf0c, 0xea969659965a6};
};

template <>
struct HadamardSigns<60> {
  static constexpr uint64_t row[60] = {
      0x000000000000000, 0x456c4307cf72575, 0x8ad8860f9ee4ae9, 0x15b10c1f3dc95d3, 0x2b62183e7b92ba5,
      0x56c4307cf725749, 0xad8860f9ee4ae91, 0x5b10c1f3dc95d23, 0xb62183e7b92ba45, 0x6c4307cf725748b,
      0xd8860f9ee4ae915, 0xb10c1f3dc95d22b, 0x62183e7b92ba457, 0xc4307cf725748ad, 0x8860f9ee4ae915b,
      0x10c1f3dc95d22b7, 0x2183e7b92ba456d, 0x4307cf725748ad9, 0x860f9ee4ae915b1, 0x0c1f3dc95d22b63,
      0x183e7b92ba456c5, 0x307cf725748ad89, 0x60f9ee4ae915b11, 0xc1f3dc95d22b621, 0x83e7b92ba456c43,
      0x07cf725748ad887, 0x0f9ee4ae915b10d, 0x1f3dc95d22b6219, 0x3e7b92ba456c431, 0x7cf725748ad8861,
      0xf9ee4ae915b10c1, 0xf3dc95d22b62183, 0xe7b92ba456c4307, 0xcf725748ad8860f, 0x9ee4ae915b10c1f,
      0x3dc95d22b62183f, 0x7b92ba456c4307d, 0xf725748ad8860f9, 0xee4ae915b10c1f3, 0xdc95d22b62183e7,
      0xb92ba456c4307cf, 0x725748ad8860f9f, 0xe4ae915b10c1f3d, 0xc95d22b62183e7b, 0x92ba456c4307cf7,
      0x25748ad8860f9ef, 0x4ae915b10c1f3dd, 0x95d22b62183e7b9, 0x2ba456c4307cf73, 0x5748ad8860f9ee5,
      0xae915b10c1f3dc9, 0x5d22b62183e7b93, 0xba456c4307cf725, 0x748ad8860f9ee4b, 0xe915b10c1f3dc95,
      0xd22b62183e7b92b, 0xa456c4307cf7257, 0x48ad8860f9ee4af, 0x915b10c1f3dc95d, 0x22b62183e7b92bb};
};

// Inputs 4 g .. 4 g + 3 in output j: sign * one of the eight (x0 +- x1) +- (x2 +- x3), numbered as in
// cpu::MixTable. Constants of a type, for nvcc lets a kernel call no constexpr function of the host.
template <int kOrder, int kOutput, int kQuad>
struct HadamardTerm {
  static constexpr uint64_t bits = HadamardSigns<kOrder>::row[kOutput] >> (4 * kQuad);
  static constexpr bool minus[4] = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
  static constexpr int combination =
      4 * (minus[1] != minus[0]) + 2 * (minus[3] != minus[2]) + (minus[2] != minus[0]);
  static constexpr bool negative = minus[0];
};

}  // namespace lowbit
