"""The ops: one schema, several backends. Shapes are in docs/design.md."""

from megalite.ops.activation import activation
from megalite.ops.attention import AttentionOptions, attention
from megalite.ops.backends import backend, use_backend
from megalite.ops.cross_entropy import cross_entropy
from megalite.ops.dropout import Dropout, Drops, dropout
from megalite.ops.embedding import embedding
from megalite.ops.linear_cross_entropy import linear_cross_entropy
from megalite.ops.mask import RowIntervals
from megalite.ops.norm import NormOptions, Update, add_norm, norm
from megalite.ops.rope import rope, rope_tables
from megalite.ops.token_log_probs import token_log_probs
from megalite.ops.vocabulary import LossOptions, VocabularySlice

__all__ = [
    "AttentionOptions",
    "Dropout",
    "Drops",
    "LossOptions",
    "NormOptions",
    "RowIntervals",
    "Update",
    "VocabularySlice",
    "activation",
    "add_norm",
    "attention",
    "backend",
    "cross_entropy",
    "dropout",
    "embedding",
    "linear_cross_entropy",
    "norm",
    "rope",
    "rope_tables",
    "token_log_probs",
    "use_backend",
]
