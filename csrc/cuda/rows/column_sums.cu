#include "cuda/rows/column_sums.cuh"

namespace megalite {

template void column_sums(const ColumnSums<half>&, Stream);
template void column_sums(const ColumnSums<bfloat16>&, Stream);
template void column_sums(const ColumnSums<float>&, Stream);

}  // namespace megalite
