"""A table of plain texts."""

import html
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; texts of numbers stand at the right."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    for row in rows:
        kinds = [' class="number"' if _is_number(cell) else "" for cell in row]
        cells = zip(kinds, row, strict=True)
        inner = "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in cells)
        lines.append(f"<tr>{inner}</tr>")
    return "\n".join(['<div class="scroll"><table>', *lines, "</table></div>"])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
