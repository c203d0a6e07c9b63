#include "cuda/rows/rope.cuh"

namespace megalite {

template void rope(const RopeParams<half>&, Stream);
template void rope(const RopeParams<bfloat16>&, Stream);
template void rope(const RopeParams<float>&, Stream);

}  // namespace megalite
