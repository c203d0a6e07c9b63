"""How much memory a run needs on the processes of each pipeline rank, before anything starts.

Parameters are counted exactly; activations by formula, for attention that keeps no scores and a
loss that keeps no logits.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 3; Korthikanti et al. 2022,
arXiv:2205.05198, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.cut import parts_of
from megalite.models.config import ModelConfig
from megalite.models.part import Part
from megalite.models.transformer import Transformer
from megalite.training.config import TrainConfig

GIB = 2.0**30
BYTES = {"auto": 2, "fp32": 4, "bf16": 2, "fp16": 2}  # auto: what a GPU takes
CONTEXT_GIB = 3.0  # CUDA's context, NCCL's buffers, workspaces, a chunk of logits
FRAGMENTS = 0.05  # of all else, lost between blocks of the allocator


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        model: its shape.
        train: batch sizes and precision.
        sequence_length: rows of the decoder, S.
        encoder_length: rows of the encoder.
    """

    model: ModelConfig
    train: TrainConfig
    sequence_length: int
    encoder_length: int = 0


@dataclass(frozen=True)
class PartMemory:
    """What a part of the model takes of each process that holds it, in GiB.

    Attributes:
        blocks: of the part, encoder and decoder.
        parameters: of the whole part, over all its processes.
        states: fp32 parameters, their gradients and AdamW's two averages.
        gathered: what FSDP2 gathers for compute, and gradients that wait to be reduced.
        activations: of the micro-batches under way.
    """

    blocks: int
    parameters: int
    states: float
    gathered: float
    activations: float


@dataclass(frozen=True)
class ProcessMemory(PartMemory):
    """What all parts that a process holds take of it together, in GiB.

    Attributes:
        rest: context and fragments.
    """

    rest: float

    @classmethod
    def of(cls, parts: Sequence[PartMemory]) -> "ProcessMemory":
        """The memory of a process with these parts."""
        states = sum(part.states for part in parts)
        gathered = sum(part.gathered for part in parts)
        activations = sum(part.activations for part in parts)
        return cls(
            blocks=sum(part.blocks for part in parts),
            parameters=sum(part.parameters for part in parts),
            states=states,
            gathered=gathered,
            activations=activations,
            rest=CONTEXT_GIB + FRAGMENTS * (states + gathered + activations),
        )

    @property
    def total(self) -> float:
        """All of it."""
        return self.states + self.gathered + self.activations + self.rest


def estimate(work: Work, parallel: ParallelConfig) -> list[ProcessMemory]:
    """The memory of a process of each pipeline rank, in order."""
    parts = parts_of(work.model, parallel)
    memory = [_part_memory(work, parallel, part) for part in parts]
    return [ProcessMemory.of(memory[rank :: parallel.pp]) for rank in range(parallel.pp)]


@dataclass(frozen=True)
class _PartSize:
    """How large a part is.

    Attributes:
        parameters: of all of it.
        blocks: how many it has.
        block: parameters of the largest one.
    """

    parameters: int
    blocks: int
    block: int

    @classmethod
    def of(cls, model: ModelConfig, part: Part) -> "_PartSize":
        """The size of a part; nothing is allocated."""
        built = Transformer(model, Mesh.single(), part)
        blocks = [sum(p.numel() for p in block.parameters()) for block in built.blocks()]
        return cls(sum(p.numel() for p in built.parameters()), len(blocks), max(blocks))


def _part_memory(work: Work, parallel: ParallelConfig, part: Part) -> PartMemory:
    size = _PartSize.of(work.model, part)
    encoder, decoder = part.encoder[1] - part.encoder[0], part.decoder[1] - part.decoder[0]
    states = 16.0 * size.parameters / (parallel.tp * parallel.shard)
    moving = _in_flight(work, parallel, part)
    row = _activation_bytes(work.model, parallel, BYTES[work.train.precision])
    rows = encoder * work.encoder_length + decoder * work.sequence_length
    longest = max(work.sequence_length, work.encoder_length if encoder else 0)
    micro = work.train.micro_batch_size
    kept = moving * micro * rows * row.kept(parallel, size.blocks) + micro * longest * row.whole
    if part.ends and work.model.head == "lm":
        kept += 4.0 * work.model.vocab_size * work.model.hidden_size / parallel.tp
    gathered = _gathered(work, parallel, size)
    return PartMemory(size.blocks, size.parameters, states / GIB, gathered / GIB, kept / GIB)


def _gathered(work: Work, parallel: ParallelConfig, size: _PartSize) -> float:
    """The most bytes of unsharded parameters and gradients at once.

    Parameters that stay gathered are all unsharded; otherwise those of two blocks, the embedding
    and the head are. Gradients are reduced in the step's last micro-batch: until then all of them
    accumulate in fp32, and those of two blocks are just being computed. With one micro-batch, the
    gradients of two blocks, the embedding and the head wait for their reduction, and one block's
    is under way in fp32.
    """
    train = work.train
    dp = parallel.shard * max(parallel.replicate, 1)
    if dp == 1 and train.precision == "fp32":
        return 0.0
    at_once = size.parameters - size.block * max(size.blocks - 2, 0)
    is_resharded = parallel.reshard_after_forward and parallel.pp == 1
    width = BYTES[train.precision]
    whole = width * (at_once if is_resharded else size.parameters)
    is_summed = train.global_batch_size > train.micro_batch_size * dp
    if is_summed:
        waiting = 4.0 * size.parameters + (2.0 * width * size.block if width < 4 else 0.0)
    else:
        waiting = width * at_once + 4.0 * size.block
    return (whole + waiting) / parallel.tp


def _in_flight(work: Work, parallel: ParallelConfig, part: Part) -> float:
    """Micro-batches whose activations a part holds at once."""
    train = work.train
    dp = parallel.shard * max(parallel.replicate, 1)
    count = max(train.global_batch_size // (train.micro_batch_size * dp), 1)
    if parallel.pp == 1:
        return 1.0
    rank = part.index % parallel.pp
    if parallel.schedule == "gpipe":
        return float(count)
    if parallel.schedule == "1f1b":
        return float(min(parallel.pp - rank, count))
    chunks = parallel.chunks_per_rank
    warm = 2 * (parallel.pp - rank - 1) + (chunks - 1) * parallel.pp + 1
    return min(warm / chunks, float(count))


@dataclass(frozen=True)
class _ActivationBytes:
    """Bytes of activations per token and block.

    Attributes:
        whole: without recompute.
        products: the results of matrix products and attention.
        entry: the input of the block.
    """

    whole: float
    products: float
    entry: float

    def kept(self, parallel: ParallelConfig, blocks: int) -> float:
        """Bytes that stay until the backward pass, averaged over blocks."""
        kinds = {"none": self.whole, "selective": self.products + self.entry, "full": self.entry}
        share = 1.0
        if parallel.recompute_blocks:
            share = min(parallel.recompute_blocks, blocks) / blocks
        return share * kinds[parallel.recompute] + (1 - share) * self.whole


def _activation_bytes(model: ModelConfig, parallel: ParallelConfig, size: int) -> _ActivationBytes:
    width = model.hidden_size
    heads = model.head_dim * (model.num_heads + 2 * model.kv_heads)
    out = model.head_dim * model.num_heads
    inner = model.ffn_size * (3 if model.gated else 2)
    streams, products = 6 * width, 2 * width  # two norms, and what they and the sub-layers give
    split = heads + out + inner
    if model.is_encoder_decoder:
        streams, products, split = 9 * width, 3 * width, split + heads + out
    if model.norm_position == "both":  # what the second norms read
        streams += width * (3 if model.is_encoder_decoder else 2)
    if model.query_key_norm:  # what they give, beside what they read
        split += model.head_dim * (model.num_heads + model.kv_heads)
    across = parallel.tp if parallel.sequence_parallel else 1
    made = heads + out + model.ffn_size * (2 if model.gated else 1)
    return _ActivationBytes(
        size * (streams / across + split / parallel.tp),
        size * (products / across + made / parallel.tp),
        size * width / across,
    )
