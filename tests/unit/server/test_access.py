"""Access by token, origin and TLS; pages over HTTP; wrong settings of the server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import ssl
import subprocess
from functools import partial
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.server import app
from distill.server.connection import Limits
from distill.server.metrics import Metrics
from distill.server.page import FILES, file
from distill.server.scheduler import Scheduler
from distill.server.server import Address, Server
from tests.support.clients import PATIENCE, Loudness, audio, get, sentence, serving, sherpa


def test_http_beside_the_sockets(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        async def fetch(path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
            return await asyncio.to_thread(get, url + path, **headers)

        assert (await fetch("/health"))[:2] == (200, "ok\n")
        status, text, headers = await fetch("/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
        assert re.search(r"^distill_streams_open 0.0$", text, re.MULTILINE)
        for path in FILES:
            status, text, headers = await fetch(path)
            assert status == 200 and text and "default-src 'none'" in headers["Content-Security-Policy"]
        assert (await fetch("/nothing"))[0] == 404
        assert (await fetch("/sherpa"))[0] == 426
        assert (await fetch("/", Host="evil.example"))[0] == 403
        assert (await fetch("/", Origin="http://evil.example"))[0] == 403
        server.scheduler.close()
        assert (await fetch("/health"))[:2] == (503, "the recognition has stopped\n")

    serving(decoder, visit)


MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\0\x01\r\n\r\n",
    "another method": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    "a body": b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    "another version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n: localhost\r\n\r\n",
    "a host that is none": b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a path that is none": b"GET //[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "two upgrades": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n",
    "an origin that is none": b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
    "a path of other bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a token of other bytes": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n",
    "a key that is none": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "no key": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "a line too long": b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "too many headers": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    "cut": b"GET / HTTP/1.1\r\nHost: local",
}  # fmt: skip


def test_malformed_requests_get_a_status(decoder: OnlineDecoder, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(url: str, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*url.removeprefix("ws://").split(":"))
        writer.write(request)
        if not request.endswith(b"\r\n\r\n") and b"hello" not in request:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 8)
        writer.close()
        return answer

    async def visit(server: Server, url: str) -> None:
        answers = await asyncio.gather(*(ask(url, request) for request in MALFORMED.values()))
        statuses = {name: answer[:12] for name, answer in zip(MALFORMED, answers)}
        assert {name: status for name, status in statuses.items() if not status.startswith(b"HTTP/1.1 4")} == {}
        assert (await asyncio.to_thread(get, url + "/health"))[0] == 200

    serving(decoder, visit, Limits(opening=2.0, leave=0.0), Address(port=0, token="secret"))
    assert "Traceback" not in caplog.text and not caplog.records


def test_token_and_origin_are_required(decoder: OnlineDecoder) -> None:
    words = sentence(10)

    async def visit(server: Server, url: str) -> None:
        for wrong in (url, url + "/?token=no", url + "/metrics"):
            with pytest.raises(InvalidStatus, match="401"):
                await connect(wrong)
        with pytest.raises(InvalidStatus, match="403"):
            await connect(url + "/?token=secret", origin="https://evil.example")
        assert (await sherpa(url + "/?token=secret", audio(decoder, words)))[-1]["text"].split() == words
        async with connect(url, additional_headers={"Authorization": "Bearer secret"}, origin="https://good.example"):
            pass
        assert (await asyncio.to_thread(get, url + "/"))[0] == 200  # the page itself asks for the token

    serving(decoder, visit, address=Address(port=0, token="secret", origins=("https://good.example",)))


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in FILES:
        served = file(path)
        assert served is not None
        assert not re.search(r"""(?:https?:)?//(?!\s)[\w-]+\.[\w.]+""", served[0]), path
    assert file("/../server.py") is None


def test_a_port_in_use_and_missing_files_are_named(decoder: OnlineDecoder, tmp_path: Path) -> None:
    async def visit(server: Server, url: str) -> None:
        second = Scheduler(Loudness(4), partial(OnlineSearch, decoder), Metrics())
        with pytest.raises(ValueError, match="cannot listen on 127"):
            await app.run(second, Address(port=server.port), Limits(), lambda port: None)

    serving(decoder, visit)
    with pytest.raises(FileNotFoundError, match="train it first"):
        app.open_scheduler(tmp_path / "exp" / "ss")
    with pytest.raises(ValueError, match="--token"):
        app.check_access(Address(host="0.0.0.0"))
    with pytest.raises(FileNotFoundError, match="PEM"):
        app.tls_context(tmp_path / "cert.pem", None)
    assert app.data_folder(tmp_path / "exp-mini" / "ss") == tmp_path.resolve() / "data-mini"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of this machine with its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", path, "-out", path], check=True, capture_output=True)
    return path


def test_tls_with_a_token(decoder: OnlineDecoder, certificate: Path) -> None:
    words, trusting = sentence(12), ssl.create_default_context(cafile=str(certificate))

    async def visit(server: Server, url: str) -> None:
        secure = url.replace("ws://", "wss://")
        page = await asyncio.to_thread(get, secure.replace("wss://", "https://") + "/", trusting)
        assert page[0] == 200 and "<title>" in page[1]
        with pytest.raises(InvalidStatus, match="401"):
            await connect(secure, ssl=trusting)
        with pytest.raises(ssl.SSLCertVerificationError):  # unknown certificate
            await connect(secure + "/?token=secret")
        with pytest.raises((OSError, EOFError, InvalidMessage)):  # client without TLS
            await connect(url + "/?token=secret", open_timeout=2)
        messages = await sherpa(secure + "/?token=secret", audio(decoder, words), ssl=trusting)
        assert messages[-1]["text"].split() == words

    serving(decoder, visit, address=Address(port=0, token="secret", tls=app.tls_context(certificate, None)))


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="no certificate with its key"):
        app.tls_context(tmp_path / "cert.pem", None)


@pytest.mark.parametrize("presses", [1, 2])
def test_a_signal_ends_open_streams_and_a_second_one_at_once(decoder: OnlineDecoder, presses: int) -> None:
    words, limits = sentence(13), Limits(leave=0.3 if presses == 1 else 60.0)
    loudness, ports = Loudness(len(decoder.lang.outputs)), list[int]()
    scheduler = Scheduler(loudness, partial(OnlineSearch, decoder), Metrics())

    async def run() -> None:
        ending = asyncio.create_task(app.run(scheduler, Address(port=0), limits, ports.append))
        while not ports:
            await asyncio.sleep(0.01)
        async with connect(f"ws://127.0.0.1:{ports[0]}") as socket:
            await socket.send(audio(decoder, words).tobytes())
            await socket.recv()
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.1)
            messages = [message async for message in socket]
            assert messages[-1] == "Done!" and " ".join(words) in messages[-2] and socket.close_code == 1001
        await asyncio.wait_for(ending, PATIENCE)

    asyncio.run(run())
    assert not scheduler.alive
