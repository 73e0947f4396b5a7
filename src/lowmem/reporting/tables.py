"""Rows of cells as csv and markdown."""

import csv
import io


def cell(value) -> str:
    """A table cell as text; exhibits format their numbers themselves, so that csv, markdown and page agree."""
    return "" if value is None else str(value)


def as_csv(columns: list[str], rows: list[list[str]]) -> str:
    """The rows under their column names as csv."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def markdown(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A caption and a pipe table; bars and line ends inside cells are escaped."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"

    return "\n".join([caption, "", line(columns), line(["---"] * len(columns)), *map(line, rows)]) + "\n"
