"""What a training step computes and how its engine runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megalite.distributed.mesh import ParallelConfig
from megalite.engine.recompute import recomputed_blocks
from megalite.models.config import ModelConfig
from megalite.models.part import Part
from megalite.plan.memory import Work, data_parallel, largest_process, parts_in, size_of
from megalite.plan.rows import Pairs, Rows
from megalite.training.metrics.flops import Operations


@dataclass(frozen=True)
class Engine:
    """What engines do each their own way; the defaults are this one's.

    Attributes:
        fused_attention: scores are not written to memory, and pairs that a mask forbids cost
            nothing.
        sharded: what data parallelism splits: parameters (gathered, gradients reduced, behind the
            computing), the optimizer's state (behind it nothing) or nothing.
        gradient_bytes: of a gradient as it is reduced.
        reduces_each: whether each micro-batch reduces its gradients, or the last one.
        cuts_sends: whether a pipeline's process sends its share of the rows over tp alone.
        hides_tp: whether the collectives of the backward pass run behind products.
        launches_ahead: whether a process launches kernels while its device is at earlier ones, or
            waits for each (``CUDA_LAUNCH_BLOCKING=1``).
    """

    fused_attention: bool = True
    sharded: Literal["parameters", "optimizer", "nothing"] = "parameters"
    gradient_bytes: float = 4.0
    reduces_each: bool = False
    cuts_sends: bool = False
    hides_tp: bool = True
    launches_ahead: bool = True


@dataclass(frozen=True)
class Job:
    """A training step.

    Attributes:
        work: model, batch sizes and lengths.
        parallel: the layout.
        engine: how it is run.
        seen: what the rows of a sequence see; None: those in front of them, and all of an encoder.
        cut: the parts of the model where another engine cuts it; None: this engine's.
    """

    work: Work
    parallel: ParallelConfig
    engine: Engine = Engine()
    seen: Rows | None = None
    cut: tuple[Part, ...] | None = None

    @property
    def model(self) -> ModelConfig:
        """Its shape."""
        return self.work.model

    @cached_property
    def parts(self) -> Sequence[Part]:
        """The parts of the model, in order."""
        return self.cut or parts_in(self.work.model, self.parallel)

    @property
    def micro_batches(self) -> int:
        """Of a step of a data-parallel rank."""
        return self.work.micro_batches(self.parallel)

    @property
    def rows(self) -> int:
        """Decoder rows of a micro-batch."""
        return self.work.train.micro_batch_size * self.work.sequence_length

    @property
    def tokens(self) -> int:
        """Decoder rows of a step."""
        return self.work.train.global_batch_size * self.work.sequence_length

    @property
    def devices(self) -> int:
        """Processes."""
        return self.parallel.pp * self.parallel.tp * data_parallel(self.parallel)

    @cached_property
    def largest(self) -> int:
        """Parameters of the pipeline process with most, over its tp."""
        return largest_process(self.model, tuple(self.parts), self.parallel.pp)

    @cached_property
    def learned(self) -> int:
        """Parameters that learn, of the pipeline process with most, over its tp."""
        if not self.work.lora.rank:
            return self.largest
        sizes = [size_of(self.model, part, self.work.lora).learned or 0 for part in self.parts]
        return max(sum(sizes[rank :: self.parallel.pp]) for rank in range(self.parallel.pp))

    @property
    def rows_seen(self) -> Rows:
        """What the rows of a sequence see."""
        return self.seen or Rows.plain(self.work.sequence_length, self.work.encoder_length)

    @cached_property
    def pairs(self) -> Pairs:
        """Keys that a row sees, the mean over rows and layers."""
        return self.rows_seen.pairs(self.model)

    @cached_property
    def operations(self) -> Operations:
        """Floating-point operations of a step, counted as a run's metrics count them."""
        work, samples = self.work, self.work.train.global_batch_size
        lengths = work.sequence_length, work.encoder_length
        recomputed = recomputed_blocks(work.model, self.parallel)
        one = self.rows_seen.operations(work.model, lengths, recomputed)
        return Operations(samples * one.model, samples * one.hardware)
