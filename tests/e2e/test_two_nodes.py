"""Two nodes: network namespaces joined by a cable, a torchrun in each, and a process that dies."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import environment, losses

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


HOOK = """
if [ -e "{disk}" ]; then
  cp "{run}/metrics.jsonl" "{work}/before-{node}.jsonl"
  if [ {node} = 1 ]; then rm -r "{disk}"; fi
fi
exec {python} -m megalite "$@" --checkpoint.local.folder "{disk}"
"""


def start(node: int, hook: Path, words: list[str], restarts: int) -> subprocess.Popen:
    """The README's command for several nodes, on one of them, whose hook starts the process."""
    meeting = f"--rdzv-endpoint={ADDRESSES[0]}:29500"
    host = f"--rdzv-conf=is_host={int(node == 0)},last_call_timeout=1"  # names here mean nothing
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-id=test", meeting, host]
    torchrun += [f"--local-addr={ADDRESSES[node]}", f"--max-restarts={restarts}", "--no-python"]
    return subprocess.Popen(
        ["ip", "netns", "exec", NAMES[node], *torchrun, "sh", str(hook), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"GLOO_SOCKET_IFNAME": CABLE[node]},
    )


def hook_of(node: int, run: Path, folder: Path) -> Path:
    """What starts a node's process: by its second start node 1 is a new one, with an empty disk."""
    path = folder / f"hook-{node}.sh"
    disk = folder / f"disk-{node}"
    told = {"node": node, "run": run, "work": folder, "disk": disk, "python": sys.executable}
    path.write_text(HOOK.format(**told))
    return path


def steps_of(path: Path) -> dict[int, float]:
    """The losses of a file of metrics, by step."""
    rows = map(json.loads, path.read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_two_nodes_give_the_losses_of_one_process_over_a_lost_node(work, whole, nodes, tmp_path):
    """A rank is killed with its node, when a local save is whole; both torchruns go on from it.

    Its part comes from the neighbour's copy. What was learned behind that save before the kill is
    learned again, bit for bit.
    """
    run = work.new_run()
    words = work.pretrain_words(run, "--parallel.shard", "2", "--parallel.timeout_s", "60")
    words += ["--checkpoint.local.every", "1", "--faults.kind", "kill", "--faults.rank", "1"]
    words += ["--faults.phase", "local_delete", "--faults.step", "11", "--faults.steps", "9"]
    hooks = [hook_of(node, run, tmp_path) for node in range(2)]
    started = [start(node, hooks[node], words, restarts=3) for node in range(2)]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes == [0, 0], "\n".join(said)[-6000:]
    log = (run / "log.txt").read_text()
    (gone_on,) = re.findall(r"resuming from (\S+)", log)
    assert gone_on.startswith(str(tmp_path / "disk-0")), log
    final, before = steps_of(run / "metrics.jsonl"), steps_of(tmp_path / "before-0.jsonl")
    assert list(final.values()) == pytest.approx(losses(whole), rel=1e-5)
    assert max(before) >= int(gone_on[-8:]) >= 11
    assert before == {step: final[step] for step in before}
    report = next(run.glob("faults/restart-*/report.txt")).read_text()
    assert "rank 1 (" in report
    assert "was killed or crashed" in report or "has not answered" in report
