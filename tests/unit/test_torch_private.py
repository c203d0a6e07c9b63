"""What PyTorch does not document does what the package counts on, and is used in one file."""

import ast
import functools
import gc
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.tensorboard import SummaryWriter

from megalite import torch_private
from megalite.distributed.waiting import counted, waited_s

PACKAGE = Path(__file__).parents[2] / "megalite"
OF_SEVERAL = Path(__file__).parents[1] / "dist/collective_jobs.py"  # what takes several processes
# Undocumented, though they don't begin with an underscore or stand in a string.
OTHER_NAMES = {
    "_AsyncWriterThread",
    "backward_maybe_with_nosync",
    "distributed_c10d",
    "forward_maybe_with_nosync",
    "pg_group_ranks",
}


@pytest.fixture
def alone() -> Iterator[dist.Store]:
    """A process group of this process alone; its store."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield store
    dist.destroy_process_group()


@pytest.fixture
def third_of_four() -> Iterator[DeviceMesh]:
    """Four processes as 2 x 2, of which this one is the third; nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    yield DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("shard", "tp"))
    dist.destroy_process_group()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_dropped_process_groups_end_their_threads(is_frozen, request):
    """Also where what was there before the group is frozen, PyTorch's caches with it."""

    def threads() -> int:
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        return len([name for name in names if "gloo" in name])

    before = threads()
    if is_frozen:
        gc.freeze()
        request.addfinalizer(gc.unfreeze)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = DeviceMesh("cpu", torch.arange(1).view(1, 1), mesh_dim_names=("shard", "tp"))
    x = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0), Replicate()])
    assert float((x @ x).sum().full_tensor()) == 64
    assert threads() > before
    del x, mesh
    dist.destroy_process_group()
    torch_private.drop_process_groups()
    assert threads() <= before


def test_caches_of_distributed_are_those_of_its_modules_and_classes():
    from torch.distributed.pipelining import schedules

    class Keeps:
        plain = functools.lru_cache(lambda self: self)
        of_class = classmethod(functools.lru_cache(lambda cls: cls))

    made = [Keeps.plain, vars(Keeps)["of_class"].__func__]
    schedules.Keeps = Keeps
    try:
        found = torch_private.caches_of_distributed()
    finally:
        del schedules.Keeps
    assert all(any(one is cache for cache in found) for one in made)
    assert len(found) > len(made)


def test_has_kernel_tells_kernels_by_device():
    library = torch.library.Library("megalite_test_private", "DEF")
    library.define("copied(Tensor x) -> Tensor")
    library.impl("copied", lambda x: x.clone(), "CPU")
    assert torch_private.has_kernel("megalite_test_private::copied", "CPU")
    assert not torch_private.has_kernel("megalite_test_private::copied", "CUDA")


def test_shaped_keeps_memory_and_gradient_and_is_no_view():
    x = torch.randn(3, 10, requires_grad=True)
    y = x * 2
    shaped = torch_private.shaped(y, (3, 5, 2))
    assert shaped.data_ptr() == y.data_ptr()
    assert not shaped._is_view()
    shaped.square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x.detach())


def test_norms_of_tensors_are_each_ones():
    tensors = [torch.randn(7), torch.randn(3, 5), torch.randn(1)]
    norms = torch.stack(torch_private.norms_of(tensors))
    torch.testing.assert_close(norms, torch.stack([t.square().sum().sqrt() for t in tensors]))


def test_multiply_each_changes_every_tensor_in_place():
    tensors = [torch.randn(7), torch.randn(3, 5)]
    expected = [t * 0.5 for t in tensors]
    torch_private.multiply_each_(tensors, torch.tensor(0.5))
    for tensor, want in zip(tensors, expected, strict=True):
        assert torch.equal(tensor, want)


def test_local_shape_and_offset_of_an_uneven_shard(third_of_four):
    shard, tp = Shard(0), Shard(1)
    size = torch.Size([5, 7])  # rows 3 + 2, columns 4 + 3; this process is (1, 0)
    where = torch_private.local_shape_and_offset(size, third_of_four, (shard, tp))
    assert where == ((2, 4), (3, 0))
    whole = torch.arange(35.0).view(size)
    local = distribute_tensor(whole, third_of_four, (shard, tp), src_data_rank=None).to_local()
    assert torch.equal(local, whole[3:5, 0:4])


def test_default_store_is_the_one_of_the_process_group(alone):
    before = alone.num_keys()
    torch_private.default_store().set("key", "said")
    assert alone.num_keys() == before + 1


def test_set_timeout_reaches_the_backend_of_a_group(alone):
    group = dist.new_group([0], timeout=timedelta(minutes=5))
    torch_private.set_timeout(group, timedelta(seconds=7))
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)


def test_checkpoint_files_are_all_that_a_save_writes(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    writer = dcp.FileSystemWriter(tmp_path, thread_count=2)
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    found = torch_private.checkpoint_files(tmp_path, 0)
    assert len(found) == 3
    assert set(found) == set(tmp_path.iterdir())
    assert torch_private.checkpoint_files(tmp_path, 1) == []


def test_what_a_processor_has_is_what_the_system_says():
    """Where the kernel lists a processor's units; PyTorch also asks to use AMX's."""
    words = Path("/proc/cpuinfo").read_text().split()
    is_amd = "AuthenticAMD" in words
    assert torch_private.is_of_amd() == is_amd
    assert torch_private.has_faster_onednn() == (is_amd and "avx512f" in words)
    if torch_private.has_bf16_units():
        assert (is_amd and "avx512_bf16" in words) or "amx_tile" in words
    else:
        assert not (is_amd and "avx512_bf16" in words)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_onednn_multiplies_matrices_of_any_strides(rows):
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 33, generator=generator) for n in (rows, 50))
    bias, wide = torch.randn(50, generator=generator), torch.randn(40, 100, generator=generator)
    expected = (x.double() @ weight.double().t() + bias.double()).float()
    turned = weight.t().contiguous().t()
    for own in (weight, turned, wide.t()[:50, :33].copy_(weight)):
        for given in (x, x.t().contiguous().t()):
            got = torch_private.onednn_product(given, own, bias)
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_tensorboard_writer_is_told_from_other_threads(tmp_path):
    before = set(threading.enumerate())
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 1)
        (started,) = set(threading.enumerate()) - before
        assert torch_private.is_tensorboard_writer(started)
    assert not torch_private.is_tensorboard_writer(threading.current_thread())
    assert not torch_private.is_tensorboard_writer(None)


class _Counted(torch_private.StagePasses, PipelineStage):
    passes: list[str]

    def run_forward(self, *flow, **options):
        self.passes.append(f"forward {int(options['number'])}")
        return super().run_forward(*flow)

    def run_backward(self, *arguments, **options):
        self.passes.append("backward")
        return super().run_backward(*arguments, **options)


def test_stage_passes_are_called_once_for_each_micro_batch(alone):
    module, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    shapes = {"input_args": (x[:2],), "output_args": (y[:2],)}
    stage = _Counted(module, 0, 1, torch.device("cpu"), **shapes)
    stage.passes = []
    schedule = Schedule1F1B(stage, 2, loss_fn=nn.functional.mse_loss, scale_grads=False)
    schedule.step(x, number=torch.arange(2), target=y)
    assert stage.passes == ["forward 0", "backward", "forward 1", "backward"]
    made = module.weight.grad.clone()
    module.zero_grad()
    (2 * nn.functional.mse_loss(module(x), y)).backward()  # halves of one size: a sum of two means
    torch.testing.assert_close(made, module.weight.grad)


def _private_names(path: Path) -> Iterator[tuple[int, str]]:
    """Each private name of something else that a file touches, with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    plain = {"self", "cls", *_modules_that_are_not_torch(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_plain = isinstance(node.value, ast.Name) and node.value.id in plain
            yield from [] if is_plain else [(node.lineno, node.attr)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("torch.")]
            yield from ((node.lineno, part) for name in names for part in name.split("."))
        elif isinstance(node, ast.FunctionDef):
            yield from [(node.lineno, node.name)] if node.name in OTHER_NAMES else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [(node.lineno, node.value)] if node.value in OTHER_NAMES else []


def _modules_that_are_not_torch(tree: ast.Module) -> Iterator[str]:
    """Names that a file gives to modules, such as os, whose private names are no matter of this."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.asname or a.name for a in node.names if not a.name.startswith("torch"))


def _is_private(name: str) -> bool:
    is_special = name.startswith("__") and name.endswith("__")
    return name in OTHER_NAMES or (name.startswith("_") and not is_special)


def test_no_other_file_touches_a_private_name_of_torch():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "torch_private.py"
        for line, name in _private_names(path)
        if _is_private(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_waits_for_collectives_go_through_one_place(alone):
    torch_private.wrap_waits(counted)
    around = dist.Work.wait
    torch_private.wrap_waits(counted)
    assert dist.Work.wait is around
    before = waited_s()
    dist.all_reduce(torch.ones(3))
    after = waited_s()
    assert after > before
    dist.all_reduce(torch.ones(3), async_op=True).wait()
    assert waited_s() > after


def test_every_function_has_a_test():
    tree = ast.parse((PACKAGE / "torch_private.py").read_text(encoding="utf-8"))
    named = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    used = {
        node.attr
        for path in (Path(__file__), OF_SEVERAL)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch_private"
    }
    assert named == used


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch._foreach_norm([])",
        "import torch.distributed as dist\ndist.distributed_c10d",
        "from torch.distributed.tensor._utils import compute_local_shape_and_global_offset",
        "from torch._C import has_mkl",
        "import torch._dynamo",
        "def f(group): return group._get_backend()",
        "class Stage:\n    def forward_maybe_with_nosync(self): ...",
        "getattr(thing, '_AsyncWriterThread')",
    ],
)
def test_private_names_are_found(line, tmp_path):
    path = tmp_path / "file.py"
    path.write_text(line)
    assert any(_is_private(name) for _, name in _private_names(path))
