"""Floating-point operations of a training step, from which MFU and HFU are made.

MFU counts what the model needs; HFU also what is computed again: recomputed blocks and attention's
scores.

Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B; attention by its row intervals.
"""

from collections import Counter
from dataclasses import dataclass

from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.ops import RowIntervals


@dataclass(frozen=True)
class Operations:
    """Floating-point operations, of matrix products and attention, over rows that aren't padding.

    Attributes:
        model: what a training step needs: three times its forward pass.
        hardware: what is done: recomputed blocks, and the scores that attention's backward pass
            always makes again, too.
    """

    model: float
    hardware: float


def forward_flops(config: ModelConfig, batch: Batch) -> float:
    """Operations of one forward pass over the rows that aren't padding."""
    return step_operations(config, batch).model / 3.0


def step_operations(
    config: ModelConfig, batch: Batch, recomputed: tuple[int, int] = (0, 0)
) -> Operations:
    """Operations of a micro-batch, forward and backward.

    Args:
        config: of the model.
        batch: the head computes its rows with a target only.
        recomputed: encoder and decoder blocks whose whole forward pass is made again.
    """
    rows, pairs = _rows_pairs(config, batch.decoder.mask, config.num_layers)
    per_row, per_pair = _block_costs(config)
    decoder, scores = rows * per_row + pairs * per_pair, config.num_layers * pairs
    encoder = encoder_rows = 0.0
    if batch.encoder is not None and batch.cross is not None:
        depth = config.num_encoder_layers
        encoder_rows, encoder_pairs = _rows_pairs(config, batch.encoder.mask, depth, True)
        encoder = encoder_rows * per_row + encoder_pairs * per_pair
        cross_pairs = _pairs(batch.cross)
        decoder += _cross_costs(config, rows, encoder_rows, cross_pairs)
        scores += config.num_encoder_layers * encoder_pairs + config.num_layers * cross_pairs
    head = 0.0
    if config.head == "lm":  # a reward model's batch has no targets
        head = 2.0 * batch.num_targets * config.vocab_size * config.embedding_width
    forward = config.num_encoder_layers * encoder + config.num_layers * decoder + head
    skipped = _skipped_in_recompute(config)
    again = recomputed[0] * (encoder - skipped * encoder_rows)
    again += recomputed[1] * (decoder - skipped * rows)
    return Operations(3.0 * forward, 3.0 * forward + again + scores * per_pair / 2)


def _skipped_in_recompute(config: ModelConfig) -> float:
    """Operations a row that recompute leaves out: nothing needs the last product's result again."""
    if config.norm_position != "pre":
        return 0.0
    return 2.0 * config.ffn_size * config.hidden_size


def _rows_pairs(
    config: ModelConfig, mask: RowIntervals, layers: int, both_ways: bool = False
) -> tuple[float, float]:
    """Rows that aren't padding, and (query, key) pairs of a layer, the mean over a stack's."""
    windows = Counter(config.window_of(layer) for layer in range(layers))
    pairs = {window: _pairs(mask.narrowed(window, both_ways)) for window in windows}
    mean = sum(count * pairs[window] for window, count in windows.items()) / layers
    return float((mask.end > mask.start).sum()), mean


def _pairs(mask: RowIntervals) -> float:
    return float((mask.end - mask.start).clamp(min=0).sum())


def _block_costs(config: ModelConfig) -> tuple[float, float]:
    """Operations a row (matrices) and a (query, key) pair (attention) in one block."""
    size, heads = config.hidden_size, config.head_dim * config.num_heads
    attention = 2 * size * config.head_dim * (config.num_heads + config.kv_heads)
    ffn = (3 if config.gated else 2) * size * config.ffn_size
    return 2.0 * (attention + ffn), 4.0 * heads


def _cross_costs(config: ModelConfig, rows: float, encoder_rows: float, pairs: float) -> float:
    size, heads = config.hidden_size, config.head_dim * config.num_heads
    keys = config.head_dim * config.kv_heads
    return 4.0 * (rows * size * heads + encoder_rows * size * keys + pairs * heads)
