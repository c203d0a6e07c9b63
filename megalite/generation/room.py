"""The memory that answers need, known before the first is begun."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megalite.generation.blocks import BLOCK_ROWS, num_blocks
from megalite.generation.prompts import Prompt
from megalite.generation.sampling import CHANGED_AT_ONCE, SamplingConfig
from megalite.models.config import ModelConfig
from megalite.ops.paged_attention import KEY_TILE

READ_ROWS = 1024  # of a prompt that a pass reads: enough to keep a GPU at work, few to hold
CHANGE_BYTES = 40  # of a logit that is penalised, sorted and cut: copies, places, sums


def pieces(length: int, prefix: int) -> Iterator[tuple[int, int]]:
    """Rows [first, last) of each pass over a prompt; rows that see each other both ways are one."""
    first = 0
    while first < length:
        last = min(length, max(first + READ_ROWS, prefix))
        yield first, last
        first = last


@dataclass(frozen=True)
class Room:
    """The memory that answers need.

    Attributes:
        slots: most answers that are written side by side.
        blocks: of the decoder's keys and values.
        cross_blocks: of the encoder's.
        most_keys: of one answer with its prompt, rounded up.
        most_read: rows of the longest that an encoder reads.
        pass_rows: of the largest pass over a prompt or by an encoder.
    """

    slots: int
    blocks: int
    cross_blocks: int
    most_keys: int
    most_read: int
    pass_rows: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], limits: Sequence[int], slots: int) -> "Room":
        """The room for the answers that need most, side by side.

        Args:
            prompts: one for each answer.
            limits: most tokens of each answer.
            slots: most answers that are written side by side.
        """
        keys = [len(p.tokens) + n for p, n in zip(prompts, limits, strict=True)]
        read = [len(p.encoder_tokens) for p in prompts]
        held = num_blocks(max(len(p.tokens) for p in prompts))
        blocks = sorted(map(num_blocks, keys), reverse=True)[:slots]
        cross = sorted(map(num_blocks, read), reverse=True)[:slots]
        most = -(-max(keys) // KEY_TILE) * KEY_TILE
        passes = (b - a for p in prompts for a, b in pieces(len(p.tokens), p.prefix))
        rows = max(*passes, *read)
        return cls(slots, sum(blocks) + held, sum(cross) + cross[0], most, max(read), rows)

    @classmethod
    def for_any(
        cls, slots: int, most_keys: int, most_read: int = 0, has_prefix: bool = False
    ) -> "Room":
        """The room for any answers that come.

        Args:
            slots: most answers that are written side by side.
            most_keys: tokens of the longest answer with its prompt.
            most_read: tokens of the longest that an encoder reads; 0 without an encoder.
            has_prefix: whether a prompt's tokens may see each other both ways.
        """
        blocks, cross = ((slots + 1) * num_blocks(rows) for rows in (most_keys, most_read))
        rows = max(most_keys if has_prefix else min(READ_ROWS, most_keys), most_read)
        most = -(-most_keys // KEY_TILE) * KEY_TILE
        return cls(slots, blocks, cross, most, most_read, rows)

    def split(self, groups: int, count: int) -> list["Room"]:
        """The same blocks for groups of slots that are as equal as can be.

        Args:
            groups: number of them.
            count: of answers, no less than groups; slots beyond it are left out.
        """
        if groups == 1:
            return [self]
        slots = min(self.slots, count)
        each, more = divmod(slots, groups)
        return [replace(self, slots=each + (number < more)) for number in range(groups)]

    def size_bytes(self, model: ModelConfig, number_bytes: int) -> int:
        """Memory of keys and values of a whole model, whose numbers have so many bytes."""
        row = 2 * model.num_layers * model.kv_heads * model.head_dim * number_bytes
        cross = self.cross_blocks + 1 if model.is_encoder_decoder else 0
        return (self.blocks + 1 + cross) * BLOCK_ROWS * row

    def working_bytes(
        self,
        model: ModelConfig,
        number_bytes: int,
        sampling: SamplingConfig | None = None,
        on_gpu: bool = False,
    ) -> int:
        """Memory of a pass and of a draw beside them, at most; ``sampling`` None: of any.

        A pass holds the residual stream and a sub-layer's products, a draw logits, as the model
        gives them and in fp32. Penalties keep what each row has, 5 bytes a token of the
        vocabulary, twice while rows come or go. On a GPU the graph of a pass over next tokens
        keeps what such a pass holds.
        """
        heads = 2 * (model.num_heads + model.kv_heads)  # queries, results, keys, values
        inner = max(heads * model.head_dim, (2 + model.gated) * model.ffn_size)
        rows = max(self.pass_rows, self.slots)
        row = (4 * model.hidden_size + inner) * number_bytes
        graph = self.slots * (row + model.vocab_size * (number_bytes + 4)) if on_gpu else 0
        keys = max(self.most_keys, self.pass_rows)  # copied of blocks, and as a kernel reads them
        copies = 4 * keys * model.kv_heads * model.head_dim * number_bytes
        logits = 2 * self.slots * model.vocab_size * 4
        total = rows * row + copies + logits + graph
        if sampling is None or sampling.penalises:
            total += 2 * self.slots * model.vocab_size * 5
        if sampling is None or sampling.penalises or sampling.truncates:
            most = min(self.slots * model.vocab_size, max(CHANGED_AT_ONCE, model.vocab_size))
            total += most * CHANGE_BYTES
        return total
