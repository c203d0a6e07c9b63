"""What a layout trained beside what one process did: losses, norms and every gradient."""

from collections.abc import Sequence

import pytest
from torch import Tensor

Training = tuple[Sequence[float], Sequence[float], dict[str, Tensor]]


def check_same_training(
    results: Sequence[Training], alone: Training, of_norms: float, floor: float, model: str = ""
) -> None:
    """Compare what each rank saw with one process; together the ranks have every gradient.

    Args:
        results: losses, gradient norms and the last gradients of each rank.
        alone: those of one process.
        of_norms: relative bound of the gradient norms.
        floor: absolute bound of a gradient's difference, beside 1e-4 of its norm.
        model: what is compared, for the message.
    """
    losses, norms, gradients = alone
    seen = set()
    for their_losses, their_norms, their_gradients in results:
        assert their_losses == pytest.approx(losses, rel=1e-5), model
        assert their_norms == pytest.approx(norms, rel=of_norms), model
        for name, gradient in their_gradients.items():
            difference = (gradient - gradients[name]).norm()
            assert difference <= 1e-4 * gradients[name].norm() + floor, (model, name)
        seen |= set(their_gradients)
    assert seen == set(gradients), model
