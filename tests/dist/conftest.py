import pytest

from tests.dist.cluster import Cluster


@pytest.fixture(scope="session")
def cluster():
    started = Cluster()
    yield started
    started.close()
