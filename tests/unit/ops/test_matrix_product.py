"""Products by oneDNN, on any processor that has it: forward, gradients, sums, and who takes it."""

import pytest
import torch
from torch.nn import functional

from megalite import torch_private
from megalite.ops import linear_cross_entropy, token_log_probs
from megalite.ops.matrix_product import LEAST, add_product, learned_product, product, takes_onednn
from megalite.training.metrics.device import measured_tflops

ROWS, WIDTH, HEIGHT = 131, 250, 90  # more multiplications than the least


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN takes what is large enough, whoever made the processor; tells how often it did."""
    calls, multiply = [], torch_private.onednn_product

    def counted(*arguments):
        calls.append(arguments[0].shape)
        return multiply(*arguments)

    monkeypatch.setattr(torch_private, "has_faster_onednn", lambda: True)
    monkeypatch.setattr(torch_private, "onednn_product", counted)
    return calls


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def near(got, expected):
    """Within twice the rounding that a sum of fp32 products of so many terms has."""
    return float((got.double() - expected).norm() / expected.norm()) < 1e-6


def gradients(multiply, x, weight, bias, upstream):
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = multiply(*leaves)
    y.backward(upstream)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (3, 47, WIDTH)])
def test_a_product_and_its_gradients_are_those_of_fp64(onednn, shape):
    inputs = normal(*shape), normal(HEIGHT, WIDTH), normal(HEIGHT), normal(*shape[:-1], HEIGHT)
    ours = gradients(learned_product, *inputs)
    assert len(onednn) == 3
    plain = gradients(functional.linear, *(t.double() for t in inputs))
    for got, expected in zip(ours, plain, strict=True):
        assert got.shape == expected.shape
        assert near(got, expected)


def test_only_gradients_that_are_asked_for_are_made(onednn):
    x, weight = normal(ROWS, WIDTH).requires_grad_(), normal(HEIGHT, WIDTH)
    learned_product(x, weight).sum().backward()
    assert len(onednn) == 2
    assert weight.grad is None


def test_a_sum_is_added_to_in_pieces(onednn):
    left, right = normal(15_000, 40), normal(80, 40)
    total = normal(15_000, 80)
    expected = total.double() + left.double() @ right.double().t()
    assert add_product(total, left.t().contiguous().t(), right) is total
    assert near(total, expected)
    assert len(onednn) == 2


def test_the_head_and_log_probabilities_have_the_gradients_of_mkl(onednn, monkeypatch):
    hidden, weight, bias = normal(ROWS, WIDTH) / 16, normal(HEIGHT, WIDTH), normal(HEIGHT)
    labels = torch.arange(ROWS) % HEIGHT
    operators = {
        "loss": lambda *inputs: linear_cross_entropy(*inputs[:2], labels, bias=inputs[2]),
        "log_probs": lambda *inputs: token_log_probs(*inputs[:2], labels, bias=inputs[2])[0].sum(),
    }
    for operator in operators.values():
        one = torch.ones(())
        ours = gradients(operator, hidden, weight, bias, one)
        assert len(onednn) >= 3
        with monkeypatch.context() as patch:
            patch.setattr(torch_private, "has_faster_onednn", lambda: False)
            plain = gradients(operator, hidden, weight, bias, one)
        onednn.clear()
        for got, expected in zip(ours, plain, strict=True):
            assert near(got, expected.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_formats_small_products_and_autocast_are_pytorchs(onednn, dtype):
    x, weight = normal(ROWS, WIDTH), normal(HEIGHT, WIDTH)
    assert takes_onednn(x, weight)
    rows = LEAST // (HEIGHT * WIDTH)
    assert not takes_onednn(x[:rows], weight)
    assert not takes_onednn(x.to(dtype), weight.to(dtype))
    assert not takes_onednn(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_onednn(x, weight)
        assert learned_product(x, weight).dtype == torch.bfloat16
    assert torch.equal(product(x[:rows], weight), functional.linear(x[:rows], weight))
    assert torch.equal(product(x.to(dtype), weight.to(dtype)), x.to(dtype) @ weight.to(dtype).t())
    assert not onednn


def test_the_rate_of_a_processor_that_mfu_divides_by_is_that_of_these_products(onednn):
    measured_tflops.cache_clear()
    assert measured_tflops(torch.device("cpu"), torch.float32, seconds=0.01) > 0
    assert onednn
    measured_tflops.cache_clear()
