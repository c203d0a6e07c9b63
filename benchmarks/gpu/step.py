"""A training step of a LLaMA of 1.3 billion parameters: ours, and transformers' with SDPA."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.here import Here
from benchmarks.mfu import figures as figures_of
from benchmarks.workload import batch_of, make_workload
from megalite.config.load import load
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import leave_process_group
from megalite.models.config import ModelConfig
from megalite.stages.pretrain import PretrainConfig
from megalite.training.metrics.device import peak_tflops
from megalite.training.metrics.flops import step_operations

REAL = {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "ffn_size": 5504}
REAL |= {"vocab_size": 32000, "max_positions": 2048}
TINY = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "ffn_size": 176}
TINY |= {"vocab_size": 320, "max_positions": 32}
MICRO_BATCH, MICRO_BATCHES = 4, 2
ROUNDS = 4


def _config(here: Here) -> PretrainConfig:
    sizes = TINY if here.is_tiny else REAL
    words = [word for name, size in sizes.items() for word in (f"--model.{name}", str(size))]
    words += ["--data.sequence_length", str(sizes["max_positions"])]
    words += ["--train.micro_batch_size", str(MICRO_BATCH)]
    words += ["--train.global_batch_size", str(MICRO_BATCH * MICRO_BATCHES)]
    words += ["--run.device", "cpu" if here.is_rehearsal else "cuda"]
    return load(PretrainConfig, None, words)


def ours(here: Here) -> None:
    """The trainer's own learner, in the device's default number format, without a word on it."""
    started = time.perf_counter()
    workload = make_workload(_config(here), Launch())
    made_s = time.perf_counter() - started
    found = figures_of(workload, 1 if here.is_tiny else ROUNDS)
    wanted = ("tokens_per_s", "tflops_per_gpu", "mfu", "memory_gib")
    here.note("step, megalite", step_s=found["ours_s"], **{name: found[name] for name in wanted})
    here.note("ready for the first step, megalite", seconds=made_s)
    if here.left() > 10:
        _profile(here, workload.step)
    leave_process_group()


def _profile(here: Here, step: Callable[[], object]) -> None:
    """Where a step's time goes on the device: the kernels that take the most."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU]
    if here.device == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as seen:
        step()
        here.wait()
    on_device = [
        event
        for event in seen.events()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    total: dict[str, float] = {}
    for event in on_device:
        total[event.name] = total.get(event.name, 0.0) + event.time_range.elapsed_us()
    whole = sum(total.values())
    for name, us in sorted(total.items(), key=lambda item: -item[1])[:20]:
        here.note(f"of a step: {name[:100]}", ms=us / 1e3, share=us / whole)
    waits = sum("Synchronize" in event.name for event in seen.events())
    here.note("waits of the host in a step, one of them ours", count=waits, kernels=len(on_device))


def _llama(here: Here, config: ModelConfig) -> torch.nn.Module:
    """The same model in transformers, fp32 parameters, with PyTorch's initial values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    like = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device(here.device):
        return LlamaForCausalLM(like).train()


def _peer(here: Here, is_compiled: bool) -> None:
    config = _config(here)
    model_config, length = config.model, config.data.sequence_length
    model: Any = _llama(here, model_config)
    if is_compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    size = (MICRO_BATCH, length)
    batches = [
        torch.randint(0, model_config.vocab_size, size, device=here.device)
        for _ in range(MICRO_BATCHES)
    ]
    dtype = torch.bfloat16 if here.is_rehearsal else here.dtypes()[0]

    def step() -> None:
        for tokens in batches:
            with torch.autocast(here.device, dtype):
                loss = model(input_ids=tokens, labels=tokens).loss / MICRO_BATCHES
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    started = time.perf_counter()
    step()
    here.wait()
    first_s = time.perf_counter() - started
    times = []
    for _ in range(1 if here.is_tiny else ROUNDS):
        started = time.perf_counter()
        step()
        here.wait()
        times.append(time.perf_counter() - started)
    operations = step_operations(model_config, batch_of(model_config, *size)).model * MICRO_BATCHES
    tflops = operations / min(times) / 1e12
    peak = peak_tflops(torch.device(here.device), "bf16")
    name = f"step, transformers with SDPA{', compiled' if is_compiled else ''}"
    here.note(
        name,
        step_s=min(times),
        tokens_per_s=MICRO_BATCH * MICRO_BATCHES * length / min(times),
        tflops_per_gpu=tflops,
        mfu=tflops / peak,
        memory_gib=torch.cuda.max_memory_allocated() / 2**30 if here.device == "cuda" else 0.0,
        first_step_s=first_s,
        spread=statistics.pstdev(times) / min(times),
    )


def peer(here: Here) -> None:
    """Hugging Face transformers with SDPA, autocast, PyTorch's fused AdamW."""
    _peer(here, is_compiled=False)


def peer_compiled(here: Here) -> None:
    """The same under torch.compile."""
    _peer(here, is_compiled=True)
