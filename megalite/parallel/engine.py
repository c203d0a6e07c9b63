"""Forward and backward of a step's micro-batches, whatever the layout."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.parallel.bubble import bubble_in_theory
from megalite.parallel.data_parallel import COMPUTE_DTYPES, set_gradient_sync
from megalite.parallel.pipeline import Flows, Pipeline

Item = tuple[Any, Any]  # (Batch, what the loss needs besides)


def _identity(result: Tensor, _extra: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return result, {}


@dataclass(frozen=True)
class Task:
    """What a step computes.

    Attributes:
        output: what the model gives, such as ``Loss(scale=1 / targets)``.
        loss: of the model's result and the item's extra: a scalar that adds up over micro-batches
            and ranks, and metrics that add up too.
    """

    output: Any
    loss: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]] = _identity


def forward_backward(
    model: Any,
    items: Sequence[Item],
    task: Task,
    *,
    dropout_seed: int | None = None,
    loss_scale: float = 1.0,
) -> dict[str, Tensor]:
    """Run a step's micro-batches and leave the gradients of the sum of their losses.

    Args:
        model: a Transformer, or a Pipeline.
        items: micro-batches of this data-parallel rank, the same on its tp and pp processes.
        task: output and loss.
        dropout_seed: of the step; None is no dropout.
        loss_scale: losses are multiplied by it for the backward pass (fp16).

    Returns:
        Sums over this rank's micro-batches of ``loss`` and the task's metrics, fp32 scalars, the
        same on all pp processes. A pipeline adds ``bubble`` and ``bubble_theory``, divided by the
        data-parallel ranks that they will be summed over.
    """
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=model.mesh.device))

    def loss_of(result: Any, extra: Any) -> Tensor:
        loss, metrics = task.loss(result, extra)
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums[name] + value.detach().float()
        return loss * loss_scale

    if isinstance(model, Pipeline):
        idle = _pipeline_step(model, items, task, dropout_seed, loss_of)
        return _from_last(model, dict(sums)) | _bubble(model, len(items), idle)
    for number, (batch, extra) in enumerate(items):
        set_gradient_sync(model, is_last=number == len(items) - 1)
        result = model(batch, task.output, dropout_seed=dropout_seed)
        loss_of(result, extra).backward()
    return dict(sums)


def _pipeline_step(
    pipeline: Pipeline, items: Sequence[Item], task: Task, dropout_seed: int | None, loss_of
) -> float:
    def run(module, number: int, flow: tuple[Tensor, ...]):
        result = module(padded[number][0], task.output, *flow, dropout_seed=dropout_seed)
        if not module.part.ends:
            return result
        batch, extra = items[number]
        return loss_of(_rows(result, batch.tokens.shape[1]), extra)

    padded = same_shape(items)
    return pipeline.train_step(run, flows(pipeline, padded[0][0], True), len(items))


def _rows(result: Any, length: int) -> Any:
    """A model's result, [B, S] tensors or a scalar, without the padding behind ``length`` rows."""
    if isinstance(result, tuple):
        return tuple(_rows(tensor, length) for tensor in result)
    return result[:, :length] if result.dim() > 1 else result


def _bubble(pipeline: Pipeline, micro_batches: int, idle: float) -> dict[str, Tensor]:
    """The bubble, a mean over pp, beside its theory. Comm: all-reduce of one number over pp."""
    pp, ranks = pipeline.mesh.pp, pipeline.mesh.dp.size
    measured = torch.tensor(idle / pp.size, device=pipeline.mesh.device)
    dist.all_reduce(measured, group=pp.group)
    theory = bubble_in_theory(pp.size, micro_batches, len(pipeline.stages))
    return {
        "bubble": measured / ranks,
        "bubble_theory": torch.full_like(measured, theory / ranks),
    }


def same_shape(items: Sequence[Item]) -> list[Item]:
    """Pad micro-batches to the longest: what travels between stages has one shape."""
    length = max(batch.tokens.shape[1] for batch, _ in items)
    encoders = [batch.encoder_tokens for batch, _ in items]
    encoder_length = max(0 if tokens is None else tokens.shape[1] for tokens in encoders)
    return [(batch.padded(length, encoder_length), extra) for batch, extra in items]


def flows(pipeline: Pipeline, batch: Any, needs_grad: bool) -> Flows:
    """Shapes of what travels between stages for a micro-batch."""
    mesh, width = pipeline.mesh, pipeline.config.hidden_size
    dtype = COMPUTE_DTYPES[pipeline.precision]

    def rows(tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if mesh.sequence_parallel:
            length = -(-length // mesh.tp.size)
        shape = tokens.shape[0], length, width
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=needs_grad)

    encoder = None if batch.encoder_tokens is None else rows(batch.encoder_tokens)
    return Flows(rows(batch.tokens), encoder)


def _from_last(pipeline: Pipeline, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every pp process the last one's sums. Comm: broadcast over pp."""
    group = pipeline.mesh.pp.group
    source = dist.get_global_rank(group, pipeline.mesh.pp.size - 1)
    names = [list(sums)]
    dist.broadcast_object_list(names, src=source, group=group)
    values = torch.zeros(len(names[0]), device=pipeline.mesh.device)
    if pipeline.is_last:
        values = torch.stack([sums[name] for name in names[0]])
    dist.broadcast(values, src=source, group=group)
    return dict(zip(names[0], values.unbind(), strict=True))


@torch.no_grad()
def evaluate(model: Any, batches: Sequence[Any], output: Any, *, cache: Any = None) -> list[Any]:
    """What the model gives for each micro-batch, without dropout, the same on all pp processes.

    Args:
        model: a Transformer, or a Pipeline.
        batches: micro-batches.
        output: what to give: a tensor or a tuple of tensors a batch.
        cache: for decoding (one batch).
    """
    if not isinstance(model, Pipeline):
        return [model(batch, output, cache=cache) for batch in batches]

    def run(module, number: int, flow: tuple[Tensor, ...]):
        return module(batches[number], output, *flow, cache=cache)

    results = model.forward(run, [flows(model, batch, False) for batch in batches])
    return [_share(model, result) for result in results]


def _share(pipeline: Pipeline, result: Any) -> Any:
    """Give every pp process the last one's tensor or tuple of tensors. Comm: broadcast over pp."""
    group, device = pipeline.mesh.pp.group, pipeline.mesh.device
    source = dist.get_global_rank(group, pipeline.mesh.pp.size - 1)
    is_tuple = isinstance(result, tuple)
    tensors = list(result) if is_tuple else [result]
    metas = [(is_tuple, [(t.shape, t.dtype) for t in tensors])] if pipeline.is_last else [None]
    dist.broadcast_object_list(metas, src=source, group=group)
    is_tuple, shapes = metas[0]
    if not pipeline.is_last:
        tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes]
    tensors = [tensor.contiguous() for tensor in tensors]
    for tensor in tensors:
        dist.broadcast(tensor, src=source, group=group)
    return tuple(tensors) if is_tuple else tensors[0]
