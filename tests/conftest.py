"""Settings of all tests: a busy machine is no failure of a property, a test draws the same anew."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the real Hub, whatever it names

settings.register_profile("megalite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("megalite")

HERE = Path(__file__).parent
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # one worker a core


def pytest_addoption(parser):
    parser.addoption(
        "--processes",
        type=int,
        metavar="N",
        help="start only so many for tests/dist; layouts that need more are skipped",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What shares started processes, or a file's fixtures, is run by one worker."""
    for item in items:
        folder, *rest = item.path.relative_to(HERE).parts
        group = folder if folder == "dist" else "/".join([folder, *rest])
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _seeded():
    """Random tensors of a test are the same in every run and whatever ran before it."""
    torch.manual_seed(0)
