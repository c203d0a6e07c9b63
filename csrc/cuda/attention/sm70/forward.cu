// Launches forward.cuh.
#include "cuda/attention/sm70/choice.cuh"
#include "cuda/attention/sm70/forward.cuh"

namespace megalite {
namespace sm70 {

template <int D, bool kHasBias, bool kDrops>
void launch_forward(const AttentionParams<half>& p, Stream stream) {
  using Shape = ForwardShape<D>;
  const Dim3 grid{static_cast<uint32_t>(divide_up(p.queries, Shape::kRows)),
                  static_cast<uint32_t>(p.heads), static_cast<uint32_t>(p.batch)};
  launch(
      LaunchConfig{
          "attention_forward_sm70", grid, {Shape::kThreads}, Shape::shared_bytes(kHasBias), stream},
      attention_forward_kernel<D, kHasBias, kDrops>, p);
}

}  // namespace sm70

void attention_forward_sm70(const AttentionParams<half>& params, Stream stream) {
  sm70::select(params, [&](auto choice) {
    using Choice = decltype(choice);
    sm70::launch_forward<Choice::kHeadDim, Choice::kHasBias, Choice::kDrops>(params, stream);
  });
}

}  // namespace megalite
