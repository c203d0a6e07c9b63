"""The operators on rows on the device against fp64: losses, RoPE, dropout, norms, embedding."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.exactness import Judge
from benchmarks.gpu.here import Here
from megalite.ops import (
    LossOptions,
    NormOptions,
    Update,
    activation,
    add_norm,
    cross_entropy,
    dropout,
    embedding,
    linear_cross_entropy,
    norm,
    rope,
    rope_tables,
    token_log_probs,
)

OPTIONS = LossOptions(label_smoothing=0.1, z_loss=1e-3, logit_scale=0.7)
ROPES = ((False, 1, 128, 128), (True, 1, 64, 128), (False, 2, 64, 64), (False, 1, 20, 33))
REPEATS = 5
Entry = tuple[str, Callable[..., Tensor], Sequence[Tensor], Tensor]  # name, work, inputs, upstream


class _Numbers:
    """Random inputs on the device, the same in every run."""

    def __init__(self, here: Here) -> None:
        self.device = here.device
        self._generator = torch.Generator(device=here.device).manual_seed(1)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self._generator)

    def integers(self, most: int, *shape: int) -> Tensor:
        return torch.randint(0, most, shape, device=self.device, generator=self._generator)


def _losses(numbers: _Numbers, is_tiny: bool) -> list[Entry]:
    rows, vocabulary, width = (9, 131, 20) if is_tiny else (509, 32003, 256)
    labels = numbers.integers(vocabulary, rows)
    labels[::5] = -100
    weights = numbers.normal(rows).abs()
    logits = numbers.normal(rows, vocabulary) * 4
    hidden, head = numbers.normal(rows, width), numbers.normal(vocabulary, width) * 0.3

    def row_losses(x: Tensor) -> Tensor:
        return cross_entropy(x, labels, OPTIONS)

    def head_and_loss(x: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, labels, weights, None, OPTIONS)

    def log_probs(x: Tensor, w: Tensor) -> Tensor:
        return token_log_probs(x, w, labels)[0]

    one = torch.ones((), device=numbers.device)
    return [
        ("cross_entropy", row_losses, [logits], weights),
        ("linear_cross_entropy", head_and_loss, [hidden, head], one),
        ("token_log_probs", log_probs, [hidden, head], weights),
    ]


def _turns(numbers: _Numbers, is_tiny: bool) -> list[Entry]:
    found: list[Entry] = []
    rows = 5 if is_tiny else 301
    for is_interleaved, axes, rotary, size in ROPES:
        x = numbers.normal(2, rows, 3, size)
        cos, sin = rope_tables(numbers.integers(4000, 2, rows, axes), rotary)

        turn = partial(_turned, cos=cos, sin=sin, interleaved=is_interleaved)

        kind = "interleaved" if is_interleaved else "halves"
        name = f"rope, {kind}, {axes} axes, {rotary} of {size}"
        found.append((name, turn, [x], numbers.normal(*x.shape)))
    return found


def _turned(y: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return rope(y, cos, sin, interleaved=interleaved)


def _streams(numbers: _Numbers, is_tiny: bool) -> list[Entry]:
    x = numbers.normal(3, 7, 64 if is_tiny else 1024)
    samples = torch.tensor([3, 2**33 + 1, 9], device=numbers.device)
    scale, shift = numbers.normal(x.shape[-1]) * 0.1 + 1, numbers.normal(x.shape[-1])
    layer_norm = NormOptions(centred=True)

    def drop(y: Tensor) -> Tensor:
        return dropout(y, 0.3, 99, samples, 4, 64)

    tokens = numbers.integers(31, *x.shape[:2])  # some of another slice, most repeated

    upstream = numbers.normal(*x.shape)
    return [
        ("dropout", drop, [x], upstream),
        (
            "embedding",
            lambda w: embedding(w, tokens, 3, 31),
            [numbers.normal(25, x.shape[-1])],
            upstream,
        ),
        ("RMSNorm", lambda y, w: norm(y, w), [x, scale], upstream),
        (
            "LayerNorm of a sum",
            lambda y, z, w, b: add_norm(y, Update(z), w, b, layer_norm)[1],
            [x, numbers.normal(*x.shape), scale, shift],
            upstream,
        ),
        *(
            (
                f"{kind} with bias and gate",
                partial(activation, kind),
                [x, x * 2, shift, scale],
                upstream,
            )
            for kind in ("relu", "gelu", "gelu_tanh", "silu")
        ),
    ]


def run(here: Here) -> None:
    """Each operator in fp32, bf16 and fp16."""
    judged, numbers = Judge(here), _Numbers(here)
    entries = [
        entry for make in (_losses, _turns, _streams) for entry in make(numbers, here.is_tiny)
    ]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, work, inputs, upstream in entries:
            given = [x.to(dtype) for x in inputs]
            judged.judge(f"{name}, {str(dtype)[6:]}", (work, work, work), given, upstream, REPEATS)
    judged.sum_up("cross-entropy, head and loss, RoPE, dropout, norms, activations, embedding")
