"""Which errors tell that another process is out of reach."""

import pytest
from torch.distributed import DistNetworkError, DistStoreError

from megalite.errors import MegaliteError
from megalite.training.watchdog.watchdog import _is_lost_connection

RESET = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:63693: Connection reset by peer"


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_a_lost_connection_is_seen_through_the_error_of_a_pipelines_pass():
    lost = raised(RuntimeError(RESET))
    wrapped = raised(
        RuntimeError("\n    Failed to run stage backward:\n    Stage output: ()"), lost
    )
    assert _is_lost_connection(lost)
    assert _is_lost_connection(wrapped)
    assert _is_lost_connection(raised(RuntimeError("1F1B failed"), wrapped))
    for kind in (DistStoreError, DistNetworkError):
        assert _is_lost_connection(raised(kind("failed to recv, got 0 bytes")))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("\n    Failed to run stage backward:\n    Stage output: ()"),
        RuntimeError("could not restore the storage"),
        ValueError("connection"),
        MegaliteError("connection"),
    ],
)
def test_an_error_of_this_process_is_its_own(error):
    assert not _is_lost_connection(raised(error))
    assert not _is_lost_connection(raised(RuntimeError("a bug"), ValueError("shape")))
