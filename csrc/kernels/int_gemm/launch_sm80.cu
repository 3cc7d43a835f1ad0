// The compiled instances for sm_80 (86, 89 and, through PTX, later cards): weights x activations x tile.
#include "instances_mma.h"

namespace lowbit::kernels::int_gemm {
namespace {

template <Weight kWeight, Codes kCodes>
Error launch_tile(const Params& p, const Addends& add, const Choice& c, Stream stream) {
  if (c.tile.tokens == kMmaSmall.tokens) return launch_one<kMmaSmall, kWeight, kCodes>(p, add, c, stream);
  if (c.tile.tokens == kMmaMiddle.tokens) return launch_one<kMmaMiddle, kWeight, kCodes>(p, add, c, stream);
  return launch_one<kMmaLarge, kWeight, kCodes>(p, add, c, stream);
}

}  // namespace

Error launch_sm80(const Params& p, const Addends& add, const Choice& c, Weight weight, Codes codes,
                  Stream stream) {
  if (codes == Codes::kOperand4) return launch_tile<Weight::kInt4, Codes::kOperand4>(p, add, c, stream);
  if (weight == Weight::kInt4) return launch_tile<Weight::kInt4, Codes::kInt8>(p, add, c, stream);
  if (weight == Weight::kInt4Group) return launch_tile<Weight::kInt4Group, Codes::kInt8>(p, add, c, stream);
  if (weight == Weight::kFp4) return launch_tile<Weight::kFp4, Codes::kInt8>(p, add, c, stream);
  return launch_tile<Weight::kInt8, Codes::kInt8>(p, add, c, stream);
}

}  // namespace lowbit::kernels::int_gemm
