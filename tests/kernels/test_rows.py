"""Cross-entropy, head with loss, log-probabilities, RoPE and dropout on every backend."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from megalite.errors import ShapeError
from megalite.ops import (
    LossOptions,
    cross_entropy,
    dropout,
    linear_cross_entropy,
    rope,
    rope_tables,
    token_log_probs,
)
from megalite.ops.backends import kernels
from megalite.ops.cross_entropy import logit_gradient
from megalite.ops.linear_cross_entropy import labelled_chunks, sum_of_products
from megalite.ops.token_log_probs import token_judgement
from tests.kernels.backends import (
    SIMT_NAMES,
    assert_as_good,
    backend,
    device_of,
    emulator,
    needs_emulator,
    on_every_row_backend,
)

ANGLES = [torch.zeros(1, 2, 1, 2)] * 2
OPTIONS = [
    LossOptions(),
    LossOptions(label_smoothing=0.1),
    LossOptions(z_loss=1e-3),
    LossOptions(label_smoothing=0.2, z_loss=1e-3, logit_scale=0.7),
    LossOptions(label_smoothing=0.1, z_loss=1e-3, logit_scale=0.7, logit_cap=3.0),
]


def labels_for(rows: int, vocabulary: int) -> torch.Tensor:
    labels = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(1))
    labels[::5] = -100
    return labels


def on(name: str, dtype: torch.dtype, work, *inputs: torch.Tensor):
    """Result and gradients of ``work`` on one backend, upstream a fixed random tensor."""
    device = device_of(name)
    leaves = [x.to(dtype).to(device).clone().requires_grad_() for x in inputs]
    with backend(name):
        results = work(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        generator = torch.Generator().manual_seed(2)
        upstream = torch.randn(results[0].shape, generator=generator).to(device)
        results[0].backward(upstream.to(results[0].dtype))
    return [r.detach().cpu() for r in results], [leaf.grad.cpu() for leaf in leaves]


def check(name: str, work, *inputs: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    exact = on("reference", torch.float64, work, *inputs)
    plain = on("reference", dtype, work, *inputs)
    ours = on(name, dtype, work, *inputs)
    for part, factor in ((0, 2.0), (1, 3.0)):
        for mine, theirs, truth in zip(ours[part], plain[part], exact[part], strict=True):
            assert_as_good(mine, theirs, truth.double(), factor)


@on_every_row_backend
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("vocabulary", [5, 131, 1000])
def test_cross_entropy_is_as_exact_as_pytorch(name: str, options: LossOptions, vocabulary: int):
    labels = labels_for(37, vocabulary)
    logits = torch.randn(37, vocabulary, generator=torch.Generator().manual_seed(3)) * 4
    check(name, lambda x: cross_entropy(x, labels.to(x.device), options), logits)


@pytest.mark.parametrize("width", [32000, 32003])
def test_a_gradient_beyond_the_caches_is_that_of_its_parts(width: int):
    """On a CPU it is written past the caches, where a row begins at a vector."""
    rows, part = 600, 200
    assert part * width * 4 < 64 << 20 < rows * width * 4
    generator = torch.Generator().manual_seed(6)
    logits, labels = torch.randn(rows, width, generator=generator), labels_for(rows, width)
    lse, upstream = torch.logsumexp(logits, -1), torch.rand(rows, generator=generator)
    options = LossOptions(label_smoothing=0.1, z_loss=1e-3)
    options = replace(options, vocabulary=options.slice(width))
    whole = logit_gradient(logits, lse, labels, upstream, options)
    inputs = zip(*(x.split(part) for x in (logits, lse, labels, upstream)), strict=True)
    assert torch.equal(whole, torch.cat([logit_gradient(*each, options) for each in inputs]))


@pytest.mark.parametrize("name", SIMT_NAMES[:1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 131, 1000])
def test_logits_of_16_bits_give_what_their_widened_values_give(name, dtype, width):
    """Also where no row begins at a vector: the first of these is left out."""
    ops, labels = torch.ops.megalite_simt, torch.tensor([0, width - 1, width + 5])
    narrow = (torch.randn(4, width) * 3).to(dtype)[1:]
    wide = narrow.float()
    statistics = ops.logit_statistics(narrow, labels, 0)
    torch.testing.assert_close(statistics, ops.logit_statistics(wide, labels, 0))
    lse, upstream = torch.logsumexp(wide, -1), torch.tensor([1.0, -2.0, 0.0])
    expected = torch.empty_like(wide)
    ops.logit_gradient(expected, wide, lse, labels, upstream, 0, width, 0.1, 1e-3)
    for gradient in (torch.empty_like(narrow), narrow):  # apart, and over the logits
        ops.logit_gradient(gradient, narrow, lse, labels, upstream, 0, width, 0.1, 1e-3)
        torch.testing.assert_close(gradient, expected.to(dtype))


@on_every_row_backend
def test_cross_entropy_is_pytorchs(name: str):
    logits, labels = torch.randn(20, 131), labels_for(20, 131)
    with backend(name):
        device = device_of(name)
        ours = cross_entropy(logits.to(device), labels.to(device)).cpu()
    theirs = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@on_every_row_backend
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk", [131 * 4, 1 << 24])
def test_head_and_loss_are_as_exact_as_pytorch(name, options, has_bias, chunk, monkeypatch):
    module = sys.modules["megalite.ops.linear_cross_entropy"]  # the name is the function's
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    labels = labels_for(33, 131)
    weights = torch.rand(33, generator=torch.Generator().manual_seed(4))
    hidden, weight, bias = torch.randn(33, 20), torch.randn(131, 20) * 0.3, torch.randn(131)

    def work(x, w, b=None):
        moved = labels.to(x.device), weights.to(x.device)
        return linear_cross_entropy(x, w, *moved, b, options)

    check(name, work, hidden, weight, *([bias] if has_bias else []))


@on_every_row_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
def test_head_and_loss_in_half_precision_are_as_exact_as_pytorch(name, dtype, options, monkeypatch):
    """Where nothing scales the logits, a GPU's stay in half precision."""
    module = sys.modules["megalite.ops.linear_cross_entropy"]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 131 * 200)
    labels = labels_for(401, 131)

    def work(x, w, b):
        return linear_cross_entropy(x, w, labels.to(x.device), None, b, options)

    inputs = torch.randn(401, 24), torch.randn(131, 24) * 0.3, torch.randn(131)
    check(name, work, *inputs, dtype=dtype)


@needs_emulator
def test_a_gpus_logits_cross_memory_in_half_precision():
    """The statistics read them, the gradient reads and writes them: 6 bytes beside the products."""
    rows, vocabulary = 24, 2048
    leaves = [torch.randn(n, 16).bfloat16().requires_grad_() for n in (rows, vocabulary)]
    simt = emulator()
    simt.reset_counters()
    with backend(SIMT_NAMES[0]):
        linear_cross_entropy(*leaves, torch.arange(rows))
    counts = [simt.counters()[kernel] for kernel in ("logit_statistics", "logit_gradient")]
    moved = sum(c["global_read_bytes"] + c["global_write_bytes"] for c in counts)
    assert 6 * rows * vocabulary <= moved <= 1.01 * 6 * rows * vocabulary + 6 * 256 * 4 * rows


@pytest.mark.parametrize(("device", "elements"), [("cpu", 7 << 21), ("meta", 1 << 28)])
def test_a_chunk_of_logits_is_of_the_devices_size(device: str, elements: int):
    labels, rows, height = torch.zeros(9000, device=device), torch.arange(9000), 128_000
    chunks = labelled_chunks(labels, height, rows)
    assert torch.equal(torch.cat(chunks), rows)
    largest = len(chunks[0]) * height
    assert elements / 2 < largest <= elements


def test_products_of_half_precision_add_up_in_fp32():
    factors = torch.full((2, 1), 0.5).bfloat16(), torch.full((1, 3), 0.5).bfloat16()
    begun = sum_of_products(None, *factors, torch.float32)
    assert begun.dtype == torch.float32
    total = sum_of_products(begun + 255.75, *factors, torch.float32)
    assert torch.equal(total, torch.full((2, 3), 256.25))  # bf16 would have 256


@pytest.mark.parametrize("name", SIMT_NAMES[:1])
@pytest.mark.parametrize(("rows", "chunks"), [(48, 1), (49, 3)])
def test_few_rows_are_one_chunk_whose_product_is_the_gradient(name, rows, chunks, monkeypatch):
    """Of [T, V] logits in half precision: no more bytes than an fp32 sum of [V, D]."""
    module = sys.modules["megalite.ops.linear_cross_entropy"]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 131 * 20)
    made = []
    monkeypatch.setattr(
        module, "sum_of_products", lambda *a: made.append(a[-1]) or sum_of_products(*a)
    )
    inputs = torch.randn(rows, 24), torch.randn(131, 24) * 0.3
    work = partial(linear_cross_entropy, labels=labels_for(rows, 131) % 131)
    check(name, work, *inputs, dtype=torch.bfloat16)
    ours = made[-chunks:]
    assert ours == [torch.bfloat16 if chunks == 1 else torch.float32] * chunks


@on_every_row_backend
@pytest.mark.parametrize("scale", [2.0**-22, 0.0])
def test_a_share_below_what_fp16_holds_keeps_its_gradients(name: str, scale: float):
    """1 / (4 million targets), times the loss scale in the backward pass."""
    device, generator = device_of(name), torch.Generator().manual_seed(5)
    values = (torch.randn(n, 24, generator=generator) * 0.3 for n in (40, 131))
    hidden, weight = (x.half().to(device).requires_grad_() for x in values)
    labels, found = labels_for(40, 131).to(device), []
    for dtype in (torch.float16, torch.float64):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
        with backend(name if dtype == torch.float16 else "reference"):
            shares = torch.full((40,), scale, device=device)
            (linear_cross_entropy(*leaves, labels, shares) * 65536.0).backward()
        found.append([leaf.grad.double().cpu() for leaf in leaves])
    for mine, exact in zip(*found, strict=True):
        assert (mine - exact).abs().max() <= 2.0**-9 * exact.abs().max()


@on_every_row_backend
def test_head_and_loss_is_a_weighted_sum_of_cross_entropy(name: str):
    hidden, weight, labels = torch.randn(33, 20), torch.randn(131, 20), labels_for(33, 131)
    weights = torch.rand(33)
    device = device_of(name)
    with backend(name):
        moved = (x.to(device) for x in (hidden, weight, labels, weights))
        ours = linear_cross_entropy(*moved).cpu()
    rows = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    torch.testing.assert_close(ours, (rows * weights).sum(), rtol=1e-5, atol=1e-5)


def test_a_cap_of_logits_is_that_of_its_definition():
    """Loss, log-probabilities and their gradients, by PyTorch's autograd of the definition."""
    labels, options = labels_for(20, 31), LossOptions(logit_scale=0.7, logit_cap=3.0)
    inputs = torch.randn(20, 8), torch.randn(31, 8)

    def capped(x, w):
        return 3.0 * torch.tanh(0.7 * (x @ w.T) / 3.0)

    def loss(x, w):
        return torch.nn.functional.cross_entropy(capped(x, w), labels, reduction="sum")

    def log_probs(x, w):
        found = torch.log_softmax(capped(x, w), -1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return torch.where(labels < 0, 0.0, found)

    pairs = [
        (lambda x, w: linear_cross_entropy(x, w, labels, options=options), loss),
        (lambda x, w: cross_entropy(x @ w.T, labels, options).sum(), loss),
        (lambda x, w: token_log_probs(x, w, labels, None, options)[0], log_probs),
    ]
    for ours, definition in pairs:
        for mine, theirs in zip(
            *(on("reference", torch.float64, f, *inputs) for f in (ours, definition)), strict=True
        ):
            for a, b in zip(mine, theirs, strict=False):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)  # a weight is fp32


def test_gradients_of_head_and_loss_are_given_once():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8)
    loss = linear_cross_entropy(hidden, weight, torch.arange(4))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward runs once"):
        loss.backward()


@on_every_row_backend
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (1.7, 0.0), (1.7, 2.5)])
def test_token_log_probs_are_as_exact_as_pytorch(name: str, scale: float, cap: float):
    generator = torch.Generator().manual_seed(6)
    labels = labels_for(401, 131)  # many rows, as the largest of few roundings is mostly luck
    hidden = torch.randn(401, 20, generator=generator)
    weight = torch.randn(131, 20, generator=generator) * 0.3
    options = LossOptions(logit_scale=scale, logit_cap=cap)
    check(
        name, lambda x, w: token_log_probs(x, w, labels.to(x.device), None, options), hidden, weight
    )


@on_every_row_backend
@pytest.mark.parametrize("cap", [0.0, 2.5])
def test_a_judgement_is_the_log_prob_and_whether_the_label_is_the_likeliest(name: str, cap: float):
    generator = torch.Generator().manual_seed(6)
    labels, options = labels_for(57, 13), LossOptions(logit_scale=1.7, logit_cap=cap)
    hidden = torch.randn(57, 20, generator=generator)
    weight = torch.randn(13, 20, generator=generator) * 0.3
    likeliest = (hidden @ weight.t()).argmax(-1)
    labels[::5], labels[1::7] = likeliest[::5], -100
    x, w, given = (one.to(device_of(name)) for one in (hidden, weight, labels))
    with backend(name):
        log_probs, is_likeliest = token_judgement(x, w, given, None, options)
        expected = token_log_probs(x, w, given, None, options)[0]
    assert torch.equal(log_probs, expected)
    assert torch.equal(is_likeliest.bool().cpu(), (labels == likeliest) & (labels >= 0))


@on_every_row_backend
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("axes", "rotary", "head_dim"), [(1, 64, 64), (1, 20, 33), (2, 32, 32), (1, 6, 16), (2, 24, 80)]
)
def test_rope_is_as_exact_as_pytorch(name, interleaved, axes, rotary, head_dim):
    positions = torch.randint(0, 500, (2, 9, axes), dtype=torch.int32)
    cos, sin = rope_tables(positions, rotary)
    x = torch.randn(2, 9, 3, head_dim)

    def work(y):
        tables = (t.to(y.device) for t in (cos, sin))
        return rope(y, *tables, interleaved=interleaved)

    check(name, work, x)
    check(name, work, x, dtype=torch.bfloat16)


LAYOUTS = {
    "whole": lambda x: x,
    "some heads of more": lambda x: x.repeat(1, 1, 2, 1)[:, :, 1:4],
    "heads before rows": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second dimension": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "no row": lambda x: x[:, :0],
}


@on_every_row_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(False, 1, 64, 64), (True, 1, 6, 16), (False, 2, 24, 33)],
)
def test_rope_in_place_gives_the_same_bits(name, layout, dtype, shape):
    interleaved, axes, rotary, head_dim = shape
    device = device_of(name)
    x = torch.randn(2, 9, 3, head_dim).to(dtype).to(device).requires_grad_()
    rows = LAYOUTS[layout](x.detach()).shape[1]
    positions = torch.randint(0, 500, (2, rows, axes), dtype=torch.int32)
    tables = [t.to(device) for t in rope_tables(positions, rotary)]
    upstream = torch.randn(2, rows, 3, head_dim).to(dtype).to(device)
    results = []
    for in_place in (False, True):
        x.grad = None
        y = LAYOUTS[layout](x.clone())
        with backend(name):
            turned = rope(y, *tables, interleaved=interleaved, in_place=in_place)
            assert (turned.data_ptr() == y.data_ptr()) == in_place or turned.numel() == 0
            turned.backward(upstream)
        results.append((turned.detach().clone(), x.grad))
    for apart, over in zip(*results, strict=True):
        assert torch.equal(apart, over)


@on_every_row_backend
def test_the_operator_refuses_to_write_over_elements_that_share_memory(name: str):
    x = torch.zeros(1, 2, 1, 4, device=device_of(name))
    tables = [t.to(x.device) for t in ANGLES]
    with (
        backend(name),
        pytest.raises(RuntimeError, match="memory of its own .* came \\[1, 2, 3, 4"),
    ):
        kernels(x).rope_(x.expand(1, 2, 3, 4), *tables, False, False)


@on_every_row_backend
def test_what_is_around_a_view_that_rope_turns_in_place_keeps_its_bits(name: str):
    x = torch.randn(2, 9, 6, 20, device=device_of(name))
    before = x.clone()
    tables = [t.to(x.device) for t in rope_tables(torch.arange(9).expand(2, 9), 12)]
    with backend(name):
        rope(x[:, :, 2:4], *tables, in_place=True)
        expected = rope(before[:, :, 2:4], *tables)
    before[:, :, 2:4] = expected
    assert torch.equal(x, before)


@on_every_row_backend
def test_rope_gradient_turns_back(name: str):
    cos, sin = rope_tables(torch.arange(50).expand(1, 50), 32)
    x = torch.randn(1, 50, 2, 32, requires_grad=True)
    with backend(name):
        device = device_of(name)
        rope(x.to(device), cos.to(device), sin.to(device)).backward(
            rope(x.detach().to(device), cos.to(device), sin.to(device))
        )
    torch.testing.assert_close(x.grad, x.detach(), rtol=1e-5, atol=1e-6)


@on_every_row_backend
@pytest.mark.parametrize("features", [1, 7, 64, 130])
@pytest.mark.parametrize("offset", [0, 3, 64])
def test_dropout_keeps_exactly_the_reference_mask(name: str, features: int, offset: int):
    x, samples = torch.randn(2, 5, features), torch.tensor([3, 2**33 + 1])
    results = {}
    for each in ("reference", name):
        with backend(each):
            device = device_of(each)
            results[each] = dropout(x.to(device), 0.3, 99, samples.to(device), 4, offset).cpu()
    assert torch.equal(results["reference"] == 0, results[name] == 0)
    torch.testing.assert_close(results["reference"], results[name])


@on_every_row_backend
@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: cross_entropy(torch.zeros(3, 4), torch.tensor([0, 4, 1])), "came 4 in row 1"),
        (lambda: cross_entropy(torch.zeros(3), torch.tensor([0])), "logits: must be"),
        (lambda: cross_entropy(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)), "labels"),
        (
            lambda: linear_cross_entropy(torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(3)),
            "hidden",
        ),
        (lambda: rope(torch.zeros(1, 2, 1, 4), *[torch.zeros(1, 2, 1, 3)] * 2), "must fit a head"),
        (
            lambda: rope(torch.zeros(1, 2, 1, 4, requires_grad=True), *ANGLES, in_place=True),
            "rope x: in place it must be no leaf that requires a gradient",
        ),
        (
            lambda: rope(torch.zeros(1, 2, 1, 4).expand(1, 2, 3, 4), *ANGLES, in_place=True),
            "rope x: in place each element must have memory of its own",
        ),
        (lambda: dropout(torch.zeros(2, 3), 0.1, 0, torch.zeros(2)), "must be \\[B, S, D\\]"),
    ],
)
def test_wrong_arguments_are_named(name: str, work, says: str):
    with backend(name), pytest.raises(ShapeError, match=says):
        work()
