"""What fitting and calibrating set: how much of a device's data sheet a kind of work gets."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STORED = Path(__file__).with_name("constants.json")


@dataclass(frozen=True)
class Constants:
    """One set for a type of device.

    Attributes:
        product: share of the peak of a large product.
        half_depth: depth of a product that reaches half of that.
        batched: share of the peak of attention's products where scores are written to memory.
        fused: share of the peak of fused attention.
        memory: share of the memory's bandwidth of what reads and writes once.
        link: share of the node's links of a collective.
        network: share of the network of a collective, by adapters that move data themselves.
        onload: the same by adapters that leave it to the node's CPUs.
        block_s: seconds that a block's forward pass takes beside all that.
        launch_s: seconds in which a process launches a block's forward pass.
        collective_s: seconds that a collective of a few devices takes beside its bytes.
        hidden: share of a step's computing that can hide data parallelism.
        contention: share of hidden data parallelism that slows what hides it.
        straggling: share of a step that each doubling of the nodes adds.
    """

    product: float = 0.75
    half_depth: float = 200.0
    batched: float = 0.4
    fused: float = 0.5
    memory: float = 0.7
    link: float = 0.7
    network: float = 0.6
    onload: float = 0.4
    block_s: float = 1e-4
    launch_s: float = 2e-3
    collective_s: float = 3e-5
    hidden: float = 0.8
    contention: float = 0.1
    straggling: float = 0.01


NAMES = tuple(field.name for field in dataclasses.fields(Constants))


@cache
def stored() -> dict[str, dict[str, object]]:
    """What ``benchmarks.planner --fit`` wrote: by kind of device its constants and their date."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def constants_of(kind: str) -> Constants:
    """The constants of a kind of device."""
    values = stored()[kind]
    return Constants(**{name: float(values[name]) for name in NAMES})  # type: ignore[arg-type]
