"""Compiled blocks learn the same; what can't be compiled is refused by name."""

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine import compiled
from megalite.engine.build import build_model
from megalite.engine.model import Model, Task
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits, Loss
from tests.dist import models

CPU = torch.device("cpu")


def config(name: str) -> ModelConfig:
    small = {"num_layers": 2} if name == "llama" else {"num_layers": 1, "num_encoder_layers": 1}
    without = {"dropout": 0.0, "attention_dropout": 0.0}
    return models.config(name).model_copy(update={**small, **without})


def learned(model: Model, name: str) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of a step; of a decoder alone, over micro-batches of two lengths."""
    batch = models.batch(name, 0)
    items = [(batch, None)]
    if batch.encoder is None:
        items.append((batch.padded(batch.decoder.length + 3, 0), None))
    sums = model.forward_backward(items, Task(Loss(0.01)))
    return float(sums["loss"]), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("name", "recompute"), [("llama", "full"), ("t5", "none")])
def test_traced_blocks_learn_the_same(name: str, recompute: str):
    """Traced and differentiated ahead as for a compiler; RoPE in place, cross-attention."""
    parallel = ParallelConfig(recompute=recompute)
    plain = build_model(config(name), Mesh.single(), parallel, seed=1)
    traced = build_model(config(name), Mesh.single(), parallel, seed=1)
    torch.compiler.reset()
    for part in traced.parts:
        compiled.compile_blocks(part, "aot_eager")
    wanted, found = learned(plain, name), learned(traced, name)
    assert found[0] == wanted[0]
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    asked = models.batch(name, 1)
    results = [model.evaluate([asked], Logits())[0] for model in (plain, traced)]
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("model", "layout", "says"),
    [
        ({}, {"tp": 2}, "parallel.tp 2"),
        ({}, {"pp": 2}, "parallel.pp 2"),
        ({}, {"recompute": "selective"}, "parallel.recompute selective"),
        ({"dropout": 0.1}, {}, "model.dropout"),
    ],
)
def test_what_can_not_be_compiled_is_refused(model: dict, layout: dict, says: str):
    wanted = config("llama").model_copy(update=model)
    with pytest.raises(ConfigError, match=f"--train.compile: .*{says}"):
        compiled.check_compiles(wanted, ParallelConfig(**layout), CPU)


def test_a_machine_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setattr(compiled, "CPU_COMPILERS", ("no-such-compiler",))
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler on a CPU"):
        compiled.check_compiles(config("llama"), ParallelConfig(), CPU)
