"""The embedding of tokens, split over tensor-parallel processes by vocabulary."""

from torch import Tensor

from megalite.distributed.collectives import shard_bounds
from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial, Layer
from megalite.layers.region import leave
from megalite.ops.embedding import embedding


class VocabParallelEmbedding(Layer):
    """Rows of W [V, E], split over tp along V; also the matrix of a tied head."""

    def __init__(self, mesh: Mesh, vocab_size: int, width: int, initial: Initial) -> None:
        """Declare the table."""
        super().__init__(mesh)
        self.vocab_size = vocab_size
        self.add("weight", (vocab_size, width), initial, shard=0, rows=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up tokens [B, S] int64: [B, S, E], or [B, S/tp, E] under sequence parallelism.

        Comm: see :func:`leave`.
        """
        first, _ = shard_bounds(self.vocab_size, self.mesh.tp)
        rows = embedding(self.local("weight"), tokens, first, self.vocab_size)
        return leave(rows, self.mesh)
