"""The line about a step that a run shows, as wide as the terminal."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from megalite.training.checkpoint.write_errors import DISK_FULL

SHOWN = {
    "loss": "loss {:.4f}",
    "heldout_loss": "held-out {:.4f}",
    "heldout_accuracy": "held-out accuracy {:.1%}",
    "reward": "reward {:.3f}",
    "kl": "kl {:.3f}",
    "heldout_reward": "held-out reward {:.3f}",
    "heldout_kl": "held-out kl {:.3f}",
    "dropped_steps": "dropped {:.0f}",
    "learning_rate": "lr {:.2e}",
    "batch_size": "batch {:,.0f}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "hfu": "HFU {:.1%}",
    "bubble": "bubble {:.1%}",
    "bubble_theory": "in theory {:.1%}",
    "rollout_bubble": "of answers {:.1%}",
    "left_s": "{} left",
}
# What a narrow terminal does without, first to last.
OMITTED = (
    "hfu",
    "bubble_theory",
    "rollout_bubble",
    "batch_size",
    "learning_rate",
    "bubble",
    "mfu",
    "tokens_per_s",
    "heldout_kl",
    "kl",
    "heldout_reward",
    "left_s",
    "heldout_accuracy",
    "heldout_loss",
    "dropped_steps",
    "loss",
    "reward",
    "step",
)
SEPARATOR = " | "


class Console:
    """The console of a run; on a terminal a step's line replaces the one before.

    One that is gone, or a file on a full disk, ends no run: log.txt has the lines, too.
    """

    def __init__(self, total_steps: int, done: Callable[[int], int] = int) -> None:
        """Begin with nothing shown.

        Args:
            total_steps: of the run, for the time left.
            done: what was done after so many steps, in units that take equally long each.
        """
        self._total, self._done = total_steps, done
        self._is_line_open = False
        self._first: tuple[int, float] | None = None  # the first step that was shown, and when

    def parts(self, step: int, values: Mapping[str, float]) -> dict[str, str]:
        """The parts of a step's line, by what they tell."""
        parts = {"step": f"step {step}/{self._total}"}
        parts |= {key: form.format(values[key]) for key, form in SHOWN.items() if key in values}
        parts |= {key: text for key, value in values.items() if (text := _of_a_set(key, value))}
        if (left := self._left_s(step)) is not None:
            parts["left_s"] = SHOWN["left_s"].format(_duration(left))
        return parts

    def _left_s(self, step: int) -> float | None:
        """Seconds to the end, from the mean of the steps so far, evaluations and saves included."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
        if step <= self._first[0]:
            return None
        each = (now - self._first[1]) / (self._done(step) - self._done(self._first[0]))
        return (self._done(self._total) - self._done(step)) * each

    def show(self, parts: Mapping[str, str]) -> None:
        """Show a step's line."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            _write("\r\x1b[K" + fitted(parts, width))
            self._is_line_open = True
        else:
            _write(whole(parts) + "\n")

    def say(self, text: str) -> None:
        """Show a line of its own."""
        _write(("\n" if self._is_line_open else "") + text + "\n")
        self._is_line_open = False

    def close(self) -> None:
        """End the line."""
        _write("\n" if self._is_line_open else "", is_last=True)
        self._is_line_open = False


def _write(text: str, is_last: bool = False) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if is_last or error.errno not in DISK_FULL:  # Python writes what is left when it ends
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_a_set(key: str, value: float) -> str:
    """A metric of a held-out set, or a reward, with a name; empty for another metric."""
    metric, _, name = key.partition("/")
    said = SHOWN.get(metric, "").format(value) if name else ""
    before, after = ("held-out", f"held-out {name}") if "held-out" in said else (metric, key)
    return said.replace(before, after, 1)


def whole(parts: Mapping[str, str]) -> str:
    """All parts of a line, however long."""
    return SEPARATOR.join(parts.values())


def fitted(parts: Mapping[str, str], width: int) -> str:
    """The parts of a line in ``width`` columns, the less telling ones left out as need be."""
    kept = dict(parts)
    for key in (*(key for key in parts if "/" in key), *OMITTED):
        if len(whole(kept)) <= width:
            break
        kept.pop(key, None)
    return whole(kept)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
