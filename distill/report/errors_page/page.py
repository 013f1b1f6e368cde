"""One HTML page of a decoding: its errors word by word, the worst utterances first and audible.

The page is one file that needs nothing else: it opens from a disk, without a network. Everything that comes from
transcripts or names passes through `element`, which escapes it; a content security policy allows only the page's own
script run. The same decoding gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from distill.config.decoding import OF_UNITS
from distill.files import write_lines
from distill.scoring.bootstrap import FEWEST, grouped, interval, resampled
from distill.scoring.wer import ErrorRate, Scored, alignment, bootstrap, counts

PAGE = "errors.html"
MOST_UTTERANCES, MOST_SPEAKERS, MOST_PAIRS = 3000, 200, 50  # what a page shows of longer lists, saying so
FACTS = ("corpus", "lm", "chunk_ms", "lookahead_mean_ms", "lookahead_max_ms", "epoch", "avg", "seed", "commit")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Audio:
    """Playable audio of the utterances.

    read: name -> FLAC, for the worst ones, which the page contains: at most `count` of them and `budget` bytes;
    links: name -> relative address, for all others.
    """

    read: Callable[[str], bytes]
    links: Mapping[str, str]
    count: int = 20
    budget: int = 1_500_000


class Markup(str):
    """Text that is HTML already."""


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """An HTML element; content that is no Markup, and every attribute, is escaped. `class_` and `data_x` are names."""
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    start = "".join([tag, *(f' {name}="{html.escape(str(value))}"' for name, value in names)])
    return Markup(f"<{start}>{joined(content)}</{tag}>")


def joined(content: Iterable[object], between: str = "") -> Markup:
    """Pieces of a page one after another, escaped unless they are Markup."""
    return Markup(between.join(c if isinstance(c, Markup) else html.escape(str(c)) for c in content))


def write_page(
    folder: Path, scored: Sequence[Scored], facts: Mapping[str, Any], speakers: Mapping[str, str], audio: Audio | None
) -> None:
    """Write errors.html into a decode folder.

    facts: those of wer.json, with `set`; speakers: utterance -> speaker, may be empty. Raises ValueError for a
    test set without reference words.
    """
    write_lines(folder / PAGE, [page(scored, facts, speakers, audio)])


def page(
    scored: Sequence[Scored], facts: Mapping[str, Any], speakers: Mapping[str, str], audio: Audio | None
) -> Markup:
    """The whole page."""
    unit = "word" if facts["method"] not in OF_UNITS else "unit"
    ordered = worst_first(scored)
    pairs = {s.name: alignment(s) for s in ordered}
    kept = ordered[:MOST_UTTERANCES]
    sounds = addresses(kept, audio) if audio else {}
    parts = {
        "title": joined([f"{facts['experiment']}, {facts['set']}, {facts['mode']}, {facts['method']}: errors"]),
        "heading": joined(
            [
                facts["experiment"],
                " ",
                element("small", "{set} · {mode} · {method}".format(**facts)),
            ]
        ),
        "summary": summary(scored, speakers, unit),
        "facts": fact_list(facts),
        "speakers": speaker_table(scored, speakers, unit),
        "confusions": confusion_tables(pairs.values()),
        "shown": joined([_shown(len(kept), len(ordered), "utterances", "all are in the recogs file")]),
        "utterances": joined((utterance(s, pairs[s.name], speakers, sounds, unit) for s in kept), "\n"),
    }
    return filled(parts)


def filled(parts: Mapping[str, str]) -> Markup:
    """The template with its parts, its style and its script, and a policy that allows these two alone."""
    text = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    inside = {"css": text["css"], "js": text["js"], "css_hash": _sha256(text["css"]), "js_hash": _sha256(text["js"])}
    whole = {**parts, **inside}
    return Markup(re.sub(r"\{\{(\w+)\}\}", lambda match: whole[match[1]], text["html"]))


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def worst_first(scored: Iterable[Scored]) -> list[Scored]:
    """Most errors first, then the shorter reference, then the name."""
    return sorted(scored, key=lambda s: (-s.errors, len(s.reference), s.name))


def addresses(ordered: Sequence[Scored], audio: Audio) -> dict[str, str]:
    """Utterance -> address of its audio: `data:` for the worst ones, as far as count and budget go, else its link."""
    links, left = dict(audio.links), audio.budget
    for each in [s for s in ordered if s.errors][: audio.count]:
        content = audio.read(each.name)
        if len(content) <= left:
            links[each.name] = "data:audio/flac;base64," + base64.b64encode(content).decode()
            left -= len(content)
    return links


# Figures


def summary(scored: Sequence[Scored], speakers: Mapping[str, str], unit: str) -> Markup:
    """Error rate with its intervals, and what it is made of."""
    rate = ErrorRate.of(scored)
    wrong = sum(s.errors > 0 for s in scored)
    intervals = [f"{_range(rate.ci95)} drawing utterances"]
    if len(set(speakers.values())) >= FEWEST:
        intervals.append(f"{_range(by_speaker(scored, speakers))} drawing speakers")
    made_of = (
        f"{rate.ref_words} {unit}s: {rate.sub} substituted, {rate.dele} deleted, {rate.ins} inserted; "
        f"{wrong} of {len(scored)} utterances have errors"
    )
    figure = element("p", element("strong", f"{rate.wer:.2f} %"), f" {unit} error rate", class_="rate")
    return joined([figure, element("p", "95 % interval: ", ", ".join(intervals)), element("p", made_of)])


def by_speaker(scored: Sequence[Scored], speakers: Mapping[str, str]) -> tuple[float, float]:
    """95 % interval of the error rate in percent when speakers are drawn."""
    ordered = sorted(scored, key=lambda s: s.name)
    sums = resampled(grouped(counts(ordered), [speakers[s.name] for s in ordered]), 1000, 0)
    return interval(100 * sums[:, 0] / sums[:, 1].clip(1))


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2f}–{bounds[1]:.2f}"


def fact_list(facts: Mapping[str, Any]) -> Markup:
    """Settings of the decoding that wer.json has."""
    known = [(key.replace("_", " "), facts[key]) for key in FACTS if facts.get(key) is not None]
    plain = ((key, f"{value:g}" if isinstance(value, float) else value) for key, value in known)
    return joined(element("div", element("dt", key), element("dd", value)) for key, value in plain)


def speaker_table(scored: Sequence[Scored], speakers: Mapping[str, str], unit: str) -> Markup:
    """Error rate of each speaker, the worst first."""
    if not speakers:
        return element("p", "The cuts name no speakers.")
    groups: dict[str, list[Scored]] = {}
    for each in scored:
        groups.setdefault(speakers[each.name], []).append(each)
    rows = sorted(groups.items(), key=lambda item: (-_rate(item[1]), item[0]))
    head = ("speaker", "rate / %", "95 % interval", f"{unit}s", "sub", "del", "ins", "utt.")
    body = [_speaker_row(name, group) for name, group in rows[:MOST_SPEAKERS]]
    return joined([table(head, body), element("p", _shown(len(body), len(rows), "speakers"))])


def _speaker_row(name: str, scored: Sequence[Scored]) -> list[object]:
    sums = [sum(getattr(s, kind) for s in scored) for kind in ("sub", "dele", "ins")]
    words = sum(len(s.reference) for s in scored)
    button = element("button", name, type="button", data_query=f"speaker:{name}")
    return [button, f"{_rate(scored):.2f}", _range(bootstrap(scored)) if words else "-", words, *sums, len(scored)]


def _rate(scored: Sequence[Scored]) -> float:
    return 100 * sum(s.errors for s in scored) / max(1, sum(len(s.reference) for s in scored))


def confusion_tables(pairs: Iterable[Sequence[tuple[str | None, str | None]]]) -> Markup:
    """The most frequent substitutions, deletions and insertions."""
    counts = Counter((a, b) for each in pairs for a, b in each if a != b)
    kinds = (
        ("Substituted", [p for p in counts if None not in p]),
        ("Deleted", [p for p in counts if p[1] is None]),
        ("Inserted", [p for p in counts if p[0] is None]),
    )
    return joined(_confusions(title, {p: counts[p] for p in chosen}) for title, chosen in kinds)


def _confusions(title: str, counts: Mapping[tuple[str | None, str | None], int]) -> Markup:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], str(item[0][0]), str(item[0][1])))
    rows = []
    for (reference, hypothesis), count in ordered[:MOST_PAIRS]:
        mark = error(reference, hypothesis)
        plain = html.unescape(re.sub("<[^>]*>", "", mark))
        rows.append([element("button", mark, type="button", data_query=plain), count])
    shown = element("p", _shown(len(rows), len(ordered), "kinds"))
    return element("div", element("h3", title), table(("error", "times"), rows), shown)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table in a box that scrolls by itself where the screen is narrow."""
    first = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    whole = element("table", element("thead", first), element("tbody", *body))
    return element("div", whole, class_="wide", tabindex="0", role="region", aria_label=f"table by {head[0]}")


def _shown(shown: int, known: int, what: str, where: str = "") -> str:
    if shown == known:
        return f"{known} {what}"
    return f"the first {shown} of {known} {what}" + (f"; {where}" if where else "")


# Utterances


def utterance(
    scored: Scored,
    pairs: Sequence[tuple[str | None, str | None]],
    speakers: Mapping[str, str],
    sounds: Mapping[str, str],
    unit: str,
) -> Markup:
    """One utterance: play button, figures, name, speaker, and the alignment with its errors marked."""
    words, speaker, sound = len(scored.reference), speakers.get(scored.name), sounds.get(scored.name)
    rate = f" ({100 * scored.errors / words:.0f} %)" if words else ""
    plural = "" if scored.errors == 1 else "s"
    play = element("button", type="button", class_="play", data_sound=sound, aria_label=f"play {scored.name}")
    meta = [
        play if sound else "",
        element("b", f"{scored.errors} error{plural}"), f" in {words} {unit}{'' if words == 1 else 's'}{rate} ",
        element("span", scored.name, class_="name"), " ",
        element("button", speaker, type="button", data_query=f"speaker:{speaker}") if speaker else "",
    ]  # fmt: skip
    marked = element("p", joined(marks(pairs), " "), class_="words", dir="auto")
    share = f"{scored.errors / max(1, words):.4f}"
    return element(
        "li", element("p", *meta, class_="meta"), marked, tabindex="-1",
        data_name=scored.name, data_speaker=speaker, data_errors=scored.errors, data_rate=share,
    )  # fmt: skip


def marks(pairs: Iterable[tuple[str | None, str | None]]) -> Iterator[object]:
    """Words that are right as they are, errors as elements."""
    for right, some in groupby(pairs, lambda pair: pair[0] == pair[1]):
        if right:
            yield " ".join(str(reference) for reference, _ in some)
        else:
            yield from (error(*pair) for pair in some)


@lru_cache(maxsize=10_000)
def error(reference: str | None, hypothesis: str | None) -> Markup:
    """A deletion as −WORD, an insertion as +WORD, a substitution as WORD→OTHER, each in its colour."""
    if hypothesis is None:
        return element("del", "−", element("s", reference))
    if reference is None:
        return element("ins", f"+{hypothesis}")
    return element("span", element("s", reference), "→", element("b", hypothesis), class_="sub")
