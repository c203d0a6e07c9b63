"""Where a thread of this process is, from its innermost Python frame."""

from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).parents[2]
COLLECTIVES = "distributed_c10d.py"  # PyTorch's file of all collectives
WAITING = PACKAGE / "distributed" / "waiting.py"  # goes around waits that others begin


@dataclass(frozen=True)
class Location:
    """Where a thread is.

    Attributes:
        text: the function and line of this package, and what was called there.
        in_collective: whether that is a call of torch.distributed.
    """

    text: str = ""
    in_collective: bool = False


def position(frame: FrameType | None) -> tuple[tuple[int, int], ...]:
    """The code object and instruction of every frame; it changes whenever the thread moves."""
    instructions = []
    while frame is not None:
        instructions.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(instructions)


def locate(frame: FrameType | None) -> Location:
    """Where a thread is, in words."""
    in_collective = False
    while frame is not None and Path(frame.f_code.co_filename) == WAITING:
        frame, in_collective = frame.f_back, True
    if frame is None:
        return Location()
    called = frame.f_code.co_name
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            text = f"{called} ({'/'.join(path.parts[-2:])}:{frame.f_lineno})"
            return Location(text, in_collective)
        if path.name == COLLECTIVES:
            called, in_collective = frame.f_code.co_name, True
        frame = frame.f_back
    return Location(called, in_collective)
