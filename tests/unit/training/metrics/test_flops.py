"""Operations as PyTorch counts them on transformers' model, and peaks by a device's name."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from megalite.models.batch import IGNORE, Batch, Stream
from megalite.models.config import ModelConfig
from megalite.ops.mask import causal, full
from megalite.training.metrics.device import known_tflops, measured_tflops
from megalite.training.metrics.flops import forward_flops

B, S, V = 2, 7, 50


def batch(mask) -> Batch:
    tokens = torch.zeros(B, S, dtype=torch.int64)
    rows = torch.arange(S, dtype=torch.int32).expand(B, S)
    return Batch(Stream(tokens, rows, mask), tokens, torch.arange(B))


def counted(model) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(B, S, dtype=torch.int64))
    return counter.get_total_flops()


def test_llama_costs_what_pytorch_counts():
    """Its eager attention computes all pairs, as the full mask does."""
    shape = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **shape, intermediate_size=40, num_key_value_heads=2, attn_implementation="eager"
        )
    )
    ours = ModelConfig(
        vocab_size=V, hidden_size=24, num_layers=3, num_heads=4, num_kv_heads=2, ffn_size=40
    )
    assert forward_flops(ours, batch(full(B, S, S))) == counted(theirs)


def test_gpt2_costs_what_pytorch_counts():
    config = GPT2Config(vocab_size=V, n_embd=24, n_layer=2, n_head=4, attn_implementation="eager")
    ours = ModelConfig(
        vocab_size=V, hidden_size=24, num_layers=2, num_heads=4, ffn_size=96, gated=False
    )
    assert forward_flops(ours, batch(full(B, S, S))) == counted(GPT2LMHeadModel(config).eval())


def test_only_what_is_attended_to_counts():
    config = ModelConfig(hidden_size=24, num_heads=4, num_layers=2, vocab_size=V)
    whole, half = (forward_flops(config, batch(mask)) for mask in (full(B, S, S), causal(B, S)))
    assert whole - half == 2 * 4 * 24 * B * (S * S - S * (S + 1) // 2)


def test_layers_with_windows_cost_what_they_attend_to():
    shape = {"hidden_size": 24, "num_heads": 4, "num_layers": 3, "vocab_size": V}
    whole, narrow = (
        forward_flops(ModelConfig(**shape, windows=windows), batch(causal(B, S)))
        for windows in ((), (2, 0))
    )
    unseen = (S - 2) * (S - 1) // 2  # of each sequence, in each of the first and third layer
    assert whole - narrow == 2 * 4 * 24 * B * unseen


def test_a_batch_without_targets_has_no_head():
    config = ModelConfig(hidden_size=24, num_heads=4, num_layers=2, vocab_size=V)
    scored = batch(causal(B, S))
    difference = forward_flops(config, scored)
    scored.labels.fill_(IGNORE)
    assert difference - forward_flops(config, scored) == 2 * B * S * V * 24


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.0, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 51.2),
        ("Tesla V100-SXM2-16GB", 125.0, 15.7),
        ("Tesla V100-PCIE-32GB", 112.0, 14.0),
        ("NVIDIA A10G", 70.0, 31.5),
        ("NVIDIA L40S", 362.0, 91.6),
        ("Tesla T4", 65.0, 8.1),
        ("NVIDIA RTX A1000 Laptop GPU", None, None),
        ("NVIDIA RTX A4000", None, None),
        ("NVIDIA GeForce RTX 4090", None, None),
    ],
)
def test_a_devices_peak_is_known_by_the_words_of_its_name(name, half, single):
    assert known_tflops(name, "bf16") == half
    assert known_tflops(name, "fp32") == single


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpus_peak_is_measured(dtype):
    assert 0 < measured_tflops(torch.device("cpu"), dtype, seconds=0.05) < 1000
