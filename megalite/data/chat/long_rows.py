"""What becomes of records that are longer than a sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from megalite.data.chat.turns import Turn
from megalite.data.split import Split
from megalite.errors import ConfigError, DataError

LongRows = Literal["refuse", "drop", "truncate", "split", "shorten"]


@dataclass(frozen=True)
class RowRules:
    """How records are read.

    Attributes:
        length: most tokens of a sequence.
        long_rows: what becomes of longer ones.
        columns: the files' names of keys by the names that are known here.
        split: which records are read.
    """

    length: int
    long_rows: LongRows = "refuse"
    columns: Mapping[str, str] = field(default_factory=dict)
    split: Split = Split()

    def check_whole(self) -> None:
        """Refuse to cut records that are of no use in part.

        Raises:
            ConfigError: they would be.
        """
        if self.long_rows in ("truncate", "split", "shorten"):
            raise ConfigError(
                f"--data.long_rows {self.long_rows}: cuts the conversations that a decoder alone "
                "learns in sft; rankings, prompts and what an encoder or a blank is part of are "
                "whole or not there: use refuse or drop"
            )


class LengthCheck:
    """Counts the records that don't fit a sequence; refuses them if that is the rule."""

    def __init__(self, paths: Sequence[str], rules: RowRules) -> None:
        """Check the records of these files."""
        self._files, self._rules = ", ".join(paths), rules
        self._count, self._long, self._longest, self._first = 0, 0, 0, ""
        self.parts, self.left_out = 0, 0

    def fits(self, where: str, *lengths: int) -> bool:
        """Count a record by its place and the tokens of its streams; say whether it fits."""
        longest, most = max(lengths), self._rules.length
        self._count += 1
        if longest <= most:
            return True
        if not self._long:
            self._first = f"{where}: has {longest} tokens, sequence_length is {most}"
        self._long += 1
        self._longest = max(self._longest, longest)
        return False

    def finish(self) -> None:
        """Refuse, if any record was too long and that is the rule, or if all were.

        Raises:
            DataError: it says where the first is, how many there are and how long.
        """
        if not self._long:
            return
        if self._rules.long_rows == "refuse":
            raise DataError(
                f"{self._first}; {self._long} of {self._count} records are longer: raise it to "
                f"{self._longest}, or set data.long_rows to drop, truncate, split or shorten"
            )
        if self._rules.long_rows == "drop" and self._long == self._count:
            raise DataError(f"{self._first}; all {self._count} records are longer: raise it")

    def notes(self) -> list[str]:
        """What became of the long records, in a line; none if there was none."""
        if not self._long:
            return []
        done = {
            "drop": "they are left out",
            "truncate": "they are cut to it",
            "split": f"they are split by turns into {self.parts:,}",
            "shorten": f"{self.parts:,} are cut to the rounds that fit, the others left out",
        }[self._rules.long_rows]
        alone = f"; {self.left_out:,} of their rounds are longer and left out"
        return [
            f"{self._files}: {self._long:,} of {self._count:,} records are longer than "
            f"data.sequence_length {self._rules.length} (the longest has {self._longest:,} "
            f"tokens): {done}{alone if self.left_out else ''}"
        ]


def rounds_of(turns: Sequence[Turn]) -> tuple[list[Turn], list[list[Turn]]]:
    """A conversation's system message, if any, and its rounds: questions and what answers them."""
    system = [turn for turn in turns[:1] if turn.role == "system"]
    rounds: list[list[Turn]] = []
    before = "assistant"
    for turn in turns[len(system) :]:
        if turn.role != "assistant" and before == "assistant" or not rounds:
            rounds.append([])
        rounds[-1].append(turn)
        before = turn.role
    return system, rounds
