"""Tables of tab-separated values with a heading line, and LibriSpeech's transcripts; the standard library alone."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from distill.text import read_lines


def read_table(path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a TSV table with a heading line.

    Raises FileNotFoundError if there is none, ValueError for a column or cell that is missing, cells beyond the
    columns, and text that is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}; is {path.parent.parent} the corpus folder?")
    reader = csv.DictReader(read_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = reader.fieldnames or ()
    if absent := [name for name in columns if name not in names]:
        raise ValueError(
            f"{path}: the first line names no column {', '.join(absent)}; it has {', '.join(names) or 'nothing'}"
        )
    rows = []
    for row in reader:
        if short := [name for name in columns if row[name] is None]:
            raise ValueError(f"{path}:{reader.line_num}: no {', '.join(short)} in this line; cells are tab-separated")
        if None in row:
            raise ValueError(
                f"{path}:{reader.line_num}: more cells than the {len(names)} columns; is a tab in the text?"
            )
        rows.append(row)
    return rows


def read_transcripts(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, utterance and text of the lines 'UTTERANCE TEXT' of a *.trans.txt; blank lines are passed over."""
    for number, line in enumerate(read_lines(path), 1):
        name, *text = line.split(maxsplit=1) or [""]
        if name:
            yield number, name, "".join(text).strip()
