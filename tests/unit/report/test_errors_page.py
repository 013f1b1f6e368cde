"""The page of errors: what it shows is what was scored, and nothing in transcripts or names becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.report.errors_page import page
from distill.scoring.wer import ErrorRate, Scored, alignment, score

FACTS = {"experiment": "ss", "set": "test-other", "mode": "streaming", "method": "1best", "chunk_ms": 320.0, "lm": None}
HOSTILE = [
    "<script>alert(1)</script>", '"><img', "onerror=alert(1)>", "{{js}}", "&lt;b&gt;", "</li></title>", "'", "\\1",
]  # fmt: skip
VOID = {"meta", "input", "link", "img", "br"}


class Node:
    """An element of the parsed page."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.content: list[Node | str] = []

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.content)

    def all(self, tag: str) -> list[Node]:
        below = [c for c in self.content if isinstance(c, Node)]
        return [n for c in below for n in ([c] if c.tag == tag else []) + c.all(tag)]

    def with_class(self, name: str) -> Node:
        return next(n for tag in ("p", "div", "dl", "span") for n in self.all(tag) if n.attributes.get("class") == name)


class Reader(HTMLParser):
    """Parses a page; an end tag that does not fit is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].content.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)


def parsed(text: str) -> Node:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1
    return reader.open[0]


def built(
    scored: list[Scored], speakers: dict | None = None, audio: page.Audio | None = None, **facts: Any
) -> tuple[str, Node]:
    text = page.page(scored, FACTS | facts, speakers or {}, audio)
    return text, parsed(text)


def random_results(seed: int, count: int = 40) -> list[Scored]:
    rng = np.random.default_rng(seed)
    words = [["A", "B", "C", "D"][i] for i in rng.integers(0, 4, 600)]
    results = []
    for i in range(count):
        reference = words[5 * i : 5 * i + int(rng.integers(0, 9))]
        hypothesis = [w if rng.random() < 0.7 else "X" for w in reference if rng.random() < 0.9]
        results.append(score(f"s{i % 3}-{i:02}", reference, [*hypothesis, "Y"] if rng.random() < 0.2 else hypothesis))
    return results


def sides(item: Node) -> tuple[list[str], list[str]]:
    """Reference and hypothesis of an utterance, read back from its marked words."""
    reference: list[str] = []
    hypothesis: list[str] = []
    for part in item.with_class("words").content:
        if isinstance(part, str):
            reference += part.split()
            hypothesis += part.split()
        elif part.tag == "del":
            reference.append(part.text.removeprefix("−"))
        elif part.tag == "ins":
            hypothesis.append(part.text.removeprefix("+"))
        else:
            reference.append(part.all("s")[0].text)
            hypothesis.append(part.all("b")[0].text)
    return reference, hypothesis


def test_marked_words_give_reference_and_hypothesis_back() -> None:
    results = random_results(0)
    _, root = built(results)
    items = {str(item.attributes["data-name"]): item for item in root.all("li")}
    assert {name: sides(item) for name, item in items.items()} == {
        s.name: (list(s.reference), list(s.hypothesis)) for s in results
    }


def test_the_worst_come_first() -> None:
    _, root = built(random_results(1))
    errors = [int(item.attributes["data-errors"] or 0) for item in root.all("li")]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_transcripts_and_names_never_become_markup() -> None:
    _, plain = built([score("u", ["A", "B", "C", "D"], ["X", "B"])], {"u": "s"})
    results = [score(evil, [evil, *HOSTILE], [*HOSTILE[::-1], evil]) for evil in HOSTILE]
    facts = {"experiment": HOSTILE[0], "set": HOSTILE[5], "commit": HOSTILE[1] + HOSTILE[2]}
    links = {evil: evil for evil in HOSTILE}
    speakers = {evil: evil for evil in HOSTILE}
    _, root = built(results, speakers, page.Audio(lambda name: b"", links, count=0), **facts)
    every, known = [every_node(node) for node in (root, plain)]
    assert {n.tag for n in every} == {n.tag for n in known}
    names = {name for n in known for name in n.attributes} | {"data-sound"}
    assert {name for n in every for name in n.attributes} <= names
    assert [n.text for n in root.all("script")] == [n.text for n in plain.all("script")]
    assert {sides(item)[0][0] for item in root.all("li")} == set(HOSTILE)
    assert root.all("title")[0].text.startswith(HOSTILE[0])
    assert {item.all("button")[0].attributes["data-sound"] for item in root.all("li")} == set(HOSTILE)


def every_node(node: Node) -> list[Node]:
    return [n for c in node.content if isinstance(c, Node) for n in (c, *every_node(c))]


def test_only_its_own_script_and_style_may_run() -> None:
    text, root = built(random_results(2))
    policy = next(n.attributes["content"] for n in root.all("meta") if "http-equiv" in n.attributes) or ""
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(root.all(tag)[0].text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|<link|\ssrc=|\shref=|\sstyle=|\son[a-z]+=", text)


def test_figures_are_those_of_the_results() -> None:
    results = random_results(3)
    speakers = {s.name: s.name.split("-")[0] for s in results}
    _, root = built(results, speakers)
    rate = ErrorRate.of(results)
    summary = root.with_class("summary").text
    assert f"{rate.wer:.2f} % word error rate" in summary
    assert f"{rate.ci95[0]:.2f}–{rate.ci95[1]:.2f} drawing utterances" in summary
    assert f"{rate.sub} substituted, {rate.dele} deleted, {rate.ins} inserted" in summary
    rows = [[cell.text for cell in row.all("td")] for row in root.all("table")[0].all("tr")[1:]]
    assert [row[0] for row in rows] == sorted(set(speakers.values()), key=lambda s: -share(results, speakers, s))
    assert [sum(int(row[i]) for row in rows) for i in range(3, 8)] == [
        rate.ref_words, rate.sub, rate.dele, rate.ins, len(results)
    ]  # fmt: skip


def test_speakers_are_drawn_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    results = random_results(3)
    speakers = {s.name: s.name.split("-")[0] for s in results}
    assert "drawing speakers" not in built(results, speakers)[0]
    monkeypatch.setattr(page, "FEWEST", 3)
    low, high = page.by_speaker(results, speakers)
    rates = [share(results, speakers, speaker) for speaker in set(speakers.values())]
    assert 100 * min(rates) <= low < high <= 100 * max(rates)
    assert f"{low:.2f}–{high:.2f} drawing speakers" in built(results, speakers)[1].with_class("summary").text


def share(results: list[Scored], speakers: dict[str, str], speaker: str) -> float:
    own = [s for s in results if speakers[s.name] == speaker]
    return sum(s.errors for s in own) / sum(len(s.reference) for s in own)


def test_confusions_are_counted() -> None:
    results = random_results(4)
    _, root = built(results)
    expected = Counter((a, b) for s in results for a, b in alignment(s) if a != b)
    names = {(a, b): f"{a}→{b}" if a and b else f"−{a}" if a else f"+{b}" for a, b in expected}
    rows = [row.all("td") for t in root.all("table") for row in t.all("tr")[1:]]
    assert {cells[0].text: int(cells[1].text) for cells in rows} == {names[p]: n for p, n in expected.items()}
    assert all(cells[0].all("button")[0].attributes["data-query"] == cells[0].text for cells in rows)


def test_the_worst_can_be_played_within_count_and_budget() -> None:
    results = [score(f"u{i}", ["A"] * 9, ["X"] * i + ["A"] * (9 - i)) for i in range(6)]
    sizes = {"u5": 30, "u4": 80, "u3": 60, "u2": 10, "u1": 1}
    audio = page.Audio(lambda name: bytes(sizes[name]), {f"u{i}": f"{i}.flac" for i in (0, 1, 4)}, count=4, budget=100)
    _, root = built(results, audio=audio)
    sounds = {i.attributes["data-name"]: i.all("button")[0].attributes["data-sound"] for i in root.all("li")[:2]}
    assert base64.b64decode(str(sounds["u5"]).removeprefix("data:audio/flac;base64,")) == bytes(30)
    found = page.addresses(page.worst_first(results), audio)
    kinds = {name: address.partition(":")[0] for name, address in found.items()}
    assert kinds == {"u5": "data", "u4": "4.flac", "u3": "data", "u2": "data", "u1": "1.flac", "u0": "0.flac"}


def test_without_audio_there_is_nothing_to_play() -> None:
    _, root = built(random_results(5))
    assert not [b for b in root.all("button") if b.attributes.get("class") == "play"]


def test_same_results_same_bytes_in_any_order() -> None:
    results = random_results(6)
    speakers = {s.name: s.name.split("-")[0] for s in results}
    assert built(results, speakers)[0] == built(results[::-1], dict(reversed(speakers.items())))[0]


def test_left_out_utterances_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_UTTERANCES", 7)
    _, root = built(random_results(7))
    assert len(root.all("li")) == 7
    assert root.all("output")[0].text == "the first 7 of 40 utterances; all are in the recogs file"


def test_an_utterance_without_words_has_no_rate() -> None:
    _, root = built([score("u", [], ["A"]), score("v", ["A"], ["A"])], method="greedy")
    assert root.all("li")[0].with_class("meta").text.strip() == "1 error in 0 units u"
    assert "unit error rate" in root.with_class("summary").text


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    results = random_results(8)
    page.write_page(tmp_path, results, FACTS, {}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["errors.html"]
    assert (tmp_path / "errors.html").read_text(encoding="utf-8") == built(results)[0] + "\n"
    with pytest.raises(ValueError, match="no reference words"):
        page.write_page(tmp_path, [score("u", [], [])], FACTS, {}, None)
