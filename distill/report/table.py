"""Tables of text, as markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Section = tuple[str, list[str]]  # title and markdown lines of a part of a page


@dataclass(frozen=True)
class Table:
    """A heading and rows; the first `fixed` columns are repeated when a table is cut to the terminal's width."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    fixed: int = 1

    def markdown(self) -> list[str]:
        """Lines of a markdown table; all but the first column are right-aligned."""
        rule = ["---"] + ["---:"] * (len(self.head) - 1)
        return ["| " + " | ".join(row) + " |" for row in (self.head, rule, *self.rows)]

    def terminal(self, width: int = 100) -> list[str]:
        """Aligned lines of at most `width` columns; further columns follow below, behind the fixed ones."""
        widths = [max(len(row[i]) for row in (self.head, *self.rows)) for i in range(len(self.head))]
        fixed = list(range(self.fixed))
        groups: list[list[int]] = [fixed]
        for column in range(self.fixed, len(widths)):
            wider = [*groups[-1], column]
            if len(wider) > self.fixed + 1 and sum(widths[i] + 2 for i in wider) - 2 > width:
                groups.append([*fixed, column])
            else:
                groups[-1] = wider
        lines: list[str] = []
        for group in groups:
            lines += [""] if lines else []
            for row in (self.head, *self.rows):
                first, *others = (row[i].rjust(widths[i]) for i in group)
                lines.append("  ".join([row[0].ljust(len(first)), *others]).rstrip())
        return lines


def number(value: float | None, digits: int) -> str:
    """'-' for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(sections: Iterable[Section], level: int = 2) -> str:
    """Sections below headings of a level."""
    return "\n".join(line for title, body in sections for line in (f"{'#' * level} {title}", "", *body, ""))


def terminal(tables: Sequence[tuple[str, Table | None]], width: int) -> str:
    """Titles and tables one below the other, those without rows left out."""
    shown = [(title, table) for title, table in tables if table is not None and table.rows]
    return "\n".join(line for title, table in shown for line in (title, *table.terminal(width), ""))
