import pytest

from megalite.stages.rlhf.kl import KLConfig, adapt


def test_a_fixed_coefficient_stays():
    assert adapt(KLConfig(coefficient=0.1), 0.1, 100.0, 512) == 0.1


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.6, 1 + 0.1 * 0.0512), (60.0, 1 + 0.2 * 0.0512), (0.0, 1 - 0.2 * 0.0512)]
)
def test_an_adaptive_coefficient_follows_the_clipped_error(kl, factor):
    config = KLConfig(coefficient=0.15, target=6.0, horizon=10000)
    assert adapt(config, 0.15, kl, 512) == pytest.approx(0.15 * factor)


def test_an_adaptive_coefficient_brings_a_responding_kl_to_its_target():
    config = KLConfig(coefficient=0.15, target=6.0, horizon=2000)
    coefficient = 0.15
    for _ in range(400):
        coefficient = adapt(config, coefficient, 1.5 / coefficient, 64)
    assert 1.5 / coefficient == pytest.approx(6.0, rel=0.1)
