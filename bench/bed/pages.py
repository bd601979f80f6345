"""Tables, for a terminal and as Markdown, from one description of their columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Column:
    """*text* makes a cell of a row."""

    head: str
    text: Callable[[Any], str]
    left: bool = False


def number(value, digits=0):
    """With commas; nothing for nothing."""
    return "" if value is None else f"{value:,.{digits}f}"


def terse(value):
    """Three digits, whatever the size: 0.0123, 1.23, 12.3, 1,234; nothing for nothing."""
    if value is None:
        return ""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 4}f}"


def on_screen(title, columns, rows):
    """For the terminal."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column.head, justify="left" if column.left else "right")
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    return table


def markdown(title, columns, rows):
    """For a page."""
    lines = [f"**{title}**", "", "| " + " | ".join(column.head for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.left else "---:" for column in columns) + "|")
    lines += ["| " + " | ".join(column.text(row).replace("|", "\\|") for column in columns) + " |" for row in rows]
    return "\n".join([*lines, ""])
