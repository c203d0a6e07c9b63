"""Where a layout cuts a model into pipeline stages."""

from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.models.part import Part


def parts_of(config: ModelConfig, parallel: ParallelConfig) -> list[Part]:
    """The parts that a layout cuts a model into, in order."""
    if parallel.pp == 1:
        return [Part.whole(config)]
    return cut(config, parallel.pp * parallel.chunks_per_rank, parallel.encoder_stages)


def cut(config: ModelConfig, count: int, encoder_stages: int = 0) -> list[Part]:
    """Cut a model into ``count`` parts so that the slowest is as fast as can be.

    A block costs its matrix products per token; the embedding nothing, the head its own.
    Each part has at least one block: ``count`` is at most the number of blocks.

    Args:
        config: of the model.
        count: parts.
        encoder_stages: the parts of the encoder, whose end is then a cut; 0 lets a part hold the
            encoder's end and the decoder's beginning.
    """
    encoder, decoder, head = _costs(config)
    border = config.num_encoder_layers
    encoders, decoders = [encoder] * border, [decoder] * config.num_layers
    decoders[-1] += head
    if encoder_stages:
        ends = _balanced_ends(encoders, encoder_stages)
        ends += [border + end for end in _balanced_ends(decoders, count - encoder_stages)]
    else:
        ends = _balanced_ends(encoders + decoders, count)
    parts = []
    for index, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        encoder_blocks = min(first, border), min(last, border)
        decoder_blocks = max(first - border, 0), max(last - border, 0)
        parts.append(Part(index, count, encoder_blocks, decoder_blocks))
    return parts


def _costs(config: ModelConfig) -> tuple[float, float, float]:
    """Weights that a token meets in an encoder block, a decoder block and the head."""
    size = config.hidden_size
    attention = 2 * size * config.head_dim * (config.num_heads + config.kv_heads)
    ffn = (3 if config.gated else 2) * size * config.ffn_size
    cross = attention if config.is_encoder_decoder else 0
    head = config.vocab_size * size if config.head == "lm" else size
    return attention + ffn, attention + cross + ffn, head


def _balanced_ends(costs: list[float], count: int) -> list[int]:
    """Ends of ``count`` runs of ``costs`` whose largest sum is least, none of them empty."""
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    items = len(costs)
    best = {(0, 0): (0.0, 0)}
    for run in range(1, count + 1):
        for end in range(run, items - (count - run) + 1):
            best[run, end] = min(
                (max(best[run - 1, start][0], total[end] - total[start]), start)
                for start in range(run - 1, end)
                if (run - 1, start) in best
            )
    ends, end = [], items
    for run in range(count, 0, -1):
        ends.append(end)
        end = best[run, end][1]
    return ends[::-1]
