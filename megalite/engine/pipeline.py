"""A model cut into pipeline parts, run by PyTorch's own schedules.

Each process reads the micro-batches itself: what travels is hidden states and, in an
encoder-decoder, the encoder's rows with them. A parameter that several parts hold (a tied
embedding, T5's bias table) is one parameter: its gradients are summed, and one process counts it.

Source: Huang et al. 2018, arXiv:1811.06965; Narayanan et al. 2021, arXiv:2104.04473.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from megalite.distributed.broadcast import share_from_last, share_scalars_from_last
from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import all_reduce_sum
from megalite.engine.bubble import BusyClock, bubble_in_theory
from megalite.engine.data_parallel import COMPUTE_DTYPES, DataParallel
from megalite.engine.flows import Flows, flows, same_shape, unpadded
from megalite.engine.lora import NO_LORA, LoRAConfig
from megalite.engine.model import Item, LossSums, Parts, Result, Task
from megalite.engine.passes import Passes, Sent
from megalite.layers.shards import gradient_of, local_part
from megalite.models.batch import Batch
from megalite.models.context import KeyValueCache
from megalite.models.outputs import Output, Scale
from megalite.models.transformer import Transformer
from megalite.torch_private import StagePasses, shaped

SCHEDULES = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "interleaved": ScheduleInterleaved1F1B,
}
Flow = tuple[Tensor, ...]
Run = Callable[[Transformer, int, Flow], Any]


class _Stage(StagePasses, PipelineStage):
    """PyTorch's stage of a part, whose input beside the flow is the number of a micro-batch."""

    run: Run
    clock: BusyClock

    def run_forward(self, *flow: Tensor, number: Tensor) -> Any:
        """Run the part on micro-batch ``number``."""
        with self.clock.busy():
            part = self.submod
            assert isinstance(part, Transformer)
            return self.run(part, int(number), flow)

    def run_backward(self, *arguments: Any, **options: Any) -> Any:
        """Run the part's backward pass on a micro-batch."""
        with self.clock.busy():
            return super().run_backward(*arguments, **options)


class Pipeline(Parts):
    """The parts of a model that this process holds; see :class:`megalite.engine.model.Model`.

    Part number i of process r is part ``i * pp + r`` of the model.

    Attributes:
        last_passes: those that :meth:`passes` gave last; they tell their bubble.
    """

    def __init__(
        self,
        parts: Sequence[Transformer],
        mesh: Mesh,
        how: DataParallel,
        schedule: str,
        lora: LoRAConfig = NO_LORA,
    ) -> None:
        """Hold parts and learn which parameters other processes hold too.

        Comm: all-gather of names over pp.

        Args:
            parts: of this process, in order.
            mesh: the mesh.
            how: they were sharded.
            schedule: a key of ``SCHEDULES``.
            lora: their adapters.
        """
        super().__init__(parts, mesh, how, lora)
        self.schedule = schedule
        self._holders = self._find_holders()
        self._names: dict[Hashable, tuple[str, ...]] = {}  # of a kind of task's sums
        self._clock: BusyClock | None = None  # of the step before, on a GPU
        self.last_passes: Passes | None = None

    def _find_holders(self) -> dict[str, tuple[int, ...]]:
        """The pp ranks that hold each parameter held by several parts."""
        own = [name for part in self.parts for name, _ in part.named_parameters()]
        gathered: list[list[str]] = [[]] * self.mesh.pp.size
        dist.all_gather_object(gathered, own, group=self.mesh.pp.group)
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, names in enumerate(gathered):
            for name in names:
                holders[name].append(rank)
        return {name: tuple(ranks) for name, ranks in holders.items() if len(ranks) > 1}

    @property
    def is_last(self) -> bool:
        """Whether this process has the head."""
        return self.parts[-1].part.ends

    def owned_names(self) -> set[str]:
        """Parameters whose first holder is this process."""
        rank = self.mesh.pp.rank
        return {name for name in self.copies() if self._holders.get(name, (rank,))[0] == rank}

    @torch.no_grad()
    def sum_shared_gradients(self) -> None:
        """Sum the gradients of parameters held by several parts, after a step's last backward.

        Comm: each to the first pp rank that holds it, and their sum back.
        """
        for name, parameters in sorted(self.copies().items()):
            if name not in self._holders or not parameters[0].requires_grad:
                continue
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [local_part(gradient_of(p)) for p in parameters]
            total = sum(gradients[1:], start=gradients[0])
            ranks = tuple(sorted(set(self._holders[name])))
            if len(ranks) > 1:
                total = self._sum_over(ranks, total.contiguous())
            for gradient in gradients:
                gradient.copy_(total)

    def _sum_over(self, ranks: tuple[int, ...], own: Tensor) -> Tensor:
        """The sum over some pp ranks, in their order, so that it is the same on each.

        Comm: point to point, which needs no group for each set of holders.
        """
        group, me = self.mesh.pp.group, self.mesh.pp.rank
        first, *others = (self.mesh.pp.global_rank(rank) for rank in ranks)
        if me != ranks[0]:
            dist.send(own, first, group)
            dist.recv(own, first, group)
            return own
        part = torch.empty_like(own)
        for other in others:
            dist.recv(part, other, group)
            own += part
        for other in others:
            dist.send(own, other, group)
        return own

    def forward_backward(
        self,
        items: Sequence[Item],
        task: Task,
        *,
        dropout_seed: int | None = None,
        loss_scale: Scale = 1.0,
    ) -> dict[str, Tensor]:
        """See :class:`megalite.engine.model.Model`."""
        sums = LossSums(task, loss_scale, self.mesh.device)
        padded = same_shape(items)

        def run(part: Transformer, number: int, flow: Flow) -> Any:
            self.under_way = number + 1, len(items)
            batch, extra = items[number]
            output = task.output_for(extra)
            result = part(padded[number], output, *flow, dropout_seed=dropout_seed)
            if not part.part.ends:
                return result
            loss = sums.add(unpadded(result, batch.decoder.length), extra)
            return shaped(loss, (1,))  # schedules join it, and free no graph of a view

        idle = self._run_schedule(run, self._flows(padded[0], True), len(items))
        self.under_way = 0, 0
        self.sum_shared_gradients()
        metrics = self._shared(dict(sums.sums), _kind_of(task, items))
        return metrics | self._bubble(len(items), idle)

    def _shared(self, sums: dict[str, Tensor], kind: Hashable) -> dict[str, Tensor]:
        """The last process's sums on all of them. Comm: a broadcast; of a new kind, names too."""
        known = self._names.get(kind)
        values, names = share_scalars_from_last(sums, known, self.mesh.pp, self.mesh.device)
        if kind is not None:
            self._names[kind] = names
        return values

    def _flows(self, batch: Batch, needs_grad: bool) -> Flows:
        dtype = COMPUTE_DTYPES[self.how.precision]
        return flows(batch, self.mesh, self.config.hidden_size, dtype, needs_grad)

    def _run_schedule(self, run: Run, shapes: Flows, num_items: int) -> float:
        """Forward and backward of all micro-batches.

        Args:
            run: ``run(part, micro-batch number, flow)`` gives the next flow; the last part's gives
                the loss.
            shapes: of what travels.
            num_items: micro-batches.

        Returns:
            The share of the schedule's time in which this process computed nothing; on a GPU that
            of the step before, for which the host needn't wait.
        """
        clock = BusyClock(self.mesh.device)
        stages = [self._stage(part, run, shapes, clock) for part in self.parts]
        kind: Any = SCHEDULES[self.schedule]
        held = stages if self.schedule == "interleaved" else stages[0]
        schedule = kind(held, num_items, loss_fn=lambda loss, _: loss, scale_grads=False)
        numbers = torch.arange(num_items)
        target = {"target": numbers, "losses": []} if self.is_last else {}
        schedule.step(number=numbers, **target)
        for stage in stages:
            stage.finish_sends()
        clock.end()
        before, self._clock = self._clock, clock
        return (before if before is not None and clock.is_late else clock).idle_share()

    def _stage(self, module: Transformer, run: Run, shapes: Flows, clock: BusyClock) -> _Stage:
        stage = _Stage(
            module,
            module.part.index,
            module.part.count,
            self.mesh.device,
            input_args=shapes.into(module.part),
            output_args=shapes.out_of(module.part),
            group=self.mesh.pp.group,
        )
        stage.run, stage.clock = run, clock
        stage.send_by_itself(self.mesh.pp.size + 1 if self.schedule == "interleaved" else 0)
        return stage

    def _bubble(self, micro_batches: int, idle: float) -> dict[str, Tensor]:
        """The bubble, a mean over pp, beside its theory. Comm: all-reduce of a number over pp."""
        pp, ranks = self.mesh.pp, self.mesh.dp.size
        measured = all_reduce_sum(torch.full((), idle / pp.size, device=self.mesh.device), pp)
        theory = bubble_in_theory(pp.size, micro_batches, len(self.parts))
        return {
            "bubble": measured / ranks,
            "bubble_theory": torch.full_like(measured, theory / ranks),
        }

    @torch.no_grad()
    def evaluate(
        self, batches: Sequence[Batch], output: Output, cache: KeyValueCache | None = None
    ) -> list[Any]:
        """See :class:`megalite.engine.model.Model`.

        A process starts on the next micro-batch while later parts work on this one.
        """
        results: list[Result | None] = []
        pending: Sent = []
        for batch in batches:
            result, sent = self._run_parts(batch, output, cache)
            results.append(result)
            pending += sent
        for work, _ in pending:
            if work is not None:
                work.wait()
        return [share_from_last(result, self.mesh.pp, self.mesh.device) for result in results]

    def _run_parts(
        self,
        batch: Batch,
        output: Output,
        cache: KeyValueCache | None,
        clock: BusyClock | None = None,
    ) -> tuple[Result | None, Sent]:
        """This process's parts on a batch: the last part's result, and what was sent on."""
        shapes, result, sent = self._flows(batch, False), None, Sent()
        for part in self.parts:
            flow = self._receive(part, shapes)
            with nullcontext() if clock is None else clock.busy():
                result = part(batch, output, *flow, cache=cache)
            if not part.part.ends:
                sent += self._send(part, result)
                result = None
        return result, sent

    @property
    def groups(self) -> int:
        """Passes under way that keep all parts at work; parts of a process wait for each other."""
        return self.mesh.pp.size if len(self.parts) == 1 else 1

    def passes(self) -> Passes:
        """Passes over prompts and next tokens, several of which may be under way."""
        dtype = COMPUTE_DTYPES[self.how.precision]

        def form(batch: Batch) -> Tensor:
            shape = len(batch.decoder.tokens), 1, self.config.vocab_size
            return torch.empty(shape, dtype=dtype, device="meta")

        self.last_passes = Passes(self._run_parts, self.mesh, form)
        return self.last_passes

    def _receive(self, module: Transformer, shapes: Flows) -> Flow:
        part, pp = module.part, self.mesh.pp
        if part.index == 0:
            return ()
        tensors = tuple(
            torch.empty(meta.shape, dtype=meta.dtype, device=self.mesh.device)
            for meta in shapes.into(part)
        )
        for tensor in tensors:
            if tensor.numel() == 0:  # of a decoder that reads no row
                continue
            dist.recv(tensor, src=pp.global_rank((part.index - 1) % pp.size), group=pp.group)
        return tensors

    def _send(self, module: Transformer, flow: Flow) -> Sent:
        pp = self.mesh.pp
        target = pp.global_rank((module.part.index + 1) % pp.size)
        tensors = [tensor.contiguous() for tensor in flow if tensor.numel()]
        return [(dist.isend(t, dst=target, group=pp.group), t) for t in tensors]


def _kind_of(task: Task, items: Sequence[Item]) -> Hashable:
    """What tells which metrics a task has: all processes know it alike; None: nothing does."""
    loss: Any = task.loss
    code = getattr(loss, "__code__", type(loss) if is_dataclass(loss) else None)
    return None if code is None else (code, frozenset(type(extra) for _, extra in items))
