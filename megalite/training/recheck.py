"""Steps that are computed again, to tell a device that computes wrongly from samples that are odd.

All results are functions of samples, parameters and seed, bit for bit. So a step that is computed
twice from one state and differs met a fault that came once. One that doesn't differ is right, or
its device is wrong each time: then all data-parallel ranks compute the same rows, and what most of
them have is right.

Source: Megatron-LM's rerun state machine (megatron/core/rerun_state_machine.py).
"""

import math
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from megalite.config.section import Section
from megalite.distributed.gather import gather_objects
from megalite.distributed.sums import are_true_anywhere
from megalite.engine.copies import bit_sum
from megalite.engine.model import Item, Model
from megalite.errors import PersistentFault, TransientFault
from megalite.layers.shards import local_part

ODD = 2.0  # times another's norm: a gradient of the same rows that is hardly right


class RecheckConfig(Section):
    """Steps that are computed again before they change anything, to find devices that are wrong."""

    every: int = Field(
        0, ge=0, description="steps between those that are computed again by schedule; 0: none"
    )
    suspicious: bool = Field(
        False,
        description="whether a step whose loss or gradient's norm is a spike or not finite is "
        "computed again; the host then waits for the numbers of each step",
    )
    transient: Literal["go_on", "stop"] = Field(
        "go_on",
        description="what follows a fault that didn't come again; go_on: a line, and training with "
        "what was computed twice alike; stop: the run ends with exit code 5",
    )


@dataclass(frozen=True)
class Passed:
    """What the passes of a step gave; the gradients are in the parameters.

    Attributes:
        norm: of the gradients before clipping, fp64 scalar.
        bad: the number of processes with gradients that are not finite, fp64 scalar.
        totals: sums over all processes by name, fp64 scalars.
        own_loss: of this data-parallel rank's rows, fp64 scalar.
    """

    norm: Tensor
    bad: Tensor
    totals: Mapping[str, Tensor]
    own_loss: Tensor


@dataclass(frozen=True)
class Passes:
    """How a step is computed.

    Attributes:
        again: computes it as it was.
        of: computes other micro-batches, their gradients times a number.
        items: this data-parallel rank's micro-batches.
    """

    again: Callable[[], Passed]
    of: Callable[[Sequence[Item], float], Passed]
    items: Sequence[Item]


class Bits(NamedTuple):
    """Sums of bits of what a process has.

    Attributes:
        gradients: of each of its gradients.
        loss: of its own rows.
    """

    gradients: tuple[int, ...]
    loss: int


class Verdict(NamedTuple):
    """What came out of a step that was computed again and is trained on."""

    kind: Literal["right", "undecided", "transient"]
    words: str

    @property
    def code(self) -> float:
        """As a metric."""
        return {"right": 0.0, "undecided": 1.0, "transient": 2.0}[self.kind]


class Trial(NamedTuple):
    """What one data-parallel rank makes of the rows that all of them compute.

    Attributes:
        name: of its processes.
        norm: of its gradient.
        bits: of its gradient, on all processes, and of its loss.
    """

    name: str
    norm: float
    bits: tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]


class Recheck:
    """Decides which steps are computed again, and judges what comes out; all processes alike.

    Attributes:
        bounds: above which a metric is suspicious.
        is_due: whether the next step is computed again whatever its numbers.
    """

    def __init__(self, config: RecheckConfig, model: Model, has_loss_scale: bool) -> None:
        """Watch over a model's steps.

        Args:
            config: of the section.
            model: that learns.
            has_loss_scale: gradients that are not finite are then part of looking for the scale.
        """
        self._config, self._model, self._has_scale = config, model, has_loss_scale
        self._mesh, rank = model.mesh, dist.get_rank() if dist.is_initialized() else 0
        self._name = f"rank {rank} ({socket.gethostname()})"
        self.bounds: Mapping[str, float] = {}
        self.is_due = False
        self._verdicts: list[Verdict] = []

    def taken(self) -> list[Verdict]:
        """Of the steps that were computed again since this was asked."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def wants(self, passed: Passed) -> str:
        """Why a step is to be computed again; empty where it isn't. The host may wait for it."""
        if self.is_due:
            self.is_due = False
            return "by schedule"
        if not self._config.suspicious:
            return ""
        if float(passed.bad):
            return "" if self._has_scale else "its gradients are not finite"
        numbers = {**passed.totals, "grad_norm": passed.norm}
        above = [name for name, bound in self.bounds.items() if not float(numbers[name]) <= bound]
        return f"a spike of {above[0]}" if above else ""

    def judge(self, why: str, passed: Passed, passes: Passes) -> Passed:
        """Compute a step again; gives what to train on.

        Comm: the passes of one or two more steps; where they agree, of as many as there are
        data-parallel ranks, and one rank's micro-batches; a few numbers of each process.

        Args:
            why: the step is computed again.
            passed: what its first passes gave.
            passes: compute it.

        Raises:
            TransientFault: results differ, and a third one from both; or ``transient`` is stop.
            PersistentFault: a rank makes of the same rows what the others don't.
        """
        first = self._bits(passed)
        second = self._bits(passed := passes.again())
        text = f"computed again ({why})"
        if self._anywhere(second != first):
            return self._came_once(text, first, second, passes)
        if self._mesh.dp.size == 1:
            words = (
                f"{text}: the same result: right, or wrong each time: this layout has no other "
                "data-parallel rank that could compute the same rows"
            )
            self._verdicts.append(Verdict("undecided", words))
            return passed
        trials = self._trials(passed, passes)
        self._verdicts.append(judged(f"{text}: the same result", trials))
        return passes.again()

    def _came_once(self, text: str, first: Bits, second: Bits, passes: Passes) -> Passed:
        """Two results differ: a third one tells which of them was wrong."""
        passed = passes.again()
        third = self._bits(passed)
        is_first, is_second = (not self._anywhere(third != bits) for bits in (first, second))
        mine = len({bits.loss for bits in (first, second, third)}) > 1
        told = gather_objects((self._name, mine), self._mesh.world)
        named = ", ".join(name for name, differs in told if differs)
        text += f": another result ({f'in the loss of {named}' if named else 'in gradients'})"
        if not (is_first or is_second):
            raise TransientFault(
                f"{text}, and a third time yet another: transient faults one after another, or "
                "something that adds up in no fixed order: nothing of this step is saved"
            )
        wrong = "second" if is_first else "first"
        text += f": a transient fault: the {wrong} was wrong, by a third"
        if self._config.transient == "stop":
            raise TransientFault(f"{text}: nothing of this step is saved; start again")
        words = f"{text}; training goes on with the right one"
        self._verdicts.append(Verdict("transient", words))
        return passed

    def _trials(self, passed: Passed, passes: Passes) -> list[Trial]:
        """Each data-parallel rank's result for the same rows: in turn its alone is in the sum."""
        mesh, dp = self._mesh, self._mesh.dp
        told = gather_objects((dp.rank, float(passed.own_loss)), mesh.world)
        losses = dict(told)
        source = max(losses, key=lambda rank: (not math.isfinite(losses[rank]), losses[rank]))
        rows = [list(passes.items)]
        dist.broadcast_object_list(rows, src=dp.global_rank(source), group=dp.group)
        own, norms = [], []
        for rank in range(dp.size):
            trial = passes.of(rows[0], float(rank == dp.rank))
            own.append(self._bits(trial))
            norms.append(float(trial.norm) if not float(trial.bad) else math.nan)
        every = gather_objects((self._name, dp.rank, own), mesh.world)
        return [
            Trial(
                ", ".join(name for name, place, _ in every if place == rank),
                norms[rank],
                (
                    tuple(bits[rank].gradients for _, _, bits in every),
                    tuple(bits[rank].loss for _, place, bits in every if place == rank),
                ),
            )
            for rank in range(dp.size)
        ]

    @torch.no_grad()
    def _bits(self, passed: Passed) -> Bits:
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        sums = [bit_sum(local_part(gradient) + 0.0) for gradient in gradients]  # no -0.0
        *bits, loss = torch.stack([*sums, bit_sum(passed.own_loss.double())]).tolist()
        return Bits(tuple(bits), loss)

    def _anywhere(self, is_so: bool) -> bool:
        return are_true_anywhere([is_so], self._mesh.world, self._mesh.device)[0]


def judged(text: str, trials: Sequence[Trial]) -> Verdict:
    """What follows from what data-parallel ranks make of the same rows.

    Args:
        text: begins what is said.
        trials: of each.

    Raises:
        PersistentFault: they don't all have the same.
    """
    counts = Counter(trial.bits for trial in trials)
    (bits, most), *others = counts.most_common()
    if not others:
        if all(math.isfinite(trial.norm) for trial in trials):
            all_of = f"all {len(trials)} data-parallel ranks make the same of one's rows"
            return Verdict("right", f"{text}, and {all_of}: it is right")
        return Verdict(
            "undecided",
            f"{text}, not finite whichever data-parallel rank's rows count: the samples or the "
            "learning rate, or a fault that reaches all gradients",
        )
    text += "; data-parallel ranks differ on the same rows: a persistent fault: "
    if 2 * most > len(trials):
        wrong = "; ".join(trial.name for trial in trials if trial.bits != bits)
        text += f"{wrong} computes wrongly, the other {most} agree"
    else:
        names = "; ".join(f"{trial.name} (norm {trial.norm:.6g})" for trial in trials)
        text += f"it is one of {names}, of which none is in the majority{_likeliest(trials)}"
    raise PersistentFault(
        f"{text}: nothing of this step is saved: start again from the newest checkpoint without "
        "that host"
    )


def _likeliest(trials: Sequence[Trial]) -> str:
    """Who is likely wrong where nobody is in the majority, if anything tells."""
    *_, second, odd = sorted(trials, key=lambda trial: (not math.isfinite(trial.norm), trial.norm))
    if math.isfinite(second.norm) and not odd.norm <= ODD * second.norm:
        return f"; {odd.name} is likely wrong, by its gradient"
    return ""
