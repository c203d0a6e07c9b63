"""One run at a time in a folder, whatever became of the one before."""

import json
import os
import signal
import threading
import time

import pytest

from megalite.errors import ConfigError
from megalite.training.folder.lock import NAME, FolderLock, shows, write_whole


def hold_in_child(folder) -> int:
    """A process that takes the lock and never gives it back."""
    child = os.fork()
    if child == 0:
        try:
            FolderLock(folder).acquire()
            (folder / "held").touch()
            time.sleep(60)
        finally:
            os._exit(1)
    until = time.monotonic() + 30
    while not (folder / "held").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return child


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    child = hold_in_child(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"another run \(\S+, process {child}\) is writing there"
    ):
        FolderLock(tmp_path).acquire()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    again = FolderLock(tmp_path)
    again.acquire()
    assert shows(tmp_path, again.nonce)
    again.release()
    assert (tmp_path / NAME).read_text().strip() == ""


def test_a_damaged_text_holds_nothing(tmp_path):
    (tmp_path / NAME).write_bytes(b"\xff" * 512)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert shows(tmp_path, lock.nonce)
    lock.release()


def test_a_run_of_this_process_is_refused_while_it_lasts_and_not_if_it_never_began(tmp_path):
    first, second, third = (FolderLock(tmp_path) for _ in range(3))
    first.acquire()
    second.acquire()
    second.is_in_use = True
    with pytest.raises(ConfigError, match="another run"):
        third.acquire()
    assert shows(tmp_path, second.nonce)
    second.release()
    third.acquire()
    third.release()


def of_another_node(beat: int) -> str:
    return json.dumps(
        {"host": "far", "pid": 7, "boot": "another", "nonce": "x", "beat": beat, "beat_s": 0.1}
    )


def test_a_holder_on_another_node_that_stands_still_is_gone(tmp_path):
    """This node's kernel knows nothing of it, as where the file system carries no locks."""
    (tmp_path / NAME).write_text(of_another_node(3))
    lock = FolderLock(tmp_path, beat_s=0.05)
    started = time.monotonic()
    lock.acquire()
    assert time.monotonic() - started >= 0.3
    time.sleep(0.2)
    assert json.loads((tmp_path / NAME).read_text())["beat"] > 0
    lock.release()


def test_a_holder_on_another_node_that_beats_is_respected(tmp_path):
    is_over = threading.Event()

    def beat() -> None:
        file = os.open(tmp_path / NAME, os.O_WRONLY | os.O_CREAT)
        for number in range(1000):
            write_whole(file, of_another_node(number))
            if is_over.wait(0.05):
                break
        os.close(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        time.sleep(0.1)
        with pytest.raises(ConfigError, match=r"another run \(far, process 7\)"):
            FolderLock(tmp_path, beat_s=0.05).acquire()
    finally:
        is_over.set()
        thread.join()


def test_a_text_that_changes_is_never_read_in_part(tmp_path):
    """A reader that met an emptied file would take a folder that another node writes into."""
    file = os.open(tmp_path / NAME, os.O_WRONLY | os.O_CREAT)
    write_whole(file, of_another_node(0))
    child = os.fork()
    if child == 0:
        for number in range(1, 20000):
            write_whole(file, of_another_node(number))
        os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        assert json.loads((tmp_path / NAME).read_text())["host"] == "far"
    os.close(file)
