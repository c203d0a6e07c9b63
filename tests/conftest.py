"""Settings of all tests: a busy machine is no failure of a property, a test draws the same anew."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("megalite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("megalite")


def pytest_addoption(parser):
    parser.addoption(
        "--processes",
        type=int,
        metavar="N",
        help="start only so many for tests/dist; layouts that need more are skipped",
    )


@pytest.fixture(autouse=True)
def _seeded():
    """Random tensors of a test are the same in every run and whatever ran before it."""
    torch.manual_seed(0)
