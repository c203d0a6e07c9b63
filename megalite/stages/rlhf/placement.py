"""Where PPO's models are: all on the same processes, or the frozen two on their own.

The run's last processes then hold the reference and the reward model in a layout of their own; the
others hold actor and critic and do all that a run does.
"""

from dataclasses import dataclass, replace

from pydantic import Field

from megalite.config import Section
from megalite.distributed.mesh import ParallelConfig
from megalite.engine.layout import Demand, faults, nearest
from megalite.errors import ConfigError


class FrozenConfig(Section):
    """Where the reference and the reward model are."""

    processes: int = Field(
        0,
        ge=0,
        description="processes for these two models alone, the run's last ones; 0: none, they "
        "share those of actor and critic",
    )
    tp: int = Field(1, ge=1, description="processes that each layer's matrices are split over")
    pp: int = Field(1, ge=1, description="processes that the layers are split over")
    shard: int = Field(1, ge=1, description="processes that the parameters are split over")

    def layout(self, parallel: ParallelConfig) -> ParallelConfig:
        """Their layout; the rest is the run's. They have no backward pass and recompute nothing."""
        passes = {"schedule": "1f1b", "chunks_per_rank": 1, "encoder_stages": 0}
        sizes = {"tp": self.tp, "pp": self.pp, "shard": self.shard, "replicate": 0}
        return parallel.model_copy(update={**passes, **sizes, "recompute": "none"})


def check_placement(demand: Demand, parallel: ParallelConfig, frozen: FrozenConfig) -> None:
    """Refuse a placement that doesn't fit.

    Args:
        demand: of the whole run.
        parallel: the layout of actor and critic.
        frozen: the placement.

    Raises:
        ConfigError: it says what is wrong, and the nearest placements that fit.
    """
    fault = placement_fault(demand, parallel, frozen)
    if fault is None:
        return
    fits = [
        f"processes {other.processes} tp {other.tp}"
        for other in _near(frozen, demand.world_size)
        if placement_fault(demand, parallel, other) is None
    ]
    offer = f"; placements that fit: {', or '.join(fits[:3])}" if fits else ""
    rest = demand.world_size - frozen.processes
    if not fits and rest > 0:
        layouts = nearest(replace(demand, world_size=rest), parallel)
        if layouts:
            offer = f"; layouts of the other {rest} that fit: {', or '.join(layouts)}"
    raise ConfigError(f"--frozen.processes {frozen.processes}: {fault}{offer}")


def _near(frozen: FrozenConfig, world_size: int) -> list[FrozenConfig]:
    """Other placements of a run, those that differ least first."""
    counts = range(1, world_size)
    sizes = [(count, tp) for count in counts for tp in range(1, count + 1) if count % tp == 0]
    sizes.sort(key=lambda size: (abs(size[0] - frozen.processes), abs(size[1] - frozen.tp)))
    return [frozen.model_copy(update={"processes": count, "tp": tp}) for count, tp in sizes]


def placement_fault(demand: Demand, parallel: ParallelConfig, frozen: FrozenConfig) -> str | None:
    """What is wrong with a placement; None where it fits."""
    own, rest = frozen.processes, demand.world_size - frozen.processes
    layout = frozen.layout(parallel)
    if own == 0:
        is_set = (frozen.tp, frozen.pp, frozen.shard) != (1, 1, 1)
        return "tp, pp and shard need processes of their own" if is_set else None
    if rest < 1:
        return f"leaves none of {demand.world_size} to actor and critic"
    found = next(faults(replace(demand, world_size=rest), parallel), None)
    if found is not None:
        return f"leaves {rest} to actor and critic, where {found}"
    found = next(faults(Demand(demand.model, own), layout), None)
    if found is not None:
        return found.replace("--parallel", "--frozen")
    ranks, copies = Side.of(0, rest, parallel).dp, Side.of(rest, own, layout).dp
    if ranks % copies:
        return (
            f"has {copies} data-parallel ranks, which must divide the {ranks} of actor and critic"
        )
    return None


@dataclass(frozen=True)
class Side:
    """The processes of one mesh, in the order of :data:`megalite.distributed.mesh._AXES`.

    Attributes:
        first: its first rank in the run.
        pp: processes along the pipeline.
        dp: data-parallel ranks.
        tp: processes of a tensor-parallel group.
    """

    first: int
    pp: int
    dp: int
    tp: int

    @classmethod
    def of(cls, first: int, count: int, parallel: ParallelConfig) -> "Side":
        """The side of ``count`` processes in a layout."""
        pp, replicate, shard, tp = parallel.sizes(count)
        return cls(first, pp, replicate * shard, tp)

    def ranks(self, number: int) -> list[int]:
        """The processes of a data-parallel rank, by their ranks in the run."""
        return [
            self.first + (pp * self.dp + number) * self.tp + tp
            for pp in range(self.pp)
            for tp in range(self.tp)
        ]
