"""KS, IC and SF from recordings of real speech, keywords and orders of egs/spoken_commands, in the published layouts.

s3prl knows commands of KS, slots of IC and speakers of SF by name: each keyword stands for a command; drink, roast and
shots of an order for action, object and location. Splits of the recordings are kept.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
import shutil
from io import StringIO
from pathlib import Path

import soundfile

from distill.corpora.tables import read_table
from distill.files import write_text

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SOURCE = "recordings.txt"  # in a folder that is not the published data
EMBEDDED = "embedded.json"  # beside a synthesised LibriSpeech (`distill.synthetic.speech`)
COLUMNS = ("utt", "path", "speaker", "split", "text")
SLOTS = {
    "drink": r"AMERICANO|CAPPUCCINO|ESPRESSO|LATTE|MOCHA|(?:DRIP )?COFFEE", "roast": r"\w+(?= ROAST)",
    "shots": r"\w+(?= SHOT)", "size": r"\w+(?= OUNCE)|SMALL|MEDIUM(?! ROAST)|LARGE", "milk": r"\w+(?= MILK)",
}  # fmt: skip
"""Slots of an order, as regular expressions of whole words."""
INTENT = {"action": "drink", "object": "roast", "location": "shots"}
SPEAKERS = {"train": ("train", "Ivy"), "dev": ("valid", "Aditi"), "test": ("test", "Brian")}
"""Of each split, its name in IC and SF, and one of SF's speakers there."""
MOST_FILES = 2**27 - 1  # of a word: from Speech Commands' rule of splits, as is the share of 10 % in each of two parts


def is_own(data: Path) -> bool:
    """Whether a folder is not the published data: recordings in its layout, or the synthesised LibriSpeech."""
    return (data / SOURCE).is_file() or (data.resolve().parent / EMBEDDED).is_file()


def write_keywords(corpus: Path, folder: Path) -> None:
    """Speech Commands v0.01 of keywords; noise stands for silence, in the test of other kinds than in training.

    Raises FileNotFoundError where the corpus has no keywords or noise, ValueError for more than ten keywords.
    """
    rows = read_table(corpus / "wakeword/wakeword.tsv", COLUMNS)
    words = sorted({row["text"] for row in rows})
    if len(words) > len(COMMANDS):
        raise ValueError(f"{corpus}: {len(words)} keywords, at most {len(COMMANDS)} are told apart: {', '.join(words)}")
    command, counts = dict(zip(words, COMMANDS)), itertools.count()
    for row in rows:
        name = command[row["text"]]
        if row["split"] == "test":
            path = folder / "speech_commands_test_set_v0.01" / name / f"{row['utt']}_nohash_0.wav"
        else:
            names = (f"{number:08x}_nohash_0.wav" for number in counts)
            path = folder / "speech_commands_v0.01" / name / next(n for n in names if split_of(n) == row["split"])
        copy(corpus / "wakeword" / row["path"], path)
    parts = {"seen": "speech_commands_v0.01/_background_noise_", "unseen": "speech_commands_test_set_v0.01/_silence_"}
    for row in read_table(corpus / "noise/noise.tsv", ("utt", "path", "split")):
        copy(corpus / "noise" / row["path"], folder / parts[row["split"]] / f"{row['utt']}.wav")


def write_orders(corpus: Path, folder: Path) -> None:
    """Fluent Speech Commands of orders; raises FileNotFoundError where the corpus has none."""
    rows = orders(corpus)
    (folder / "data").mkdir(parents=True)
    for split, (part, _) in SPEAKERS.items():
        text = StringIO()
        lines = csv.writer(text)
        lines.writerow(["", "path", "speakerId", "transcription", *INTENT])
        for number, row in enumerate(row for row in rows if row["split"] == split):
            speaker = re.sub(r"\W", "", row["speaker"])
            path = f"wavs/speakers/{speaker}/{row['utt']}.wav"
            copy(corpus / "intent" / row["path"], folder / path)
            lines.writerow([number, path, speaker, row["text"], *intent_of(row["text"])])
        write_text(folder / f"data/{part}_data.csv", text.getvalue())


def write_slots(corpus: Path, folder: Path) -> None:
    """Audio SNIPS of orders; raises FileNotFoundError where the corpus has none."""
    lines = []
    for number, row in enumerate(orders(corpus)):
        part, speaker = SPEAKERS[row["split"]]
        name = f"{speaker}-snips-{part}-{number}"
        copy(corpus / "intent" / row["path"], folder / part / speaker / f"{name}.wav")
        lines.append(f"{name} BOS {row['text']} EOS\tO {' '.join(tags_of(row['text']))} Order\n")
    write_text(folder / "all.iob.snips.txt", "".join(lines))


WRITERS = {"KS": write_keywords, "IC": write_orders, "SF": write_slots}
"""By task; each is called with a corpus and the folder to write."""


def write_task(name: str, corpus: Path, folder: Path) -> None:
    """Write the folder of a task whole, unless it is there.

    Raises ValueError for a task without such recordings, and what its writer raises.
    """
    if name not in WRITERS:
        raise ValueError(f"{name}: no real speech of it is in the corpus; there is some of {', '.join(WRITERS)}")
    if folder.exists():
        return
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    WRITERS[name](corpus, temporary)
    write_text(temporary / SOURCE, f"{name} of the recordings in {corpus.name}, in the layout of its published data\n")
    temporary.replace(folder)


def orders(corpus: Path) -> list[dict[str, str]]:
    """Rows of the orders, without those whose transcript is unsure."""
    rows = read_table(corpus / "intent/intent.tsv", (*COLUMNS, "checked"))
    return [row for row in rows if row["checked"] != "unsure"]


def intent_of(order: str) -> list[str]:
    """The first value of each slot of an intent, "none" where an order has none."""
    found = [re.search(rf"\b(?:{SLOTS[slot]})\b", order) for slot in INTENT.values()]
    return [value[0].lower() if value else "none" for value in found]


def tags_of(order: str) -> list[str]:
    """B- and I- with the slot of each word that is of one, O for the others."""
    tags = ["O"] * len(order.split())
    for slot, pattern in SLOTS.items():
        for value in re.finditer(rf"\b(?:{pattern})\b", order):
            first = order.count(" ", 0, value.start())
            for place in range(first, first + len(value[0].split())):
                tags[place] = f"{'I' if place > first else 'B'}-{slot}"
    return tags


def split_of(name: str) -> str:
    """The split that Speech Commands' rule draws from a file's name: 10 % dev, 10 % for a test that is not used."""
    drawn = int(hashlib.sha1(name.partition("_nohash_")[0].encode()).hexdigest(), 16) % (MOST_FILES + 1)
    share = drawn * (100 / MOST_FILES)
    return "dev" if share < 10 else "test" if share < 20 else "train"


def copy(source: Path, target: Path) -> None:
    """A recording as 16-bit WAV."""
    target.parent.mkdir(parents=True, exist_ok=True)
    kind = "float32" if soundfile.info(source).subtype in ("FLOAT", "DOUBLE") else "int16"
    samples, rate = soundfile.read(source, dtype=kind)
    soundfile.write(target, samples, rate, subtype="PCM_16")
