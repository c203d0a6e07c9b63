"""A model cut into pipeline stages, run by PyTorch's own schedules.

Each process reads the micro-batches itself: what travels is hidden states and, in an
encoder-decoder, the encoder's rows with them. A parameter that several stages hold (a tied
embedding, T5's bias table) is one parameter: its gradients are summed, and one stage counts it.

Source: Huang et al. 2018, arXiv:1811.06965; Narayanan et al. 2021, arXiv:2104.04473.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from megalite.parallel.bubble import BusyClock
from megalite.parallel.gradients import local_part
from megalite.parallel.mesh import Mesh

SCHEDULES = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "interleaved": ScheduleInterleaved1F1B,
}
Run = Callable[..., Any]


class _Stage(PipelineStage):
    """A stage whose input beside the flow is the number of a micro-batch."""

    run: Run
    clock: BusyClock

    def forward_maybe_with_nosync(self, *flow: Tensor, number: Tensor) -> Any:
        """Run the stage's part on micro-batch ``number``."""
        with self.clock.busy():
            return self.run(self.submod, int(number), flow)

    def backward_maybe_with_nosync(self, *arguments: Any, **options: Any) -> Any:
        """Run the stage's backward pass on a micro-batch."""
        with self.clock.busy():
            return super().backward_maybe_with_nosync(*arguments, **options)


class Pipeline:
    """The stages of a model that this process holds.

    Attributes:
        stages: in order; stage i of process r is part ``i * pp + r`` of the model.
        mesh: the mesh.
        schedule: a key of ``SCHEDULES``.
        precision: of compute: fp32, bf16 or fp16.
    """

    def __init__(
        self, stages: list[nn.Module], mesh: Mesh, schedule: str, precision: str = "fp32"
    ) -> None:
        """Hold stages and learn which parameters other processes hold too.

        Comm: all-gather of names over pp.
        """
        self.stages, self.mesh, self.schedule = stages, mesh, schedule
        self.precision = precision
        self.config = stages[0].config
        self._holders = self._find_holders()

    def _find_holders(self) -> dict[str, tuple[int, ...]]:
        """The pp ranks that hold each parameter held by several."""
        own = [name for stage in self.stages for name, _ in stage.named_parameters()]
        gathered: list[list[str]] = [[]] * self.mesh.pp.size
        dist.all_gather_object(gathered, own, group=self.mesh.pp.group)
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, names in enumerate(gathered):
            for name in names:
                holders[name].append(rank)
        return {name: tuple(ranks) for name, ranks in holders.items() if len(ranks) > 1}

    def stages_here(self) -> list[nn.Module]:
        """The stages of this process."""
        return self.stages

    @property
    def is_last(self) -> bool:
        """Whether this process has the head."""
        return self.stages[-1].part.ends

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each name once; see :meth:`copy_duplicates` for a name in two stages of a process."""
        seen = set()
        for stage in self.stages:
            for name, parameter in stage.named_parameters():
                if name not in seen:
                    seen.add(name)
                    yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all stages, a name held twice given twice."""
        for stage in self.stages:
            yield from stage.parameters()

    def owned_names(self) -> set[str]:
        """Parameters that this process counts in global sums: it is their first holder."""
        rank = self.mesh.pp.rank
        return {
            name
            for name, _ in self.named_parameters()
            if name not in self._holders or self._holders[name][0] == rank
        }

    def _copies(self) -> dict[str, list[nn.Parameter]]:
        copies: dict[str, list[nn.Parameter]] = defaultdict(list)
        for stage in self.stages:
            for name, parameter in stage.named_parameters():
                copies[name].append(parameter)
        return copies

    @torch.no_grad()
    def copy_duplicates(self) -> None:
        """After a load: make the later copies of a name equal to its first."""
        for first, *others in self._copies().values():
            for other in others:
                local_part(other).copy_(local_part(first))

    @torch.no_grad()
    def sum_shared_gradients(self) -> None:
        """Sum the gradients of parameters held by several stages, after a step's last backward.

        Comm: each to the first pp rank that holds it, and their sum back.
        """
        for name, parameters in sorted(self._copies().items()):
            if name not in self._holders:
                continue
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            total = sum(local_part(p.grad) for p in parameters)
            ranks = tuple(sorted(set(self._holders[name])))
            if len(ranks) > 1:
                total = self._sum_over(ranks, total.contiguous())
            for parameter in parameters:
                local_part(parameter.grad).copy_(total)

    def _sum_over(self, ranks: tuple[int, ...], own: Tensor) -> Tensor:
        """The sum over some pp ranks, in their order, so that it is the same on each.

        Comm: point to point, which needs no group for each set of holders.
        """
        group, me = self.mesh.pp.group, self.mesh.pp.rank
        first, *others = (dist.get_global_rank(group, rank) for rank in ranks)
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

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for stage in self.stages:
            stage.zero_grad(set_to_none=True)

    def train_step(self, run: Run, flows: "Flows", num_items: int) -> float:
        """Forward and backward of all micro-batches.

        Args:
            run: ``run(stage module, micro-batch number, flow)`` gives the next flow; the last
                stage's gives the loss.
            flows: shapes of what travels.
            num_items: micro-batches.

        Returns:
            The share of the schedule's time in which this process computed nothing.
        """
        pp, count = self.mesh.pp, len(self.stages) * self.mesh.pp.size
        clock = BusyClock(self.mesh.device)
        stages = []
        for module in self.stages:
            index = module.part.index
            stage = _Stage(
                module,
                index,
                count,
                self.mesh.device,
                input_args=flows.into(module.part),
                output_args=flows.out_of(module.part),
                group=pp.group,
            )
            stage.run, stage.clock = run, clock
            stages.append(stage)
        kind = SCHEDULES[self.schedule]
        held = stages if self.schedule == "interleaved" else stages[0]
        schedule = kind(held, num_items, loss_fn=lambda loss, _: loss, scale_grads=False)
        numbers = torch.arange(num_items)
        target = {"target": numbers, "losses": []} if self.is_last else {}
        schedule.step(number=numbers, return_outputs=False, **target)
        idle = clock.idle_share()
        self.sum_shared_gradients()
        return idle

    @torch.no_grad()
    def forward(self, run: Run, flows: Sequence["Flows"]) -> list[Any]:
        """Run micro-batches forward only; the last process gets the outputs, others None.

        A stage starts on the next micro-batch while later stages work on this one.
        """
        outputs: list[Any] = []
        pending: list[Any] = []
        for number, flow in enumerate(flows):
            result = None
            for module in self.stages:
                result = run(module, number, self._receive(module, flow))
                if not module.part.ends:
                    pending += self._send(module, result)
                    result = None
            outputs.append(result)
        for work, _ in pending:
            work.wait()
        return outputs

    def _receive(self, module: nn.Module, flow: "Flows") -> tuple[Tensor, ...]:
        part = module.part
        if part.index == 0:
            return ()
        source = self._global_rank(part.index - 1)
        tensors = tuple(
            torch.empty(meta.shape, dtype=meta.dtype, device=self.mesh.device)
            for meta in flow.into(part)
        )
        for tensor in tensors:
            dist.recv(tensor, src=source, group=self.mesh.pp.group)
        return tensors

    def _send(self, module: nn.Module, flow: tuple[Tensor, ...]) -> list[Any]:
        target = self._global_rank(module.part.index + 1)
        tensors = [tensor.contiguous() for tensor in flow]
        return [(dist.isend(t, dst=target, group=self.mesh.pp.group), t) for t in tensors]

    def _global_rank(self, part: int) -> int:
        return dist.get_global_rank(self.mesh.pp.group, part % self.mesh.pp.size)


class Flows:
    """Shapes of what travels between the stages for one micro-batch."""

    def __init__(self, decoder: Tensor, encoder: Tensor | None) -> None:
        """Hold meta tensors [B, S', D] of decoder rows and, where they travel, encoder rows."""
        self._decoder, self._encoder = decoder, encoder

    def into(self, part: Any) -> tuple[Tensor, ...]:
        """What comes into a part."""
        if part.index == 0:
            return ()
        encoder = () if self._encoder is None else (self._encoder,)
        return encoder + ((self._decoder,) if part.decoder[0] > 0 else ())

    def out_of(self, part: Any) -> tuple[Tensor, ...]:
        """What goes out of a part; the last one's is the loss."""
        if part.ends:
            return (torch.empty((), device="meta"),)
        encoder = () if self._encoder is None else (self._encoder,)
        return encoder + ((self._decoder,) if part.decoder[1] > 0 else ())
