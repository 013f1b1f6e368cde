"""The text corpus as token ids in a file, and batches of it: read once, of any size, never whole in memory."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.batch import BEGIN, Place
from distill.files import replacing
from distill.fsa.graph import expand
from distill.graphs.unit_ngram import blocks
from distill.lm.units import END, UNKNOWN, Units

log = logging.getLogger(__name__)

TOKENS, ROWS = "text.numbers", "text.rows"
TOGETHER = 200  # batches whose rows are sorted by length together
PADDING = -1


@dataclass(frozen=True)
class TextBatch:
    """Padded rows of token ids: inputs (B, T); targets (B, T), the next token of each, PADDING behind the end.

    ids: names of the rows, for messages; none for the stand-in of a rank without rows (`Batch`).
    """

    ids: tuple[str, ...]
    inputs: Tensor
    targets: Tensor
    seconds: float = 0.0  # of audio: none
    left_out: tuple[tuple[str, str], ...] = ()
    after: Place = BEGIN

    @property
    def counted(self) -> bool:
        """False for a stand-in."""
        return bool(self.ids)

    def to(self, device: torch.device | str) -> TextBatch:
        """The same batch on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def padded(rows: Sequence[Sequence[int] | np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad token rows of two or more ids: inputs, targets (B, T), the targets shifted left by one."""
    width = max(len(row) for row in rows) - 1
    inputs = torch.full((len(rows), width), END)
    targets = torch.full((len(rows), width), PADDING)
    for place, row in enumerate(rows):
        ids = torch.from_numpy(np.asarray(row, dtype=np.int64))
        inputs[place, : len(row) - 1], targets[place, : len(row) - 1] = ids[:-1], ids[1:]
    return inputs, targets


class Corpus:
    """Token ids of all sentences, END between them, and the rows of training.

    A row (first, last) of `rows` (R, 2) spans the ids first .. last, both included.
    """

    def __init__(self, folder: Path) -> None:
        self.ids = np.memmap(folder / TOKENS, dtype=np.int32, mode="r")
        self.rows = np.memmap(folder / ROWS, dtype=np.int64, mode="r").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> np.ndarray:
        """Token ids of a row: (length,)."""
        first, last = self.rows[number]
        return self.ids[first : last + 1]


def write_corpus(sentences: Iterable[str], units: Units, context: int, folder: Path) -> Corpus:
    """Write the sentences' token ids, and rows of at most `context` targets; a longer sentence makes several rows.

    Raises ValueError for text without a word.
    """
    place = long = unknown = 0
    with (
        replacing(folder / ROWS) as rows_path, replacing(folder / TOKENS) as ids_path,
        ids_path.open("wb") as ids_file, rows_path.open("wb") as rows,
    ):  # fmt: skip
        np.array([END], dtype=np.int32).tofile(ids_file)
        ids = (units.sentence(sentence.split())[1:] for sentence in sentences)  # END behind each
        for block in blocks(sentence for sentence in ids if len(sentence) > 1):
            flat = np.fromiter(chain.from_iterable(block), dtype=np.int32)
            flat.tofile(ids_file)
            unknown += int((flat == UNKNOWN).sum())
            ends = place + np.cumsum([len(sentence) for sentence in block])
            spans = _rows(np.concatenate([[place], ends]), context)
            long += len(spans) - len(block)
            spans.tofile(rows)
            place = int(ends[-1])
        if not place:
            raise ValueError("no sentences to train a language model on: the text corpus is empty")
    log.info("text: %d tokens, %d of them unknown; long sentences make %d further rows", place, unknown, long)
    return Corpus(folder)


def _rows(ends: np.ndarray, context: int) -> np.ndarray:
    """Positions of the ENDs (N + 1,) -> rows (R, 2) of at most `context` targets, each from one END to the next."""
    first, last = ends[:-1], ends[1:]
    pieces = -(-(last - first) // context)
    sentence, piece = expand(pieces)
    start = first[sentence] + piece * context
    return np.stack([start, np.minimum(start + context, last[sentence])], axis=1)


class TextLoader:
    """Epochs of batches of rows of similar length, drawn by seed and epoch; each rank gets its share of every batch."""

    def __init__(self, corpus: Corpus, batch_units: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.corpus, self.batch_units = corpus, batch_units
        self.seed, self.rank, self.world = seed, rank, world
        self.lengths = np.diff(corpus.rows, axis=1)[:, 0]

    def epoch(self, number: int, start: Place = BEGIN) -> Generator[TextBatch, None, None]:
        """Batches of one epoch (counted from 0) from a place in it."""
        for done, rows in enumerate(self._plan(number)[start.batch :], start.batch + 1):
            mine = rows[self.rank :: self.world]
            batch = self.batch(mine if len(mine) else rows[:1])
            yield replace(batch, ids=batch.ids[: len(mine)], after=Place(0, done))

    def count(self, number: int) -> int:
        """Batches of an epoch."""
        return len(self._plan(number))

    def batch(self, rows: np.ndarray) -> TextBatch:
        """The batch of these rows of the corpus."""
        inputs, targets = padded([self.corpus.row(row) for row in rows])
        return TextBatch(tuple(f"text row {row}" for row in rows), inputs, targets)

    def _plan(self, number: int) -> list[np.ndarray]:
        """Rows of each batch, the same on every rank."""
        draw = np.random.default_rng((self.seed, number))
        order = draw.permutation(len(self.corpus))
        window = max(1, TOGETHER * int(self.batch_units / max(1.0, float(self.lengths.mean()))))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), window):
            some = order[start : start + window]
            some = some[np.argsort(self.lengths[some], kind="stable")]
            batches += [some[part] for part in split_rows(self.lengths[some], self.batch_units)]
        return [batches[place] for place in draw.permutation(len(batches))]


def split_rows(lengths: Sequence[int] | np.ndarray, most: int) -> Iterator[slice]:
    """Rows in order of their lengths, in batches whose padded size is at most `most` (one row may be longer)."""
    sizes, first = np.asarray(lengths), 0
    while first < len(sizes):
        # lengths rise, so the padded size of rows first .. n is their number times the last one's length
        padded_sizes = sizes[first : first + most] * np.arange(1, len(sizes[first : first + most]) + 1)
        last = first + max(1, int(np.searchsorted(padded_sizes, most, side="right")))
        yield slice(first, last)
        first = last
