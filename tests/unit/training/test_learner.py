"""One optimizer step: accumulation, clipping, precision and AdamW against plain PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.model import Task
from megalite.models.outputs import Loss
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from megalite.training.optimizer import build_optimizer, step_unless
from tests.dist import models

ROOT = Path(__file__).parents[3]


def learner(
    precision: str = "fp32", max_grad_norm: float = 1.0, mesh: Mesh | None = None, **optimizer
) -> Learner:
    mesh = mesh or Mesh.single()
    config = models.config("llama").model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    model = build_model(config, mesh, ParallelConfig(), seed=1, precision=precision)
    train = TrainConfig(
        steps=40, global_batch_size=8, precision=precision, max_grad_norm=max_grad_norm
    )
    settings = OptimizerConfig(learning_rate=1e-2, **optimizer)
    schedule = ScheduleConfig(kind="constant", warmup=0.0)
    return Learner(model, mesh, Learning(train, settings, schedule, 1))


def step(learner: Learner, sizes, number: int = 0) -> dict[str, float]:
    """A step whose batch is cut into micro-batches of these sizes."""
    whole = models.batch("llama", number)
    parts = torch.arange(8).split(sizes)
    items = [(whole.select(part), None) for part in parts]
    count = sum(batch.num_targets for batch, _ in items)
    return learner.step(items, lambda scale: Task(Loss(scale)), count, number * 8)


def parameters(learner: Learner) -> torch.Tensor:
    return torch.cat([local(p.detach()).flatten() for p in learner.model.parameters()])


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [2, 2, 4]])
def test_accumulated_gradients_are_those_of_the_whole_batch(sizes):
    """Also where micro-batches have different numbers of targets."""
    whole, parts = learner(eps=1e-3), learner(eps=1e-3)
    for number in range(3):
        a, b = step(whole, [8], number), step(parts, sizes, number)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    assert torch.allclose(parameters(whole), parameters(parts), atol=1e-6)


@pytest.mark.parametrize("limit", [0.0, 0.05, 1e3])
def test_clipping_and_adamw_are_those_of_pytorch(limit):
    """A plain loop over the same gradients: norms and biases have no weight decay."""
    ours, kept = learner(max_grad_norm=limit), {}
    before = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    inner = ours.optimizer.step

    def keep() -> None:
        kept.update({n: p.grad.clone() for n, p in ours.model.named_parameters()})
        inner()

    ours.optimizer.step = keep
    metrics = step(ours, [8])
    plain, gradients = learner(max_grad_norm=0.0), {}
    plain.optimizer.step = lambda: gradients.update(
        {n: p.grad.clone() for n, p in plain.model.named_parameters()}
    )
    step(plain, [8])
    theirs = {n: torch.nn.Parameter(value.clone()) for n, value in before.items()}
    for name, parameter in theirs.items():
        parameter.grad = gradients[name].clone()
    norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.values()])
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
    if limit:
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), limit)
    matrices = [p for n, p in theirs.items() if p.dim() > 1]
    vectors = [p for n, p in theirs.items() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8).step()
    for name, parameter in ours.model.named_parameters():
        assert torch.allclose(kept[name], theirs[name].grad, rtol=1e-5, atol=1e-9), name
        assert torch.allclose(parameter, theirs[name], atol=2e-5), name


@pytest.fixture
def group():
    """A mesh of one process with its group, which half precision needs."""
    yield build_mesh(Launch(), ParallelConfig(), torch.device("cpu"))
    dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_like_fp32_with_fp32_weights(group, precision):
    exact, half = learner(), learner(precision, mesh=group)
    curves = [[step(one, [4, 4])["loss"] for _ in range(8)] for one in (exact, half)]
    assert curves[1] == pytest.approx(curves[0], rel=0.03)
    assert curves[1][-1] < curves[1][0]
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


def test_an_overflow_of_fp16_skips_the_step_and_halves_the_scale(group):
    half = learner("fp16", mesh=group)
    half.scale.value = 2.0**30
    before = parameters(half)
    metrics = step(half, [8])
    assert metrics["loss_scale"] == 2.0**30
    assert half.scale.value == 2.0**29
    assert torch.equal(parameters(half), before)
    for _ in range(15):
        step(half, [8])
        if half.scale.good_steps:
            break
    assert not torch.equal(parameters(half), before)


def run_python(folder: Path, code: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_apex_is_known_by_its_optimizer_not_by_its_name(tmp_path):
    """The package index has a web toolkit of this name; NVIDIA's has apex.optimizers.FusedAdam."""
    code = "from megalite.training.optimizer import apex_adam; print(apex_adam().__module__)"
    web = tmp_path / "web" / "apex"
    web.mkdir(parents=True)
    (web / "__init__.py").write_text("def app(): pass\n")
    done = run_python(tmp_path / "web", code)
    assert done.returncode == 1
    assert "needs apex.optimizers.FusedAdam of NVIDIA apex" in done.stderr
    nvidia = tmp_path / "nvidia" / "apex" / "optimizers"
    nvidia.mkdir(parents=True)
    (nvidia.parent / "__init__.py").touch()
    (nvidia / "__init__.py").write_text("class FusedAdam:\n    pass\n")
    done = run_python(tmp_path / "nvidia", code)
    assert done.stdout.strip() == "apex.optimizers", done.stderr


def changing(**train) -> Learner:
    """A learner whose numbers of a step change; a step has 8 samples."""
    config = models.config("gpt")
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=1)
    settings = TrainConfig(steps=5, global_batch_size=8, **train)
    schedule = ScheduleConfig(kind="constant", warmup=0.0)
    return Learner(model, Mesh.single(), Learning(settings, OptimizerConfig(), schedule, 1))


def losses_and_gradients(ours: Learner, steps: int) -> list[tuple[float, float, float]]:
    """Loss, norm of all clipped gradients, and norm of the embedding's, of each step."""
    found, inner = [], ours.optimizer.step

    def keep() -> None:
        named = {n: p.grad for n, p in ours.model.named_parameters() if p.grad is not None}
        norm = torch.stack([g.norm() for g in named.values()]).norm()
        found.append((float(norm), float(named["embedding.weight"].norm())))
        inner()

    ours.optimizer.step = keep
    losses = []
    for number in range(steps):
        batch = models.batch("gpt", 0)
        count = batch.num_targets
        make = lambda scale: Task(Loss(scale))  # noqa: E731
        losses.append(ours.step([(batch, None)], make, count, number * 8)["loss"])
    return [(loss, *norms) for loss, norms in zip(losses, found, strict=True)]


def test_clipping_changes_at_its_places():
    rows = losses_and_gradients(changing(max_grad_norm={"0": 1e-2, "16 samples": 1e-3}), 3)
    assert [norm for _, norm, _ in rows] == pytest.approx([1e-2, 1e-2, 1e-3], rel=1e-3)


def test_the_embeddings_gradient_is_multiplied_by_its_factor():
    plain = losses_and_gradients(changing(max_grad_norm=0.0), 1)
    told = {"0": 0.25, "to 16 samples": 1.0}
    shrunk = losses_and_gradients(changing(max_grad_norm=0.0, embedding_gradient=told), 1)
    assert shrunk[0][0] == plain[0][0]
    assert shrunk[0][2] == pytest.approx(0.25 * plain[0][2], rel=1e-6)


def test_nothing_is_dropped_from_a_place_on():
    """The batch is the same in each step, and the model hardly moves."""
    until = changing(dropout_until="16 samples")
    never = changing(dropout_until=0.0)
    rate = {"learning_rate": 1e-9}
    for learner_ in (until, never):
        learner_.set_learning_rate(rate["learning_rate"])
    dropped = [loss for loss, *_ in losses_and_gradients(until, 4)]
    whole = [loss for loss, *_ in losses_and_gradients(never, 4)]
    assert dropped[2:] == pytest.approx(whole[2:], rel=1e-5)
    assert abs(dropped[0] - whole[0]) > 1e-4
    assert abs(dropped[0] - dropped[1]) > 1e-4


def test_dropout_rises_over_layers_and_spares_the_embedding():
    config = models.config("t5").model_copy(
        update={"dropout": 0.3, "dropout_by_layer": "rising", "embedding_dropout": 0.0}
    )
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=1)
    rates = [[block.dropout for block in stack.blocks()] for stack in model.parts[0].stacks()]
    assert rates == [pytest.approx([0.0, 0.15, 0.3]), pytest.approx([0.0, 0.3])]
    assert config.drops
    assert not config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0}).drops


def test_the_mean_of_the_weights_follows_each_step_that_counts():
    ours = changing(average=0.75)
    expected = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    for number, bound in enumerate((1e9, 0.0, 1e9)):
        ours.bounds = {"loss": bound}
        losses_and_gradients(ours, 1)
        if number != 1:
            for name, parameter in ours.model.named_parameters():
                expected[name] += 0.25 * (parameter.detach() - expected[name])
    saved = ours.tensors()
    for name, mean in expected.items():
        torch.testing.assert_close(saved[f"model_average.{name}"], mean, rtol=0, atol=0)
    assert ours.facts()["averages"]
    assert not any("average" in name for name in changing().tensors())


@pytest.mark.parametrize(
    "decayed",
    [("blocks", "embedding", "positions", "head"), ("blocks",), ("embedding", "vectors"), ()],
)
@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_what_is_named_decays(kind: str, decayed: tuple[str, ...]):
    """A step with a gradient of 0 leaves what doesn't decay."""
    model = build_model(models.config("gpt"), Mesh.single(), ParallelConfig(), seed=1)
    config = OptimizerConfig(kind=kind, learning_rate=0.1, weight_decay=0.5, decayed=decayed)
    optimizer = build_optimizer(model, config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data.add_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    step_unless(optimizer, torch.tensor(False))
    for name, parameter in model.named_parameters():
        last = name.split(".")
        is_vector = parameter.dim() == 1 or last[-1] == "bias"
        role = "blocks" if "layers" in last else {"decoder": last[1]}.get(last[0], last[0])
        role = "vectors" if is_vector else role
        moved = not torch.equal(parameter.detach(), before[name] + 1.0)
        assert moved == (role in decayed), name
