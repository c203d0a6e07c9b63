from pathlib import Path

import pytest

from tests.dist.cluster import PROCESSES, Cluster

HERE = Path(__file__).parent

pytest.register_assert_rewrite("tests.dist.same_training")  # its failures show their values


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All tests of this folder start several processes."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.dist)


@pytest.fixture(scope="session")
def cluster(request):
    started = Cluster(request.config.getoption("--processes") or PROCESSES)
    yield started
    started.close()
