// The s8 product of a Hopper by CUTLASS 3.x: TMA, wgmma, warp specialisation, both scales in the epilogue.
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "call.h"

namespace {

using namespace cute;
namespace fusion = cutlass::epilogue::fusion;

template <class Tile, class Cluster, class Kernel, class Epilogue>
struct Int8 {
  template <class Out>
  using Product =
      fusion::Sm90Compute<cutlass::multiplies, Out, float, cutlass::FloatRoundStyle::round_to_nearest>;
  using OfColumn = fusion::Sm90RowBroadcast<0, Tile, float>;  // w_scale [N]
  using OfRow = fusion::Sm90ColBroadcast<0, Tile, float>;     // x_scale [M]
  using Scaled = fusion::Sm90EVT<Product<float>, OfColumn, fusion::Sm90AccFetch>;
  using Finish = fusion::Sm90EVT<Product<cutlass::half_t>, OfRow, Scaled>;

  using RowMajor = cutlass::layout::RowMajor;
  using Output = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, int32_t, float, void, RowMajor, 8, cutlass::half_t,
      RowMajor, 8, Epilogue, Finish>::CollectiveOp;
  using Main = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, RowMajor, 16, int8_t,
      cutlass::layout::ColumnMajor, 16, int32_t, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(typename Output::SharedStorage))>,
      Kernel>::CollectiveOp;
  using Universal = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Main, Output>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Universal>;

  static const char* run(const peers::Call& c) {
    const auto a = cutlass::make_cute_packed_stride(typename Gemm::GemmKernel::StrideA{}, {c.m, c.k, 1});
    const auto b = cutlass::make_cute_packed_stride(typename Gemm::GemmKernel::StrideB{}, {c.n, c.k, 1});
    const auto d = cutlass::make_cute_packed_stride(typename Gemm::GemmKernel::StrideD{}, {c.m, c.n, 1});
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {c.m, c.n, c.k, 1},
        {static_cast<const int8_t*>(c.x), a, static_cast<const int8_t*>(c.w), b},
        {{{c.x_scale}, {{c.w_scale}, {}, {}}, {}}, nullptr, {}, reinterpret_cast<cutlass::half_t*>(c.y), d}};
    Gemm gemm;
    if (cutlass::Status status = gemm.can_implement(arguments); status != cutlass::Status::kSuccess)
      return cutlassGetStatusString(status);
    if (Gemm::get_workspace_size(arguments)) return "cutlass: expected no workspace";
    const cutlass::Status status = gemm.run(arguments, nullptr, c.stream);
    return status == cutlass::Status::kSuccess ? nullptr : cutlassGetStatusString(status);
  }
};

using Few = Int8<Shape<_64, _128, _128>, Shape<_1, _2, _1>, cutlass::gemm::KernelTmaWarpSpecializedPingpong,
                 cutlass::epilogue::TmaWarpSpecialized>;
using Many =
    Int8<Shape<_128, _256, _128>, Shape<_2, _1, _1>, cutlass::gemm::KernelTmaWarpSpecializedCooperative,
         cutlass::epilogue::TmaWarpSpecializedCooperative>;

}  // namespace

PEER(cutlass_s8_sm90) { return c->m <= 64 ? Few::run(*c) : Many::run(*c); }
