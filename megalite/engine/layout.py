"""Which layouts fit a model, a batch and a number of processes; others are refused early."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megalite.distributed.mesh import ParallelConfig, factorisations
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig

_SEARCHED = 4  # times a size of a ramp, for one near it that fits


@dataclass(frozen=True)
class BatchSizes:
    """How many samples a step has, and how they are divided.

    Attributes:
        global_batch_size: samples of a step, over all processes.
        micro_batch_size: sequences of a forward pass of a data-parallel rank.
        updates: optimizer steps that share a step's samples (PPO's mini-batches).
        has_text: whether each of those learns as many samples of text beside its share (PPO-ptx).
        before: samples of earlier steps, while the batch grows.
        answers: sequences that a sample becomes (GRPO's answers to a prompt).
    """

    global_batch_size: int
    micro_batch_size: int = 1
    updates: int = 1
    has_text: bool = False
    before: tuple[int, ...] = ()
    answers: int = 1

    @property
    def sequences(self) -> int:
        """Sequences that a step learns."""
        return self.global_batch_size * self.answers

    @property
    def unit(self) -> int:
        """What a rank's samples of a step must be a multiple of to fill whole micro-batches."""
        if self.has_text:
            return self.micro_batch_size
        return self.micro_batch_size // math.gcd(self.micro_batch_size, self.answers)


@dataclass(frozen=True)
class Demand:
    """What a layout has to fit.

    Attributes:
        model: shape of the model.
        world_size: processes; 0: any number.
        batch: samples of a step; None: any number.
    """

    model: ModelConfig
    world_size: int = 0
    batch: BatchSizes | None = None


def check_layout(demand: Demand, parallel: ParallelConfig) -> None:
    """Refuse a layout that doesn't fit.

    Raises:
        ConfigError: it says which number to change, and the nearest layouts that fit.
    """
    fault = next(faults(demand, parallel), None)
    if fault is None:
        return
    fits = nearest(demand, parallel) if demand.world_size else []
    offer = f"; layouts that fit: {', or '.join(fits)}" if fits else ""
    raise ConfigError(fault + offer)


def faults(demand: Demand, parallel: ParallelConfig) -> Iterator[str]:
    """What is wrong with a layout, one sentence each, without those that fit."""
    if demand.world_size and (text := parallel.misfit(demand.world_size)):
        yield text
        return
    yield from _model_faults(demand.model, parallel)
    if demand.world_size and demand.batch is not None:
        judge = _ramp_faults if demand.batch.before else _batch_faults
        yield from judge(demand.batch, demand.world_size, parallel)


def _model_faults(model: ModelConfig, parallel: ParallelConfig) -> Iterator[str]:
    blocks, chunks = model.num_encoder_layers + model.num_layers, parallel.chunks_per_rank
    if (chunks > 1) != (parallel.schedule == "interleaved"):
        yield (
            f"--parallel.chunks_per_rank {chunks}: must be at least 2 with the interleaved "
            f"schedule and 1 with others; schedule is {parallel.schedule}"
        )
    if parallel.reduce_gradients == "each" and parallel.pp > 1:
        yield (
            f"--parallel.reduce_gradients each: needs pp 1, came {parallel.pp}: a pipeline reduces "
            "once: use once"
        )
    parts = parallel.pp * chunks
    if parallel.pp > 1 and parts > blocks:
        yield (
            f"--parallel.pp {parallel.pp}: {parts} stages need at least {parts} blocks; this "
            f"model has {blocks}: use {_or(_up_to(blocks // chunks))}"
        )
    elif parallel.encoder_stages:
        yield from _encoder_faults(model, parallel, parts)
    if parallel.tp > model.num_heads:
        yield (
            f"--parallel.tp {parallel.tp}: must be at most num_heads, {model.num_heads}: "
            f"use {_or(_up_to(model.num_heads))}"
        )


def _encoder_faults(model: ModelConfig, parallel: ParallelConfig, parts: int) -> Iterator[str]:
    """What is wrong with the share of ``parts`` pipeline stages that the encoder is to have."""
    where, encoder = (
        f"--parallel.encoder_stages {parallel.encoder_stages}",
        model.num_encoder_layers,
    )
    least, most = max(1, parts - model.num_layers), min(parts - 1, encoder)
    if not model.is_encoder_decoder or parallel.pp == 1:
        missing = "has no encoder" if not model.is_encoder_decoder else "is not cut: pp is 1"
        yield f"{where}: this model {missing}: use 0"
    elif not least <= parallel.encoder_stages <= most:
        yield (
            f"{where}: each of {parts} stages needs a block of its stack, {encoder} of the encoder "
            f"and {model.num_layers} of the decoder: use 0 or {_or(list(range(least, most + 1)))}"
        )


def _ramp_faults(batch: BatchSizes, world_size: int, parallel: ParallelConfig) -> Iterator[str]:
    """What is wrong with the sizes of a growing batch, all of them in one sentence."""

    def fault(size: int) -> str:
        one = replace(batch, global_batch_size=size, before=())
        return next(_batch_faults(one, world_size, parallel), "")

    last = batch.global_batch_size
    unfit = [size for size in dict.fromkeys((*batch.before, last)) if fault(size)]
    if not unfit or unfit == [last]:
        yield from _batch_faults(batch, world_size, parallel)
        return
    _, replicate, shard, _ = parallel.sizes(world_size)
    unit = batch.unit * replicate * shard
    fits = [size for size in range(unit, _SEARCHED * max(unfit), unit) if not fault(size)]
    offers = []
    for size in unfit:
        lower, higher = [n for n in fits if n < size][-1:], [n for n in fits if n > size][:1]
        offers.append(f"{size} ({_or(lower + higher) or 'none near it'})")
    yield (
        f"--train.batch_ramp: {len(unfit)} of its sizes don't fit micro_batch_size "
        f"{batch.micro_batch_size} x {replicate * shard} data-parallel processes and pp "
        f"{parallel.pp}; each, and in brackets the nearest that do: {', '.join(offers)}"
    )


def _batch_faults(batch: BatchSizes, world_size: int, parallel: ParallelConfig) -> Iterator[str]:
    pp, replicate, shard, _ = parallel.sizes(world_size)
    size, ranks = batch.global_batch_size, replicate * shard
    unit = batch.unit * ranks
    if size % unit:
        low = size // unit * unit
        of = f"micro_batch_size {batch.micro_batch_size}"
        if batch.answers > 1:
            of = (
                f"{batch.unit}, whose {batch.answers} answers each fill whole micro-batches of "
                f"{batch.micro_batch_size},"
            )
        yield (
            f"--train.global_batch_size {size}: must be a multiple of {of} x {ranks} "
            f"data-parallel processes = {unit}: use {_or([low, low + unit] if low else [unit])}"
        )
        return
    if pp > 1:
        yield from _schedule_faults(batch, ranks, parallel)


def _schedule_faults(batch: BatchSizes, ranks: int, parallel: ParallelConfig) -> Iterator[str]:
    """What a pipeline's schedule can't do with its micro-batches on so many ranks."""
    pp, size, updates = parallel.pp, batch.global_batch_size, batch.updates
    unit = batch.micro_batch_size * ranks  # sequences
    count = batch.sequences // (unit * updates)
    where = (
        f"--train.global_batch_size {size}: gives {batch.sequences / (unit * updates):g} "
        "micro-batches"
    )

    def samples(micro_batches: int) -> int:
        """The least number of samples that is so many micro-batches or more."""
        least = -(-micro_batches * unit * updates // batch.answers)
        step = batch.unit * ranks
        return -(-least // step) * step

    if batch.sequences % (unit * updates):
        yield (
            f"{where} to each of update.mini_batches {updates}; pipeline stages need a whole "
            f"number: use {samples(count + 1)}"
        )
    elif parallel.schedule == "1f1b" and count < pp:
        yield (
            f"{where} a step; {pp} pipeline stages need {pp}: use {samples(pp)}, a smaller "
            "micro_batch_size or --parallel.schedule gpipe"
        )
    elif parallel.schedule == "interleaved":
        yield from _interleaving_faults(batch, unit, pp)


def _interleaving_faults(batch: BatchSizes, unit: int, pp: int) -> Iterator[str]:
    """What the interleaved schedule can't do with an update's micro-batches, with text or without.

    It needs a multiple of their number divided by that of pipeline processes, rounded down.
    """
    updates, size = batch.updates, batch.global_batch_size
    own = batch.sequences // (unit * updates)
    counts = {"": own}
    if batch.has_text:
        counts[", with text beside them,"] = own + size // unit
    for beside, count in counts.items():
        if count % max(1, count // pp):
            low = own // pp * pp
            fits = [-(-n * unit * updates // batch.answers) for n in (low, low + pp) if n]
            yield (
                f"--train.global_batch_size {size}: gives {count} micro-batches{beside} a step; "
                f"the interleaved schedule needs a multiple of {count // pp}: use {_or(fits)}"
            )
            return


def nearest(demand: Demand, parallel: ParallelConfig, count: int = 3) -> list[str]:
    """The layouts of as many processes that fit and differ least from ``parallel``."""
    wanted = (parallel.pp, max(parallel.replicate, 1), parallel.shard, parallel.tp)

    def distance(sizes: tuple[int, ...]) -> float:
        return sum(abs(math.log2(a / b)) for a, b in zip(sizes, wanted, strict=True))

    fits = []
    for sizes in sorted(factorisations(demand.world_size), key=distance):
        names = ("pp", "replicate", "shard", "tp")
        other = parallel.model_copy(update=dict(zip(names, sizes, strict=True)))
        if next(faults(demand, other), None) is None:
            fits.append(" ".join(f"{n} {s}" for n, s in zip(names, sizes, strict=True)))
        if len(fits) == count:
            break
    return fits


def _up_to(most: int) -> list[int]:
    return [n for n in (most, most - 1, most - 2) if n > 0] or [1]


def _or(numbers: list[int]) -> str:
    texts = [str(number) for number in numbers]
    if len(texts) < 2:
        return "".join(texts)
    return ", ".join(texts[:-1]) + " or " + texts[-1]
