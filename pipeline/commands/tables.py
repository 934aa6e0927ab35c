"""Tables on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_table"]


def print_table(table: Table) -> None:
    """Print a table as narrow as the terminal, but never cut: half a number is wrong, and names are to be copied."""
    from rich.console import Console

    # Height too, because a console with a width alone falls back to 80 columns in a dumb terminal.
    terminal, endless = Console(), Console(width=10_000, height=25)
    for column in table.columns:
        column.min_width = max(endless.measure(cell).minimum for cell in (column.header, *column.cells))
    width = terminal.width if terminal.is_terminal else endless.measure(table).maximum
    Console(width=width, height=25).print(table, crop=False)
