"""Fault injection, to see a run recover: real signals, exceptions and poisoned gradients.

Off unless ``faults.kind`` says otherwise. An injected fault does what the operating system, the
network or bad data would do to the process; nothing else in the run knows of it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from megalite.config.section import Section
from megalite.distributed.launch import Launch
from megalite.engine.copies import INTEGERS, axes_of_copies
from megalite.engine.model import Model
from megalite.errors import ConfigError, tell
from megalite.layers.shards import gradient_of, local_part
from megalite.training.watchdog.heartbeat import LOCAL_POINTS, PHASES, WRITE_POINTS

POINTS = PHASES + WRITE_POINTS + LOCAL_POINTS
TOO_MUCH = 1 << 50  # bytes


class FaultConfig(Section):
    """A fault on purpose, to test recovery; none by default."""

    kind: Literal[
        "none", "kill", "stop", "raise", "hang", "slow", "skip", "nan", "drift", "flip", "memory"
    ] = Field(
        "none",
        description="what happens: none; kill (SIGKILL), stop (SIGSTOP), raise (an exception), "
        "hang (an endless wait), slow (a wait of delay_s), skip (the next all-reduce is left out), "
        "nan (a gradient that is not a number; in the phase reduce), drift (a copy of a weight "
        "that is no longer like the others; in the phases reduce and optimizer), flip (a wrong "
        "bit in what the first block here computes; in the phase forward_backward) or memory (more "
        "is asked for than any machine has)",
    )
    rank: int = Field(0, ge=0, description="rank of the process that it happens to")
    step: int = Field(1, ge=0, description="first step in which it happens")
    steps: int = Field(1, ge=1, description="number of steps in a row in which it happens")
    phase: str = Field("forward_backward", description=f"phase or write point: {', '.join(POINTS)}")
    delay_s: float = Field(0.0, ge=0, description="seconds from there until it happens")
    bit: int = Field(
        -2,
        ge=-64,
        le=63,
        description="bit that flip changes, from the lowest; -1: the sign, -2: "
        "the highest of the exponent",
    )
    again: bool = Field(
        False,
        description="whether flip happens each time that a step is computed, as a broken device's "
        "would, or once a step",
    )
    restart: int = Field(
        0,
        ge=-1,
        description="torchrun's restart count at which it happens; 0: the first start; "
        "-1: every start",
    )

    @model_validator(mode="after")
    def _check(self) -> "FaultConfig":
        if self.phase not in POINTS:
            raise ConfigError(f"--faults.phase {self.phase}: must be one of {', '.join(POINTS)}")
        if self.kind == "flip" and self.phase != "forward_backward":
            raise ConfigError(
                f"--faults.phase {self.phase}: computes nothing to flip a bit of: use "
                "forward_backward"
            )
        return self


class Fault:
    """A fault that this process may inject into itself; called at each phase and write point."""

    def __init__(self, config: FaultConfig, launch: Launch) -> None:
        """Arm it, if it is meant for this process and this start."""
        self._config = config
        is_now = config.restart in (-1, launch.restart)
        self._is_armed = config.kind != "none" and config.rank == launch.rank and is_now
        self._flipped = 0  # step in which a bit was

    def __call__(self, point: str, step: int, model: Model | None) -> None:
        """Make it happen, if this is the place."""
        config = self._config
        if not self._is_armed or point != config.phase:
            return
        if not config.step <= step < config.step + config.steps:
            return
        if config.kind == "flip" and self._flipped == step and not config.again:
            return
        tell(f"fault on purpose: {config.kind} of rank {config.rank}, step {step}, {point}")
        self._happen(config.kind, point, step, model)

    def _happen(self, kind: str, point: str, step: int, model: Model | None) -> None:
        config = self._config
        if kind in ("kill", "stop"):
            _later(config.delay_s, lambda: _signal_self(kind))
        elif kind == "nan":
            _poison(model, point)
        elif kind == "drift":
            _change_copy(model, point)
        elif kind == "flip":
            self._flipped = step
            _flip(model, config.bit)
        elif kind == "memory":
            _ask_for_too_much(model, point)
        elif kind == "skip":
            _leave_out_one_all_reduce()
        else:
            time.sleep(config.delay_s)
            if kind == "raise":
                raise RuntimeError(f"a fault on purpose in step {step}, {point}")
            if kind == "hang":
                threading.Event().wait()


def _later(delay_s: float, act: Callable[[], None]) -> None:
    if delay_s == 0:
        act()
        return
    timer = threading.Timer(delay_s, act)
    timer.daemon = True
    timer.start()


def _signal_self(kind: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


def _poison(model: Model | None, phase: str) -> None:
    """Make one element of one gradient NaN."""
    if model is None:
        raise ConfigError(f"--faults.phase {phase}: has no gradients to make nan: use reduce")
    for parameter in model.parameters():
        if parameter.grad is not None and local_part(gradient_of(parameter)).numel():
            local_part(gradient_of(parameter)).view(-1)[0] = torch.nan
            return


def _change_copy(model: Model | None, phase: str) -> None:
    """Add 5 to one element of a parameter that another process holds too."""
    if model is None:
        raise ConfigError(f"--faults.phase {phase}: has no weights that drift: use optimizer")
    for _, parameter in model.named_parameters():
        local, axes = local_part(parameter.detach()), axes_of_copies(parameter, model.mesh)
        if local.numel() and any(axis.size > 1 for axis in axes.values()):
            local.view(-1)[0] += 5
            return
    raise ConfigError("--faults.kind drift: no process has a copy of a weight in this layout")


def _flip(model: Model | None, bit: int) -> None:
    """Change a bit of one number that the first block here gives, in its next forward pass."""
    assert model is not None
    block = model.parts[0].blocks()[0]

    def flip(_block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        handle.remove()
        wrong = output.clone()
        bits = wrong.detach().view(-1)[:1].view(INTEGERS[wrong.element_size()])
        width = 8 * wrong.element_size()
        bits.bitwise_xor_(torch.ones_like(bits) << (bit % width))
        return wrong

    handle = block.register_forward_hook(flip)


def _ask_for_too_much(model: Model | None, phase: str) -> None:
    """Ask the device for more memory than there is, in passes while a micro-batch is under way."""
    if model is None or phase != "forward_backward":
        torch.empty(TOO_MUCH, dtype=torch.uint8)
        return
    device = model.mesh.device

    def ask(_block: nn.Module, _inputs: Any) -> None:
        torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)

    model.parts[0].blocks()[0].register_forward_pre_hook(ask)


def _leave_out_one_all_reduce() -> None:
    """The next ``dist.all_reduce`` of this process returns without communicating."""
    real = dist.all_reduce

    def leave_out(*_arguments: Any, **_options: Any) -> None:
        dist.all_reduce = real

    dist.all_reduce = leave_out
