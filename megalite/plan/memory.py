"""How much memory a run needs on the processes of each pipeline rank, before anything starts.

Parameters are counted exactly; activations by what autograd keeps of each operation, for attention
that keeps no scores and a loss that keeps no logits.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 3; Korthikanti et al. 2022,
arXiv:2205.05198, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.cut import parts_of
from megalite.engine.lora import NO_LORA, LoRAConfig, adapt, quantised_of
from megalite.models.config import ModelConfig
from megalite.models.part import Part
from megalite.models.transformer import Transformer
from megalite.ops.linear_cross_entropy import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS
from megalite.training.config import OptimizerConfig, TrainConfig
from megalite.training.updates.footprint import Shape, shapes_of, state_numbers

GIB = 2.0**30
BYTES = {"auto": 2, "fp32": 4, "bf16": 2, "fp16": 2}  # auto: what a GPU takes
CONTEXT_GIB = 3.0  # CUDA's context (1.3 to 1.6 GiB), NCCL's buffers, workspaces
FRAGMENTS = 0.05  # of all else: lost between blocks of the allocator
HEADROOM = 0.95  # of a device's memory that a plan may fill


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        model: its shape.
        train: batch sizes and precision.
        sequence_length: rows of the decoder, S.
        encoder_length: rows of the encoder.
        optimizer: whose state is kept.
        lora: adapters, which alone learn; of rank 0 all parameters do.
    """

    model: ModelConfig
    train: TrainConfig
    sequence_length: int
    encoder_length: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = NO_LORA

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        return BYTES[self.train.precision]

    def micro_batches(self, parallel: ParallelConfig) -> int:
        """Micro-batches a step of a data-parallel rank."""
        samples = self.train.micro_batch_size * data_parallel(parallel)
        return max(self.train.global_batch_size // samples, 1)


def data_parallel(parallel: ParallelConfig) -> int:
    """Data-parallel processes; ``replicate = 0`` counts as one copy."""
    return parallel.shard * max(parallel.replicate, 1)


_SUMMED = ("states", "gradients", "gathered")


@dataclass(frozen=True)
class PartMemory:
    """What a part of the model takes of each process that holds it, in GiB.

    Attributes:
        blocks: of the part, encoder and decoder.
        parameters: of the whole part, over all its processes.
        states: fp32 parameters, their running mean and the optimizer's state.
        gradients: in fp32: this process's shard, or all of them where they wait to be reduced.
        gathered: what FSDP2 gathers for compute and keeps.
        activations: of one micro-batch, from its forward to its backward pass.
        working: what only the part holds that is just computing: a block's activations and their
            gradients, the head's, and parameters and gradients on their way.
    """

    blocks: int
    parameters: int
    states: float
    gradients: float
    gathered: float
    activations: float
    working: float


@dataclass(frozen=True)
class ProcessMemory(PartMemory):
    """What all parts that a process holds take of it together, in GiB; one of them is computing.

    Attributes:
        activations: of all micro-batches under way.
        rest: context and fragments.
    """

    rest: float

    @classmethod
    def of(
        cls, parts: Sequence[PartMemory], activations: float, accumulates: bool
    ) -> "ProcessMemory":
        """The memory of a process with these parts.

        Args:
            parts: what it holds.
            activations: of all micro-batches under way, GiB.
            accumulates: whether gradients of earlier micro-batches are there when activations are
                most; else gradients come as activations go.
        """
        sums = {kind: sum(getattr(part, kind) for part in parts) for kind in _SUMMED}
        sums["activations"] = activations
        if not accumulates:
            sums["gradients"] = max(sums["gradients"] - activations, 0.0)
        working = max(part.working for part in parts)
        return cls(
            blocks=sum(part.blocks for part in parts),
            parameters=sum(part.parameters for part in parts),
            working=working,
            rest=CONTEXT_GIB + FRAGMENTS * (sum(sums.values()) + working),
            **sums,
        )

    @property
    def tensors(self) -> float:
        """What PyTorch itself counts."""
        return self.states + self.gradients + self.gathered + self.activations + self.working

    @property
    def total(self) -> float:
        """All of it."""
        return self.tensors + self.rest


def estimate(work: Work, parallel: ParallelConfig) -> list[ProcessMemory]:
    """The memory of a process of each pipeline rank, in order."""
    parts = parts_in(work.model, parallel)
    memory = [_part_memory(work, parallel, part) for part in parts]
    count, stages = work.micro_batches(parallel), []
    for rank in range(parallel.pp):
        held = memory[rank :: parallel.pp]
        activations = _most_under_way([part.activations for part in held], parallel, rank, count)
        activations += _sent(work, parallel, parts[rank :: parallel.pp]) / GIB
        stages.append(ProcessMemory.of(held, activations, count > 1))
    return stages


def parts_in(model: ModelConfig, parallel: ParallelConfig) -> Sequence[Part]:
    """The parts that a layout cuts a model into; each kind of cut is made once."""
    return _parts(model, parallel.pp, parallel.chunks_per_rank, parallel.encoder_stages)


@lru_cache(maxsize=1024)
def _parts(model: ModelConfig, pp: int, chunks: int, encoder_stages: int) -> tuple[Part, ...]:
    cut = ParallelConfig(pp=pp, chunks_per_rank=chunks, encoder_stages=encoder_stages)
    return tuple(parts_of(model, cut))


@lru_cache(maxsize=1024)
def largest_process(model: ModelConfig, parts: tuple[Part, ...], pp: int) -> int:
    """Parameters of the pipeline process that holds most, over all of its tp."""
    sizes = [size_of(model, part).parameters for part in parts]
    return max(sum(sizes[rank::pp]) for rank in range(pp))


def most(stages: Sequence[ProcessMemory]) -> ProcessMemory:
    """The stage that needs most."""
    return max(stages, key=lambda stage: stage.total)


@dataclass(frozen=True)
class PartSize:
    """How large a part is.

    Attributes:
        parameters: of all of it.
        blocks: how many it has.
        block: parameters of the largest one.
        shapes: of the parameters that learn, with the number of each.
        learned: parameters that learn, of all of it; None: all.
        quantised: numbers of matrices in 4 or 8 bits, which are no parameters.
        quantised_bytes: of their codes and scales.
        quantised_largest: numbers of the largest of them.
    """

    parameters: int
    blocks: int
    block: int
    shapes: tuple[tuple[Shape, int], ...] = ()
    learned: int | None = None
    quantised: int = 0
    quantised_bytes: int = 0
    quantised_largest: int = 0

    @property
    def share(self) -> float:
        """Of the parameters that learn."""
        return 1.0 if self.learned is None else self.learned / self.parameters

    @property
    def at_once(self) -> int:
        """Parameters of two blocks and of what is in no block."""
        return self.parameters - self.block * max(self.blocks - 2, 0)


@lru_cache(maxsize=8192)
def size_of(model: ModelConfig, part: Part, lora: LoRAConfig = NO_LORA) -> PartSize:
    """The size of a part of a model, perhaps with adapters; nothing is allocated."""
    built = Transformer(model, Mesh.single(), part)
    if lora.rank or lora.form:
        adapt(built, lora, torch.float32)
    learned = sum(p.numel() for p in built.parameters() if p.requires_grad)
    blocks = [sum(p.numel() for p in block.parameters()) for block in built.blocks()]
    count, shapes = sum(p.numel() for p in built.parameters()), shapes_of(built)
    held = quantised_of([built]).values()
    numbers = [matrix.shape.numel() for matrix in held]
    size = sum(tensor.nbytes for matrix in held for tensor in matrix.buffers())
    kept = sum(numbers), size, max(numbers, default=0)
    return PartSize(count, len(blocks), max(blocks), tuple(shapes.items()), learned, *kept)


def optimizer_bytes(size: PartSize, optimizer: OptimizerConfig, shards: int) -> float:
    """Bytes of the optimizer's state of a part, on one of the processes that share it.

    Means of rows and columns are counted whole: those along a dimension that is cut are there on
    every process.
    """
    total = 0.0
    for shape, count in size.shapes:
        cut, means = state_numbers(shape, optimizer)
        total += 4.0 * count * (cut / shards + means)
    return total


def _part_memory(work: Work, parallel: ParallelConfig, part: Part) -> PartMemory:
    size = size_of(work.model, part, work.lora)
    held = 4.0 * size.share + work.width * (
        1.0 - size.share
    )  # of frozen ones what is computed with
    states = held * size.parameters / (parallel.tp * parallel.shard)
    states *= 2 if work.train.average else 1
    states += size.quantised_bytes / parallel.tp  # on each process of shard
    states += optimizer_bytes(size, work.optimizer, parallel.tp * parallel.shard)
    kept, block = _activations(work, parallel, part)
    gradients, gathered, moving = sharding_bytes(work, parallel, size)
    working = block + moving + work.width * size.quantised_largest / parallel.tp
    if part.ends:
        waiting, chunk = _head_bytes(work, parallel)
        is_late = parallel.schedule == "gpipe" and parallel.pp > 1
        kept += waiting if is_late else 0.0
        working = max(working, chunk + (0.0 if is_late else waiting))
    sizes = (states, gradients, gathered, kept, working)
    count = size.parameters + size.quantised
    return PartMemory(size.blocks, count, *(bytes_ / GIB for bytes_ in sizes))


@dataclass(frozen=True)
class BaseMemory:
    """What of a model's memory is its frozen weights', on a process of a pipeline rank.

    Attributes:
        parameters: over all processes of the rank.
        states: GiB that are held.
        gathered: GiB that FSDP2 gathers for compute and keeps.
    """

    parameters: int
    states: float
    gathered: float


def base_memory(work: Work, parallel: ParallelConfig) -> list[BaseMemory]:
    """The frozen weights of a model with adapters, in :func:`estimate` of it; a value a rank."""
    tp, shard = parallel.tp, parallel.shard
    ranks: list[list[BaseMemory]] = [[] for _ in range(parallel.pp)]
    for number, part in enumerate(parts_in(work.model, parallel)):
        size = size_of(work.model, part, work.lora)
        frozen = size.parameters - (size.learned or 0)
        states = work.width * frozen / (tp * shard) + size.quantised_bytes / tp
        _, whole, _ = sharding_bytes(work, parallel, size)
        gathered = whole * (1.0 - size.share) if shard > 1 else 0.0
        one = BaseMemory(frozen + size.quantised, states / GIB, gathered / GIB)
        ranks[number % parallel.pp].append(one)
    return [
        BaseMemory(
            sum(one.parameters for one in held),
            sum(one.states for one in held),
            sum(one.gathered for one in held),
        )
        for held in ranks
    ]


def sharding_bytes(
    work: Work, parallel: ParallelConfig, size: PartSize
) -> tuple[float, float, float]:
    """Bytes of gradients, of gathered parameters that stay, and of both on their way.

    Gradients are reduced in the step's last micro-batch: until then all of them accumulate in fp32,
    and those of two blocks are just being computed. With one micro-batch, or where each reduces its
    own, those of two blocks and of what is in no block wait for their reduction, and one block's is
    under way in fp32. Parameters that are dropped after each pass are there for two blocks and for
    what is in no block. Of a model with adapters only these have gradients.
    """
    width, tp = work.width, parallel.tp
    shards = 4.0 * size.share * size.parameters / (tp * parallel.shard)
    if data_parallel(parallel) == 1 and work.train.precision == "fp32":
        return shards, 0.0, 0.0
    is_resharded = parallel.reshard_after_forward and parallel.pp == 1
    share = size.share if parallel.shard == 1 else 1.0  # of frozen ones nothing is gathered then
    gathered = share * width * (size.at_once if is_resharded else size.parameters)
    if work.micro_batches(parallel) > 1 and parallel.reduce_gradients == "once":
        moving = 2.0 * width * size.block * size.share if width < 4 else 0.0
        return 4.0 * size.share * size.parameters / tp, gathered / tp, moving / tp
    moving = (width * size.at_once + 4.0 * size.block) * size.share
    return shards, gathered / tp, moving / tp


def _sent(work: Work, parallel: ParallelConfig, parts: Sequence[Part]) -> float:
    """Bytes of gradients on their way under the interleaved schedule; the others wait for each."""
    if parallel.schedule != "interleaved":
        return 0.0
    rows = work.train.micro_batch_size * (work.sequence_length + work.encoder_length)
    across = parallel.tp if parallel.sequence_parallel else 1
    one = work.width * rows * work.model.hidden_size / across
    senders = sum(part.index > 0 for part in parts)
    return senders * one * min(parallel.pp + 1, work.micro_batches(parallel))


def _most_under_way(
    kept: Sequence[float], parallel: ParallelConfig, rank: int, count: int
) -> float:
    """The most that the micro-batches under way keep at once in a pipeline process.

    Args:
        kept: of one micro-batch in each chunk of the process.
        parallel: the layout.
        rank: of the process along the pipeline.
        count: micro-batches of a step.

    The interleaved schedule runs as many micro-batches as there are processes through a chunk
    before the next one: the first passes are forward only, then each is followed by a backward one.

    Source: Narayanan et al. 2021, arXiv:2104.04473, figure 4.
    """
    pp, chunks = parallel.pp, len(kept)
    if pp == 1:
        return kept[0]
    if parallel.schedule != "interleaved":
        return kept[0] * (count if parallel.schedule == "gpipe" else min(pp - rank, count))
    turn = count // max(count // pp, 1)
    warm = 2 * (pp - rank - 1) + (chunks - 1) * turn + 1
    passes = min(count * chunks, warm + 2 * chunks * turn)
    most = now = 0.0
    for number in range(passes):
        now += kept[number // turn % chunks]
        most = max(most, now)
        if number + 1 >= warm:
            now -= kept[chunks - 1 - (number + 1 - warm) // turn % chunks]
    return most


def _activations(work: Work, parallel: ParallelConfig, part: Part) -> tuple[float, float]:
    """Bytes that a micro-batch keeps in a part, and what a working block has beside them."""
    model, width, tp = work.model, work.width, parallel.tp
    encoder, decoder = part.encoder[1] - part.encoder[0], part.decoder[1] - part.decoder[0]
    micro = work.train.micro_batch_size
    across = tp if parallel.sequence_parallel else 1
    stacks = [
        (encoder, micro * work.encoder_length, block_bytes(model, parallel, width, False)),
        (decoder, micro * work.sequence_length, block_bytes(model, parallel, width, True)),
    ]
    stacks = [(blocks, rows, block) for blocks, rows, block in stacks if blocks]
    kept = sum(blocks * rows * block.kept(parallel, blocks) for blocks, rows, block in stacks)
    if part.decoder[1] and model.is_encoder_decoder:
        keys = 2 * model.head_dim * model.kv_heads / tp
        kept += decoder * micro * work.encoder_length * width * keys
        kept += micro * work.encoder_length * width * model.hidden_size / across
    if parallel.pp > 1 and not part.ends:  # what is sent stays until its gradient is there
        kept += stacks[-1][1] * width * model.hidden_size / across
    working = max(rows * block.working(parallel) for _, rows, block in stacks)
    return kept, working


def _head_bytes(work: Work, parallel: ParallelConfig) -> tuple[float, float]:
    """Of the head: its gradients, made in the forward pass, and what a chunk of logits takes."""
    model, width, tp = work.model, work.width, parallel.tp
    rows = work.train.micro_batch_size * work.sequence_length
    across = tp if parallel.sequence_parallel else 1
    norm = 2.0 * width * rows * model.hidden_size / across
    if model.head != "lm":
        return norm, 0.0
    weight = 4.0 * model.vocab_size * model.embedding_width / tp
    logits = rows * model.vocab_size / tp
    is_plain = model.logit_scale == 1.0 and not model.logit_cap
    if width == 4:
        chunk, narrow = 4.0 * min(logits, CHUNK_ELEMENTS), 0.0
    elif is_plain and (rows <= 2 * model.embedding_width or logits <= GPU_CHUNK_ELEMENTS):
        chunk, narrow, weight = 2.0 * logits, 0.0, weight / 2  # in one chunk there is no fp32 sum
    else:  # half precision is a GPU's; scaled or capped logits are fp32 beside the product's
        logits = min(logits, GPU_CHUNK_ELEMENTS)
        chunk, narrow = (2.0 if is_plain else 4.0) * logits, 0.0 if is_plain else 2.0 * logits
    slope = chunk if model.logit_cap else 0.0
    return norm + 4.0 * rows * model.embedding_width + weight, chunk + slope + narrow


@dataclass(frozen=True)
class BlockBytes:
    """Bytes of activations a row of a block.

    Attributes:
        whole: without recompute.
        products: what selective recompute keeps beside the input.
        entry: the input of the block.
        gradient: of the largest sub-layer's activations.
    """

    whole: float
    products: float
    entry: float
    gradient: float

    def kept(self, parallel: ParallelConfig, blocks: int) -> float:
        """Bytes that stay until the backward pass, averaged over blocks."""
        kinds = {"none": self.whole, "selective": self.products + self.entry, "full": self.entry}
        share = 1.0
        if parallel.recompute_blocks:
            share = min(parallel.recompute_blocks, blocks) / blocks
        return share * kinds[parallel.recompute] + (1 - share) * self.whole

    def working(self, parallel: ParallelConfig) -> float:
        """Bytes that a block has beside what is kept, while it runs backward."""
        kinds = {"none": self.whole, "selective": self.products + self.entry, "full": self.entry}
        return self.whole - kinds[parallel.recompute] + self.gradient


def block_bytes(
    model: ModelConfig, parallel: ParallelConfig, width: int, is_decoder: bool
) -> BlockBytes:
    """What a block of a stack keeps a row, in numbers of ``width`` bytes.

    A norm keeps its input and the matrices behind it its output: 2 D. Attention keeps its queries,
    keys, values and results. A feed-forward layer keeps the result of each product (but ReLU
    without a gate) and what enters the last matrix. Selective recompute keeps
    what each sub-layer reads and the results of its products but the last one.
    """
    tp, size = parallel.tp, model.hidden_size
    across = tp if parallel.sequence_parallel else 1
    has_cross = is_decoder and model.is_encoder_decoder
    out = model.head_dim * model.num_heads
    heads = out + 2 * model.head_dim * model.kv_heads
    norms = {"no": 3 if has_cross else 2, "one_norm": 1, "two_norms": 1.5}[model.parallel_block]
    if model.norm_position == "both":  # the norm behind a sub-layer keeps its input alone
        norms *= 1.5
    inner = model.ffn_size * (3 if model.gated else 2 - (model.activation == "relu"))
    made = heads + out + model.ffn_size * (2 if model.gated else 1)
    split = heads + out + inner
    if has_cross:
        split, made = split + 2 * out, made + 2 * out
    if model.query_key_norm:  # what it gives, beside what it reads
        split += model.head_dim * (model.num_heads + model.kv_heads)
    return BlockBytes(
        whole=width * (2 * norms * size / across + split / tp),
        products=width * (_between(model, 3 if has_cross else 2, across) + made / tp),
        entry=width * size / across,
        gradient=width * (2 * size / across + max(inner, heads + 2 * out) / tp),
    )


def _between(model: ModelConfig, sublayers: int, across: int) -> float:
    """Numbers a row that sub-layers give and read, where each makes its own activations again.

    A norm in front adds the stream and what the sub-layer before gave: both stay, but the block's
    input. A norm behind keeps what it reads. Of two side by side the first's result stays, of all
    rows.
    """
    size = float(model.hidden_size)
    if model.parallel_block != "no":
        return size
    kinds = {"pre": 2 * sublayers - 3, "both": 3 * sublayers - 3, "post": 2 * sublayers - 1}
    return kinds[model.norm_position] * size / across
