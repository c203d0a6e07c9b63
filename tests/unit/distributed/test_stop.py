"""What asks a run to stop, and that nothing of it stays behind."""

import os
import signal
import threading

import pytest

from megalite.distributed.stop import SIGNALS, StopRequest
from megalite.errors import Stopped


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


def test_signals_are_as_before_behind_the_block():
    before, request = handlers(), StopRequest()
    with request.caught(world_size=2):
        with request.caught():
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) != before[1]
    assert handlers() == before
    with request.caught():
        assert request.received == 0
    assert handlers() == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_alone_stops_at_once_before_its_first_step_and_not_in_it(number):
    before, request = handlers(), StopRequest()
    with pytest.raises(Stopped, match="there is nothing to save"), request.caught():
        os.kill(os.getpid(), number)
    assert handlers() == before
    with request.caught():
        request.begin()
        os.kill(os.getpid(), number)
        assert request.received == number
    assert handlers() == before


def test_a_thread_catches_nothing_and_runs():
    before, seen, request = handlers(), [], StopRequest()

    def run() -> None:
        with request.caught():
            seen.append(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
