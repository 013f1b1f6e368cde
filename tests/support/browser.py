"""A headless Chromium, driven over its debugging protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


def program() -> str | None:
    """Path of the browser, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page: call the protocol, evaluate scripts, press keys; `events` collects the browser's events."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._count = socket, 0
        self._replies: dict[int, asyncio.Future[dict]] = {}
        self.events: list[dict] = []
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):  # the browser is terminated while events still arrive
            async for message in self._socket:
                content = json.loads(message)
                if "id" in content:
                    self._replies.pop(content["id"]).set_result(content)
                else:
                    self.events.append(content)

    async def call(self, method: str, **params: Any) -> dict:
        self._count += 1
        self._replies[self._count] = reply = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        content = await asyncio.wait_for(reply, 20)
        assert "error" not in content, (method, content["error"])
        return content["result"]

    async def ask(self, script: str) -> Any:
        """The value of an expression."""
        reply = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    async def until(self, script: str, seconds: float = 20.0) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := await self.ask(script)):
            if time.monotonic() > end:
                page = await self.ask("document.body.innerText")
                raise AssertionError(f"{script} did not become true; the page shows: {page}")
            await asyncio.sleep(0.05)
        return value

    async def press(self, key: str) -> None:
        """A key down and up, as from a keyboard."""
        code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key.upper()[0])), "key": key}
        text = {} if len(key) > 1 and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    async def picture(
        self, path: Path, width: int = 1100, height: int = 800, scheme: str = "light", mobile: bool = False
    ) -> None:
        """A screenshot of the page in a window of that size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def browsing(address: str, folder: Path, *options: str) -> AsyncIterator[Page]:
    """A page at an address; folder: for the browser's own files."""
    command = [
        program() or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        f"--user-data-dir={folder}", "--no-first-run", "--mute-audio", "--disable-background-networking",
        "--disable-dev-shm-usage", *options, "about:blank",
    ]  # fmt: skip
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null)
    try:
        port = await _port(folder / "DevToolsActivePort")
        async with connect(await asyncio.to_thread(_page, port), max_size=None, open_timeout=20) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=address)
            await page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
            yield page
    finally:
        process.terminate()
        await process.wait()


async def _port(file: Path) -> int:
    for _ in range(600):
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("the browser did not start")


def _page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as reply:
        return next(item for item in json.load(reply) if item["type"] == "page")["webSocketDebuggerUrl"]
