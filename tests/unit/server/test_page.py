"""The page in a headless Chromium, with a recording as its microphone; skipped where there is no Chromium.

PICTURES=DIR keeps screenshots there, to be looked at.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from distill.decode.online import OnlineDecoder
from distill.server.server import Address, Server
from tests.support.browser import Page, browsing, program
from tests.support.clients import HOP, Loudness, sentence, serving

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium on this machine")
FIRST, STEP, QUIET, HELD, REST = 3, 2, 0.02, 10, 5  # of tones in 100 Hz; frames of a tone, and after it
FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


class Tones(Loudness):
    """Maps pitch to units, as pitch survives the browser's audio processing."""

    def units(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, HOP) -> units (T,), 0 where it is quiet."""
        spectrum = np.abs(np.fft.rfft(frames))[:, FIRST : FIRST + STEP * self.outputs : STEP]
        return np.where(np.abs(frames).mean(1) < QUIET, 0, spectrum.argmax(1))


def tones(decoder: OnlineDecoder, words: Sequence[str], path: Path) -> Path:
    """A recording that encodes the words for `Tones`."""
    time, pieces = np.arange(HELD * HOP) / 16000, [np.zeros(8000)]
    for word in words:
        for letter in word:
            pitch = 100 * (FIRST + STEP * decoder.lang.tokens[letter])
            pieces += [0.4 * np.sin(2 * np.pi * pitch * time), np.zeros(REST * HOP)]
    samples = np.concatenate([*pieces, np.zeros(64000)])  # long, as the microphone repeats it
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((32767 * samples).astype("<i2").tobytes())
    return path


def visiting(
    decoder: OnlineDecoder, folder: Path, visit: Callable[[Page], Awaitable[None]], recording: Path,
    address: Address | None = None, path: str = "/",
) -> None:  # fmt: skip
    async def run(server: Server, url: str) -> None:
        home = url.replace("ws://", "http://")
        options = (*FAKE, f"--use-file-for-fake-audio-capture={recording}%noloop")
        async with browsing(home + path, folder / "profile", *options) as page:
            await visit(page)
            asked = {e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"}
            assert asked and all(each.startswith((home, "data:", "blob:")) for each in asked), asked
            assert not [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]

    serving(decoder, run, address=address, model=Tones(len(decoder.lang.outputs)), seconds=90)


async def transcript_has(page: Page, words: Sequence[str]) -> None:
    await page.until(f"document.getElementById('transcript').innerText.includes({' '.join(words)!r})")


async def choose(page: Page, file: Path) -> None:
    root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
    node = (await page.call("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
    await page.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])


async def pictures(page: Page, name: str) -> None:
    """Nothing is cut off in a narrow window either."""
    folder = Path(os.environ.get("PICTURES", ""))
    for scheme, width in (("light", 1100), ("dark", 1100), ("dark", 390)):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        await page.call("Emulation.setDeviceMetricsOverride", **size)
        assert await page.ask("document.documentElement.scrollWidth") <= width
        if "PICTURES" in os.environ:
            await page.picture(folder / f"{name}-{scheme}-{width}.png", width, 800, scheme, width < 500)


def test_microphone_by_keyboard(decoder: OnlineDecoder, tmp_path: Path) -> None:
    words = sentence(30, 8)

    async def visit(page: Page) -> None:
        await page.press("m")
        await page.until("document.getElementById('microphone').getAttribute('aria-pressed') === 'true'")
        await page.until("document.querySelectorAll('#transcript .unsure').length > 0")  # words come while recording
        await transcript_has(page, words)
        await pictures(page, "microphone")
        for figure in ("after-chunk", "after-word"):
            await page.until(f"/^\\d+ ms/.test(document.getElementById('{figure}').textContent)")
        await page.press("Escape")
        await page.until("document.getElementById('status').textContent === 'Done.'")
        assert await page.ask("document.getElementById('microphone-label').textContent") == "Microphone"
        assert await page.ask("document.querySelectorAll('#transcript .unsure').length") == 0
        titles = await page.ask("[...document.querySelectorAll('#transcript .word')].map((word) => word.title)")
        assert len(titles) == len(words) and all(" %, " in title and title.endswith(" s") for title in titles)
        assert await page.ask("document.getElementById('spoken').textContent") == " ".join(words)
        await page.press("c")
        assert await page.ask("document.getElementById('transcript').children.length") == 0

    visiting(decoder, tmp_path, visit, tones(decoder, words, tmp_path / "speech.wav"))


def test_file_and_tab_order(decoder: OnlineDecoder, tmp_path: Path) -> None:
    words = sentence(31, 8)
    recording = tones(decoder, words, tmp_path / "speech.wav")
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")

    async def visit(page: Page) -> None:
        order = []
        for _ in range(6):
            await page.press("Tab")
            order.append(await page.ask("document.activeElement.id"))
        assert order == ["microphone", "file", "paced", "clear", "copy", "transcript"]
        unnamed = (
            "[...document.querySelectorAll('button, input, meter, ol')].filter((each) => !each.closest('[hidden]')"
        )
        unnamed += " && !(each.ariaLabel || each.innerText || (each.labels && each.labels.length))).length"
        assert await page.ask(unnamed) == 0
        await choose(page, recording)
        await transcript_has(page, words)
        await page.until("document.getElementById('status').textContent === 'Done.'")
        await choose(page, tmp_path / "broken.wav")
        await page.until("document.getElementById('status').textContent.includes('broken.wav cannot be read')")
        await pictures(page, "file")

    visiting(decoder, tmp_path, visit, recording)


def test_a_token_is_required(decoder: OnlineDecoder, tmp_path: Path) -> None:
    words = sentence(32)
    recording = tones(decoder, words, tmp_path / "speech.wav")

    async def visit(page: Page) -> None:
        await choose(page, recording)
        await page.until("!document.getElementById('access').hidden")
        page.events[:] = [event for event in page.events if event["method"] != "Log.entryAdded"]  # the refusal
        await page.ask("document.getElementById('token').focus()")
        await page.call("Input.insertText", text="secret")
        await page.press("Enter")
        await choose(page, recording)
        await transcript_has(page, words)

    address = Address(port=0, token="secret")
    visiting(decoder, tmp_path, visit, recording, address)
