#include "cuda/rows/embedding.cuh"

namespace megalite {

template void embedding(const EmbeddingParams<half>&, Stream);
template void embedding(const EmbeddingParams<bfloat16>&, Stream);
template void embedding(const EmbeddingParams<float>&, Stream);
template void embedding_backward(const EmbeddingGradientParams<half>&, Stream);
template void embedding_backward(const EmbeddingGradientParams<bfloat16>&, Stream);
template void embedding_backward(const EmbeddingGradientParams<float>&, Stream);

}  // namespace megalite
