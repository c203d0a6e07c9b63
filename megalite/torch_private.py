"""Every use of what PyTorch does not document, a function each, with why there is no other way.

A release of PyTorch may change any of it without notice. Nothing else in the package touches a
name of torch that begins with an underscore, and ``tests/unit/test_torch_private.py`` has a test
for each of these. Imports inside functions keep this file as cheap to import as torch itself.
"""

import functools
import gc
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def has_kernel(operator: str, key: str) -> bool:
    """Whether a loaded library has a kernel of its own for a registered operator.

    ``torch.library`` registers kernels but does not tell which there are; a call would say so too
    late, with an error that doesn't name the build.

    Args:
        operator: such as ``megalite::rope``.
        key: such as ``CPU`` or ``CUDA``.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def shaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x``, contiguous and used by nobody else, in another shape and in the same memory.

    ``x.view(shape)`` is a view for autograd: a later write in place must then rewrite the graph of
    its base, and FSDP2 warns of views that leave a module. A copy would cost time and memory.
    """
    return torch.ops.aten._unsafe_view(x, shape)


def has_bf16_units() -> bool:
    """Whether PyTorch's matrix products are faster in bf16 than in fp32 on this CPU.

    By AMX, or by AVX512_BF16 on one of AMD's, where a bf16 product has twice the rate and MKL
    computes fp32 with AVX2; Intel's have no more than fp32's rate without AMX.
    ``torch.backends.cpu.get_cpu_capability`` tells the width of its vectors alone.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and is_of_amd()


def is_of_amd() -> bool:
    """Whether AMD made the processor, as far as Linux tells."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "AuthenticAMD" in path.read_text()


@functools.cache
def has_faster_onednn() -> bool:
    """Whether oneDNN multiplies in fp32 faster than MKL on this CPU: one of AMD's with AVX-512.

    MKL computes with AVX2 there. Nothing of PyTorch's tells whose a processor is.
    """
    return torch.cpu._is_avx512_supported() and torch._C.has_mkl and is_of_amd()


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias`` by oneDNN, [M, N] of fp32 [M, K], [N, K] and [N], without a gradient.

    ``torch.compile`` has this operator for models whose weights are frozen; by no function of
    PyTorch's own do products in fp32 reach oneDNN. Matrices of odd strides it multiplies by a loop.
    """
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def norms_of(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The 2-norm of each of some tensors, scalars in the tensors' dtype, all in a few kernels.

    ``torch.nn.utils.get_total_norm`` does the same inside but adds the squares in that dtype, and
    their sum must not depend on how the gradients are cut.
    """
    return torch._foreach_norm(tensors)


def multiply_each_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply some tensors in place by a scalar that may be on the device, in a few kernels.

    ``torch.nn.utils.clip_grads_with_norm_`` takes a norm and makes its own factor of it.
    """
    torch._foreach_mul_(tensors, factor)


def local_shape_and_offset(
    shape: torch.Size, mesh: Any, placements: Sequence[Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset, in a whole DTensor, of what this process holds of it.

    The public methods of a DTensor give the local tensor but not where it begins, which differs for
    FSDP2's shard of a tensor-parallel shard.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    return tuple(local), tuple(offset)


def default_store() -> dist.Store:
    """The store that the default process group was made with, under that group's prefix.

    A group does not give its store away, and torchrun's store can't be opened a second time under
    the same prefix by a caller that was not told the prefix.
    """
    return dist.distributed_c10d._get_default_store()


def set_timeout(group: dist.ProcessGroup, timeout: timedelta) -> None:
    """Set how long a group's collectives may take.

    A ``DeviceMesh`` makes its groups itself and takes no timeout; theirs is the backend's default.
    PyTorch 2.14 has a public function for it.
    """
    public = getattr(dist, "set_timeout", None)
    (public or dist.distributed_c10d._set_pg_timeout)(timeout, group)


def drop_process_groups() -> None:
    """End the process groups that nothing but PyTorch's caches keeps, after they were destroyed.

    A group's threads end with the last mention of it. ``destroy_process_group`` leaves those in the
    caches of DTensor's rules, which hold meshes, which hold their groups. PyTorch 2.8 has neither
    the cache that is cleared first nor groups in a mesh.

    Objects that are frozen (``gc.freeze``) are passed over: what was there before the groups were
    made. Looking through all that a process has imported takes half a second and more.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import debug

    if hasattr(debug, "_clear_sharding_prop_cache"):
        debug._clear_sharding_prop_cache()
    for cache in caches_of_distributed():
        cache.cache_clear()
    for item in gc.get_objects():
        if type(item) is functools._lru_cache_wrapper:  # of an instance
            if "torch.distributed" in (item.__module__ or ""):
                item.cache_clear()
        elif type(item) is DeviceMesh:
            getattr(item, "_pg_registry", {}).clear()
    gc.collect()


def caches_of_distributed() -> list[Any]:
    """The functions and methods in modules of torch.distributed that keep what they gave.

    Their type has no public name.
    """
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("torch.distributed")]
    values = [value for module in modules for value in list(vars(module).values())]
    classes = [value for value in values if issubclass(type(value), type)]
    values += [value for one in classes for value in list(vars(one).values())]
    bound = (staticmethod, classmethod)
    functions = [value.__func__ if type(value) in bound else value for value in values]
    return [one for one in functions if type(one) is functools._lru_cache_wrapper]


def calls_by_group() -> dict[str, int]:
    """Collectives begun in each group of several processes that this process is in.

    PyTorch counts them for its own reports of desynchronised ranks and has no function that tells
    the count, nor one that lists the groups. Any thread may ask.
    """
    groups: Any = list(dist.distributed_c10d._world.pg_group_ranks.items())
    return {
        f"{group.group_desc} {group.group_name}": group._get_sequence_number_for_group()
        for group, ranks in groups
        if len(ranks) > 1 and group is not dist.GroupMember.NON_GROUP_MEMBER
    }


def wrap_waits(around: Callable[[Callable[..., bool]], Callable[..., bool]]) -> None:
    """Let every wait for a collective go through ``around(Work.wait)``, from the first call on.

    Collectives that return when they are done wait for their work by this method, and so do FSDP2
    and the pipeline's schedules for theirs; PyTorch tells how long in a profiler's trace alone.
    """
    work: Any = dist.Work
    if not hasattr(work.wait, "__wrapped__"):
        work.wait = around(work.wait)


def checkpoint_files(folder: Path, rank: int) -> list[Path]:
    """The files of ``torch.distributed.checkpoint.save`` that a process wrote, in order of number.

    The files are named by the rank that wrote them and counted from 0, and the first process also
    writes the metadata; the writer reports which tensor is where, not which files it made. To list
    the folder would be to read the names of all processes' files on each of them.
    """
    names = (folder / f"__{rank}_{number}.distcp" for number in itertools.count())
    own = list(itertools.takewhile(Path.exists, names))
    return [*own, folder / ".metadata"] if rank == 0 else own


def is_tensorboard_writer(thread: threading.Thread | None) -> bool:
    """Whether a thread is the one that writes TensorBoard's files.

    ``SummaryWriter`` starts it without a name and doesn't hand it out; its errors are also raised
    by the writer's next call.
    """
    return type(thread).__name__ == "_AsyncWriterThread"


class StagePasses:
    """The passes of a ``PipelineStage`` under names of our own; the first base of a subclass.

    A stage calls its module with what travels between stages and nothing else, and has no hook
    around a pass. Its schedules call the methods at the end, which the documents don't name.

    A stage also makes a buffer for what each micro-batch of a step will receive before the first
    one, so that memory grows with their number. Here a buffer is made when its receive begins and
    let go after the micro-batch's backward pass.

    A schedule of several stages a process waits for what it has sent at the end of the step alone,
    and until then that stays in memory; :meth:`send_by_itself` is for those.
    """

    window = 0
    device: torch.device
    args_recv_info: dict[int, Any]
    grad_recv_info: dict[int, Any]

    def run_forward(self, *flow: Any, **options: Any) -> Any:
        """The forward pass of a micro-batch: what the stage gives to the next one."""
        stage: Any = super()
        return stage.forward_maybe_with_nosync(*flow, **options)

    def run_backward(self, *arguments: Any, **options: Any) -> Any:
        """The backward pass of a micro-batch; what it takes and gives is the stage's own affair."""
        stage: Any = super()
        return stage.backward_maybe_with_nosync(*arguments, **options)

    def forward_maybe_with_nosync(self, *flow: Any, **options: Any) -> Any:
        """Called by the schedules."""
        return self.run_forward(*flow, **options)

    def backward_maybe_with_nosync(self, *arguments: Any, **options: Any) -> Any:
        """Called by the schedules."""
        return self.run_backward(*arguments, **options)

    @contextmanager
    def _without_buffers(self) -> Iterator[None]:
        """Let what is made on the stage's device inside take no memory."""
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def _prepare_forward_infra(self, *arguments: Any, **options: Any) -> Any:
        """Called by the schedules before their first step."""
        stage: Any = super()
        with self._without_buffers():
            return stage._prepare_forward_infra(*arguments, **options)

    def _prepare_backward_infra(self, *arguments: Any, **options: Any) -> Any:
        """Called by the schedules before their first step."""
        stage: Any = super()
        with self._without_buffers():
            return stage._prepare_backward_infra(*arguments, **options)

    def send_by_itself(self, window: int) -> None:
        """Begin sends itself and wait for each once it must have arrived; the schedule has none.

        What a micro-batch's forward pass gave has arrived when its gradient is there. A gradient
        has when ``window`` later ones are sent, for the stage before alternates passes too.

        Args:
            window: gradients that may be under way.
        """
        self.window = window
        self._given: dict[int, list[dist.Work]] = {}
        self._returned: deque[list[dist.Work]] = deque()

    @staticmethod
    def _begin(operations: list[Any]) -> list[dist.Work]:
        """As this release's schedules do: NCCL must see both sides of a transfer alike."""
        from torch.distributed.pipelining.schedules import _batch_p2p

        return list(_batch_p2p(operations))

    @staticmethod
    def _wait(works: Iterable[dist.Work]) -> None:
        for work in works:
            work.wait()

    def finish_sends(self) -> None:
        """Wait for what is under way at the end of a step."""
        for works in [*self._given.values(), *self._returned]:
            self._wait(works)

    def get_fwd_send_ops(self, number: int) -> list[Any]:
        """Called by the schedules after a forward pass."""
        stage: Any = super()
        operations = stage.get_fwd_send_ops(number)
        if not self.window:
            return operations
        self._given[number] = self._begin(operations)
        return []

    def get_bwd_send_ops(self, number: int) -> list[Any]:
        """Called by the schedules after a backward pass."""
        stage: Any = super()
        operations = stage.get_bwd_send_ops(number)
        if not self.window:
            return operations
        self._returned.append(self._begin(operations))
        if len(self._returned) > self.window:
            self._wait(self._returned.popleft())
        return []

    def get_fwd_recv_ops(self, number: int) -> list[Any]:
        """Called by the schedules as a receive begins."""
        self._make_buffers(self.args_recv_info[number])
        stage: Any = super()
        return stage.get_fwd_recv_ops(number)

    def get_bwd_recv_ops(self, number: int) -> list[Any]:
        """Called by the schedules as a receive begins."""
        self._make_buffers(self.grad_recv_info.get(number, ()))
        stage: Any = super()
        return stage.get_bwd_recv_ops(number)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        """Called by the schedules for a micro-batch's backward pass."""
        if self.window:
            self._wait(self._given.pop(bwd_chunk_id, ()))
        stage: Any = super()
        result = stage.backward_one_chunk(bwd_chunk_id, *arguments, **options)
        received = self.args_recv_info[bwd_chunk_id], self.grad_recv_info.get(bwd_chunk_id, ())
        for infos in received:
            for info in infos:
                if getattr(info, "buffer", None) is not None:
                    info.buffer = torch.empty_like(info.buffer, device="meta")
        return result

    def _make_buffers(self, infos: Sequence[Any]) -> None:
        for info in infos:
            buffer = getattr(info, "buffer", None)
            if buffer is not None and buffer.is_meta:
                made = torch.empty_like(buffer, device=self.device)
                info.buffer = made.requires_grad_(buffer.requires_grad)
