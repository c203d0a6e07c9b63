#include "cuda/attention/paged.cuh"

namespace megalite {

template void paged_attention(const PagedParams<half>&, Stream);
template void paged_attention(const PagedParams<bfloat16>&, Stream);
template void paged_attention(const PagedParams<float>&, Stream);

}  // namespace megalite
