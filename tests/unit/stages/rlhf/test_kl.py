import math

import pytest

from megalite.errors import ConfigError
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


@pytest.mark.parametrize("kl", [-3.0, 0.0, 1.0, 60.0, math.inf])
@pytest.mark.parametrize("responses", [1, 2, 16, 10**6])
def test_a_step_of_any_size_changes_the_coefficient_by_a_fifth_at_most(kl, responses):
    config = KLConfig(coefficient=0.05, target=6.0, horizon=2)
    assert 0.8 * 0.05 <= adapt(config, 0.05, kl, responses) <= 1.2 * 0.05


def test_a_kl_that_is_no_number_leaves_the_coefficient():
    assert adapt(KLConfig(target=6.0), 0.05, math.nan, 16) == 0.05


def test_a_coefficient_of_nothing_cannot_adapt():
    with pytest.raises(ConfigError, match=r"--kl.coefficient 0: must be above 0 with kl.target 6"):
        KLConfig(coefficient=0, target=6)


def test_a_policy_that_has_not_moved_yet_does_not_wind_the_coefficient_down():
    config = KLConfig(coefficient=0.08, target=7.0, horizon=64, least=0.08)
    coefficient = 0.08
    for kl in (0.0, 0.5, 2.0, 6.0):
        coefficient = adapt(config, coefficient, kl, 64)
        assert coefficient == 0.08
    coefficient = adapt(config, coefficient, 9.0, 64)
    assert coefficient == pytest.approx(0.08 * 1.2)
    assert adapt(config, coefficient, 0.0, 64) == 0.08


@pytest.mark.parametrize("told", [{}, {"target": 6.0, "coefficient": 0.01}])
def test_a_least_coefficient_needs_a_target_and_a_start_that_is_not_below_it(told):
    with pytest.raises(ConfigError, match=r"--kl.least 0.02: bounds a coefficient that adapts"):
        KLConfig(least=0.02, **told)
