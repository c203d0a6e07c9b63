"""What a benchmark prints: one result a case, as a table or as JSON lines."""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """Ours against a peer.

    Attributes:
        case: what was run.
        peer: what it was compared with.
        ours_s: seconds, the best of several alternating rounds.
        peer_s: seconds of the peer, likewise.
        more: further figures, their unit in the name.
    """

    case: str
    peer: str
    ours_s: float
    peer_s: float
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.peer_s / self.ours_s


def show(result: Result, as_json: bool) -> None:
    """Print one result."""
    if as_json:
        row = asdict(result)
        more = row.pop("more")
        print(json.dumps(row | {"ratio": result.ratio} | more), flush=True)
        return
    more = "  ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.more.items()
    )
    print(
        f"{result.case:22s} {result.ours_s * 1e3:9.2f} ms   {result.peer:28s} "
        f"{result.peer_s * 1e3:9.2f} ms   {result.ratio:6.2f}x   {more}",
        flush=True,
    )
    sys.stdout.flush()
