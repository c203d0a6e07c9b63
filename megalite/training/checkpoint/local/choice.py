"""Which local checkpoint a start takes, and from which node each part comes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megalite.training.checkpoint.local.part import Part
from megalite.training.checkpoint.manifest import Facts

OTHER_LAYOUT = "it is for its own layout alone; another one goes on from the shared checkpoint"
SHOWN = 8

Nodes = Mapping[int, Sequence[int]]  # the ranks on each node


class Fault(NamedTuple):
    """What a process found wrong with what it was to take.

    Attributes:
        rank: whose part it is of.
        text: what is wrong.
        is_layout: whether it is the layout, with which another copy would not help.
    """

    rank: int
    text: str
    is_layout: bool


@dataclass(frozen=True)
class Chosen:
    """A local checkpoint whose every part is somewhere.

    Attributes:
        step: of it.
        save: tells its parts from those of another save of the step.
        facts: of the run.
        holders: of each rank's part, a process on each node that has it.
    """

    step: int
    save: str
    facts: Facts
    holders: Mapping[int, Sequence[int]]

    def given(self, rank: int, nodes: Nodes) -> int:
        """The process that has a rank's part: one of the rank's own node, if any has."""
        (own,) = (ranks for ranks in nodes.values() if rank in ranks)
        return next((h for h in self.holders[rank] if h in own), self.holders[rank][0])

    def moves(self, nodes: Nodes) -> Iterator[tuple[int, int]]:
        """Holder and rank of each part that is not on the rank's own node."""
        node_of = {rank: node for node, ranks in nodes.items() for rank in ranks}
        for rank in sorted(self.holders):
            holder = self.given(rank, nodes)
            if node_of[holder] != node_of[rank]:
                yield holder, rank


class Choice:
    """Goes through the local checkpoints that are whole, from the newest back.

    Attributes:
        said: why some were passed over.
    """

    def __init__(self, nodes: Nodes, later_than: int, why_not: Callable[[Facts], str]) -> None:
        """Know of none yet.

        Args:
            nodes: the ranks of this start by node.
            later_than: a step; older ones are of no use.
            why_not: says of a checkpoint's facts why it can't be taken; empty if it can.
        """
        self._nodes, self._later_than, self._why_not = nodes, later_than, why_not
        self._world = sum(map(len, nodes.values()))
        self._parts: dict[tuple[int, str], dict[int, list[tuple[int, Part]]]] = {}
        self.said: list[str] = []

    def hear(self, there: Iterable[tuple[int, Part]]) -> None:
        """Take what the nodes have: a process of the node, and a part that is there."""
        for holder, part in there:
            ranks = self._parts.setdefault((part.step, part.save), {})
            ranks.setdefault(part.rank, []).append((holder, part))

    def next(self) -> Chosen | None:
        """The newest that is whole and can be taken; None where none is."""
        for step, save in sorted(self._parts, reverse=True):
            if step <= self._later_than:
                return None
            parts = self._parts[step, save]
            facts = next((p.facts for _, p in parts.get(0, ()) if p.facts is not None), None)
            reason = self._why_not_whole(parts)
            if not reason and facts is not None:
                reason = self._why_not(facts)
                if not reason:
                    holders = {rank: [holder for holder, _ in held] for rank, held in parts.items()}
                    return Chosen(step, save, facts, holders)
            self._say(step, reason or "its first part has no facts")
            del self._parts[step, save]
        return None

    def _why_not_whole(self, parts: Mapping[int, Sequence[tuple[int, Part]]]) -> str:
        """What a save lacks, as far as its manifests tell."""
        worlds = {part.world for held in parts.values() for _, part in held}
        if others := worlds - {self._world}:
            return f"{max(others)} processes saved it, {self._world} are here: {OTHER_LAYOUT}"
        lost = [rank for rank in range(self._world) if not parts.get(rank)]
        ranks = ", ".join(map(str, lost[:SHOWN])) + ", ..." * (len(lost) > SHOWN)
        return f"no node has an intact part of rank {ranks}" if lost else ""

    def pass_over(self, chosen: Chosen, fault: Fault) -> None:
        """Note what a process found wrong: with the part that it was given, or with its layout."""
        parts = self._parts.get((chosen.step, chosen.save), {})
        self._say(chosen.step, OTHER_LAYOUT if fault.is_layout else fault.text)
        if fault.is_layout:
            self._parts.pop((chosen.step, chosen.save), None)
        elif fault.rank in parts:
            bad = chosen.given(fault.rank, self._nodes)
            parts[fault.rank] = [one for one in parts[fault.rank] if one[0] != bad]

    def _say(self, step: int, reason: str) -> None:
        text = f"local checkpoint of step {step}: {reason}"
        if text not in self.said:
            self.said.append(text)
