"""Spoken commands: digit strings, coffee orders and keywords of many speakers, in a folder of tables and audio."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from distill.config.job import Job, takes
from distill.corpora.corpus import Corpus, Options, Roles
from distill.corpora.listing import Listing, Source, Utterance
from distill.corpora.tables import read_table
from distill.synthetic.sentences import Grammar

TABLES = {  # kind -> its table, and the columns that are read
    "digits": ("fsdd/digits.tsv", ("utt", "path")),
    "strings": ("fsdd/connected.tsv", ("utt", "speaker", "split", "parts", "gaps_ms", "text")),
    "orders": ("intent/intent.tsv", ("utt", "path", "speaker", "split", "text", "checked")),
    "keywords": ("wakeword/wakeword.tsv", ("utt", "path", "speaker", "split", "text")),
}
DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
DIGIT_STRING = (3, 7)
"""Shortest and longest digit string of the text corpus."""
DRAWN = 4000
"""Drawn orders and digit strings of the text corpus; keywords occur a twentieth as often, each."""


class SpokenCommands(Corpus):
    """Parts are named `<kind>-<split>`: digits (strings of them, rendered), orders, keywords."""

    roles = Roles(
        labelled=("digits-train", "orders-train"),
        unlabelled=("keywords-train",),
        dev=("digits-dev_seen", "digits-dev_unseen", "orders-dev"),
        tests={
            "test-digits-seen": ("digits-test_seen",),
            "test-digits-unseen": ("digits-test_unseen",),
            "test-orders": ("orders-test_sure", "orders-test_unsure"),
            "test-orders-sure": ("orders-test_sure",),
        },
        hidden_share=0.5,
        speeds={"digits-train": (0.9, 1.1), "orders-train": (0.9, 1.1)},  # few speakers
    )
    renders = True

    def __init__(self, root: Path, options: Options | None = None) -> None:
        super().__init__(root, options)
        self.tables = find_tables(self.root)
        self.inputs = self.rendered = tuple(self.tables.values())
        self.text, self.lexicon = self.options.recipe_dir / "orders.txt", self.options.recipe_dir / "lexicon.txt"

    @property
    def texts(self) -> tuple[Path, ...]:
        return (*super().texts, *self.inputs)  # sentences of the orders and keywords are among them

    def rows(self, kind: str) -> list[dict[str, str]]:
        """The rows of the table of a kind; raises ValueError for a missing column or cell."""
        return read_table(self.tables[kind], TABLES[kind][1])

    def listing(self, part: str) -> Listing:
        """The rows of a split; the test orders are apart by whether `checked` calls their transcript unsure."""
        kind, _, split = part.partition("-")
        if kind == "digits":
            rows = [(row, self.options.audio_dir.resolve() / f"{row['utt']}.flac") for row in self.rows("strings")]
        else:
            rows = [(row, self.tables[kind].parent / row["path"]) for row in self.rows(kind)]
        listing = Listing()
        for row, path in rows:
            certainty = "unsure" if row.get("checked") == "unsure" else "sure"
            if split in (row["split"], f"{row['split']}_{certainty}"):
                listing.sources[row["utt"]] = Source(str(path))
                listing.utterances.append(Utterance(row["utt"], row["utt"], text=row["text"], speaker=row["speaker"]))
        return listing

    def render(self, folder: Path, job: Job | None = None) -> None:
        """Writes the digit strings."""
        from distill.corpora.digit_strings import render

        render({row["utt"]: self.tables["digits"].parent / row["path"] for row in self.rows("digits")},
               [row for number, row in enumerate(self.rows("strings")) if takes(job, number)], folder)  # fmt: skip

    def sentences(self, drawn: int = DRAWN) -> Iterator[str]:
        """Training orders, drawn orders, drawn digit strings, and the keywords of the training part."""
        rng = random.Random(f"{self.options.seed}/text")
        grammar = Grammar.read(self.options.recipe_dir / "orders.txt", elide_article=False)
        yield from (row["text"] for row in self.rows("orders") if row["split"] == "train")
        for _ in range(drawn):
            yield grammar.sentence(rng)
        for _ in range(drawn):
            yield " ".join(rng.choice(DIGITS) for _ in range(rng.randint(*DIGIT_STRING)))
        for keyword in sorted({row["text"] for row in self.rows("keywords") if row["split"] == "train"}):
            yield from [keyword] * (drawn // 20)


def find_tables(root: Path) -> dict[str, Path]:
    """The tables by kind; FileNotFoundError lists what has to lie where."""
    tables = {kind: root / name for kind, (name, _) in TABLES.items()}
    missing = [str(path) for path in tables.values() if not path.is_file()]
    if missing:
        wanted = "".join(f"\n  {name}: {', '.join(columns)}" for name, columns in TABLES.values())
        raise FileNotFoundError(
            f"no {' or '.join(missing)}; give the folder of spoken commands as --corpus-dir. It has these tables "
            f"(tab-separated, the first line names the columns) and the audio at the paths in them:{wanted}\n"
            "egs/spoken_commands/README.md names the sources of both; egs/spoken_commands/fetch.py fetches the audio"
        )
    return tables
