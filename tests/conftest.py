"""Settings of all tests: a busy machine is no failure of a property, a test draws the same anew."""

import os
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

from megalite.distributed.mesh import leave_process_group

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the real Hub, whatever it names

settings.register_profile("megalite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("megalite")

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:  # workers and commands inherit it: no test writes into a home
    CACHES = tempfile.TemporaryDirectory(prefix="megalite-caches-")
    os.environ["XDG_CACHE_HOME"] = CACHES.name


def pytest_addoption(parser):
    parser.addoption(
        "--processes",
        type=int,
        metavar="N",
        help="start only so many for tests/dist; layouts that need more are skipped",
    )
    parser.addoption(
        "--recipes",
        default="",
        metavar="PART",
        help="recipes whose names have this, or all, that run 30 steps in each layout",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers take whole files, whose tests share fixtures; tests/dist shares processes."""
    from xdist.scheduler import LoadScopeScheduling

    class Shared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "tests/dist" if path.startswith("tests/dist/") else path

    return Shared(config, log)


@pytest.fixture(autouse=True, scope="module")
def _in_no_group():
    """A file begins without the process group of a run that was refused in another file."""
    leave_process_group()


@pytest.fixture(autouse=True)
def _seeded():
    """Random tensors of a test are the same in every run and whatever ran before it.

    A worker has one core, whatever number of threads a command that it ran has chosen.
    """
    torch.manual_seed(0)
    if IS_WORKER:
        torch.set_num_threads(1)
