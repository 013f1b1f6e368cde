"""Loading of corpora up to 60,000 h: memory, seconds to the first batch, speed of sampling, seconds to resume.

    python -m benchmarks.cuts [--cuts 1000000,4000000,14000000] [--json FILE] [--dir DIR]

Cut sets of utterances of 2 to 29 s (60,000 h are 14 million), written as stage 0 writes them; their audio is noise made
on the fly, their numerators are made from transcripts. Batches have 200 s. Memory is that of the training process
after two windows of cuts, and of the larger of two loading processes after 100 batches. place_found_s: until the cuts
behind a place near the end of an epoch are there. Speeds are batches per second, loaded and only sampled. 14 million
cuts take 1 GB of disk.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import in_process, peak_mb
from benchmarks.table import Row, finish, parser

WORDS = "ABCDEFGH"
PATTERN = 200  # blocks that are made; a cut set repeats their bytes
WINDOWS, BATCHES = 2, 100  # that are sampled, and loaded
FLAT, FIRST = 1.05, 60.0


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cuts", default="1000000,4000000,14000000", help="sizes, comma-separated")
    options.add_argument("--dir", type=Path, help="where the cut sets are written; default: a temporary folder")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        in_process(write_pattern, Path(folder))
        finish(rows(Path(folder), [int(size) for size in args.cuts.split(",")]), args.json, goals=goals)


def rows(folder: Path, sizes: Sequence[int]) -> Iterator[Row]:
    for size in sizes:
        repeat_pattern(folder, size)
        yield in_process(measured, folder)


def goals(found: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Memory of the largest corpus within 5 % of the smallest's, and the first batch within a minute."""
    smallest, largest = (pick(found, key=lambda row: row["cuts"]) for pick in (min, max))
    for process in ("training_mb", "loading_mb"):
        got = largest[process] / smallest[process]
        goal = f"{process}, largest corpus / smallest: at most {FLAT}"
        yield {"goal": goal, "got": round(got, 3), "met": got <= FLAT}
    slowest = max(row["first_batch_s"] for row in found)
    yield {"goal": f"seconds to the first batch: at most {FIRST:g}", "got": round(slowest, 1), "met": slowest <= FIRST}


def write_pattern(folder: Path) -> None:
    """The blocks that every cut set repeats, and a language of some words."""
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    from distill.corpora.cut_sets import BLOCK, write_cuts
    from distill.graphs.lexicon import Lexicon, write_lang

    draw = np.random.default_rng(0)

    def cut(number: int) -> MonoCut:
        name, seconds = f"speaker-{number // 100:06}-{number:09}", round(float(draw.uniform(2, 29)), 2)
        source = AudioSource("file", [0], f"/corpus/train/{name[:14]}/{name}.flac")
        recording = Recording(name, [source], 16000, round(seconds * 16000), seconds)
        text = " ".join(draw.choice(list(WORDS), int(2.5 * seconds)))
        return MonoCut(
            name, 0, seconds, 0, [SupervisionSegment(name, name, 0, seconds, text=text)], recording=recording
        )

    write_cuts(map(cut, range(PATTERN * BLOCK)), folder / "pattern.jsonl.gz")
    (folder / "lexicon.txt").write_text("".join(f"{word} {word}\n" for word in WORDS), encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)


def repeat_pattern(folder: Path, size: int) -> None:
    """A cut set of `size` cuts, by the bytes of the pattern."""
    from distill.corpora.cut_sets import BLOCK

    content = (folder / "pattern.jsonl.gz").read_bytes()
    index = (folder / "pattern.blocks.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    whole, rest = divmod(size // BLOCK, PATTERN)
    part = sum(int(line.split("\t")[0]) for line in index[:rest])
    with (folder / "many.jsonl.gz").open("wb") as file:
        for _ in range(whole):
            file.write(content)
        file.write(content[:part])
    (folder / "many.blocks.tsv").write_text("".join([*index * whole, *index[:rest]]), encoding="utf-8")


def measured(folder: Path) -> Row:
    """A row, in a process of its own."""
    import torch

    from distill.batch import BEGIN, Place
    from distill.config.training import Data
    from distill.corpora.cut_sets import CutBlocks
    from distill.data.loader import SpeechDataset, TrainLoader
    from distill.data.numerators import Numerators
    from distill.graphs.lexicon import Lang
    from distill.graphs.numerator import UnitLm
    from distill.graphs.unit_ngram import train_unit_ngram

    class Noise(SpeechDataset):
        def _read(self, cut: Any) -> np.ndarray:
            return np.random.default_rng(0).standard_normal(round(cut.duration * 16000), dtype=np.float32)

    torch.set_num_threads(1)
    lang = Lang.load(folder)
    sequence = np.random.default_rng(0).integers(1, len(lang.tokens), 10_000).tolist()
    lm = train_unit_ngram([tuple(sequence)], 2, len(lang.tokens))
    began = time.perf_counter()
    dataset = Noise(Numerators(lang, UnitLm(lm, len(lang.tokens))), None, 0, False, False)
    loader = TrainLoader([CutBlocks(folder, "many")], dataset, Data(), 42, 0, 1)
    updates = loader.count(0)
    batches = loader.epoch(0)
    next(batches)
    first, began = time.perf_counter() - began, time.perf_counter()
    loaded = BATCHES / sum(time.perf_counter() - began for _ in itertools.islice(batches, BATCHES - 1, BATCHES))
    loading = max(peak_mb(pid) for pid in children())
    batches.close()
    loader._read.cache_clear()
    began = time.perf_counter()
    next(iter(loader._draws(3, Place(loader.windows - 2, 900))))
    resumed, began = time.perf_counter() - began, time.perf_counter()
    draws = itertools.takewhile(lambda draw: draw[0].window < WINDOWS, loader._draws(1, BEGIN))
    sampled = sum(1 for _ in draws) / (time.perf_counter() - began)
    return {
        "cuts": int(loader.counts.sum()), "hours": round(float(loader.seconds.sum()) / 3600),
        "batches_of_an_epoch": updates, "training_mb": peak_mb(os.getpid()), "loading_mb": loading,
        "first_batch_s": first, "place_found_s": resumed, "loaded_per_s": loaded, "sampled_per_s": sampled,
    }  # fmt: skip


def children() -> list[int]:
    """Processes that this one has started."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


if __name__ == "__main__":
    main()
