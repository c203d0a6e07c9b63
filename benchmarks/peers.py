"""Peers that are no dependency of ours: each in an environment of its own below runs/peers."""

import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path("runs/peers")


class NoPeer(Exception):
    """A peer can't be had here; the message says why."""


def interpreter(package: str) -> str:
    """Python with the newest release of a package, beside what is installed here.

    PyTorch and transformers are those of this interpreter, so both sides compute alike.

    Raises:
        NoPeer: it can't be installed.
    """
    folder = FOLDER / package
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)], package)
        shared = Path(sysconfig.get_path("purelib", vars={"base": str(folder)})) / "shared.pth"
        shared.write_text(sysconfig.get_path("purelib") + "\n")
        run([str(python), "-m", "pip", "install", "--quiet", package], package)
        (folder / "complete").touch()
    return str(python)


def run(words: list[str], package: str) -> None:
    """Run a command of an installation.

    Raises:
        NoPeer: it failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise NoPeer(f"{package} can't be installed: {reason}")
