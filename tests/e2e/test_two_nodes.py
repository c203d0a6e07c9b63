"""Two nodes: network namespaces joined by a cable, a torchrun in each, and a process that dies."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import command_line, environment, losses

pytestmark = pytest.mark.dist

ADDRESSES = ("10.213.77.1", "10.213.77.2")
NAMES = tuple(f"megalite{os.getpid()}-{node}" for node in range(2))
CABLE = tuple(f"mg{os.getpid() % 100000}{end}" for end in "ab")


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def join(node: int) -> None:
    """Put an end of the cable into a namespace and bring it up."""
    ip("link", "set", CABLE[node], "netns", NAMES[node])
    inside = ("-n", NAMES[node])
    ip(*inside, "addr", "add", f"{ADDRESSES[node]}/24", "dev", CABLE[node])
    ip(*inside, "link", "set", CABLE[node], "up")
    ip(*inside, "link", "set", "lo", "up")


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """The names of two namespaces that reach each other and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2) to make network namespaces with")
    try:
        for name in NAMES:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
        cable = ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        if cable.returncode:
            pytest.skip(f"veth pairs are not allowed here: {cable.stderr.strip()}")
        for node in range(2):
            join(node)
        yield NAMES
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def start(node: int, words: list[str], restarts: int) -> subprocess.Popen:
    """The README's command for several nodes, on one of them."""
    megalite = command_line(words)
    meeting = f"--rdzv-endpoint={ADDRESSES[0]}:29500"
    host = f"--rdzv-conf=is_host={int(node == 0)},last_call_timeout=1"  # names here mean nothing
    torchrun = [megalite[0], "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-id=test", meeting, host]
    torchrun += [f"--local-addr={ADDRESSES[node]}", f"--max-restarts={restarts}"]
    return subprocess.Popen(
        ["ip", "netns", "exec", NAMES[node], *torchrun, *megalite[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"GLOO_SOCKET_IFNAME": CABLE[node]},
    )


def test_two_nodes_give_the_losses_of_one_process_over_a_restart(work, whole, nodes):
    """A rank is killed on its node, when an earlier save is whole; both torchruns go on from it."""
    run = work.new_run()
    words = work.pretrain_words(run, "--parallel.shard", "2", "--parallel.timeout_s", "60")
    words += ["--faults.kind", "kill", "--faults.rank", "1", "--faults.step", "12"]
    started = [start(node, words, restarts=3) for node in range(2)]
    try:
        said = [process.communicate(timeout=250)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes == [0, 0], "\n".join(said)[-6000:]
    assert "resuming from" in "".join(said)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    report = next(Path(run).glob("faults/restart-*/report.txt")).read_text()
    assert "rank 1 (" in report
    assert "was killed or crashed" in report or "has not answered" in report
