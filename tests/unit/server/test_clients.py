"""The original client programs of sherpa-onnx and Vosk, if installed.

    pip install sherpa-onnx-bin vosk

Their messages are also in `clients.sherpa` and `clients.vosk`, whose tests always run.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from distill.decode.online import OnlineDecoder
from distill.server.server import Server
from tests.support.clients import PATIENCE, audio, metric, sentence, serving

SHERPA = "sherpa-onnx-online-websocket-client"
VOSK = """
import asyncio, json, sys
from vosk.transcriber import transcriber

transcriber.Model = lambda **names: None  # a model is loaded even where a server does the work
arguments = {"server": sys.argv[1], "output_type": "txt", "model": None, "model_name": None, "lang": None}
client = transcriber.Transcriber(type("Arguments", (), arguments))

async def run():
    reader = await asyncio.create_subprocess_exec("cat", sys.argv[2], stdout=asyncio.subprocess.PIPE)
    results, samples = await client.recognize_stream_server(reader)
    print(json.dumps({"results": results, "text": client.format_result(results)}))

asyncio.run(run())
"""


def sherpa_program() -> str:
    path = shutil.which(SHERPA) or shutil.which(SHERPA, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip("sherpa-onnx-bin is not installed")
    return path


async def output_of(*command: str) -> str:
    """Output of a program that must succeed."""
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    text = (await asyncio.wait_for(program.communicate(), PATIENCE))[0].decode()
    assert program.returncode == 0, text
    return text


def sixteen_bits(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def test_sherpa_onnx_client(decoder: OnlineDecoder, tmp_path: Path) -> None:
    program, words = sherpa_program(), sentence(20, 12)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(sixteen_bits(audio(decoder, words)))

    async def visit(server: Server, url: str) -> None:
        where = ["--server-ip=127.0.0.1", f"--server-port={server.port}"]
        pace = ["--samples-per-message=1600", "--seconds-per-message=0.02"]
        text = await output_of(program, *where, *pace, str(tmp_path / "speech.wav"))
        messages = [json.loads(line[line.index("{") :]) for line in text.splitlines() if '"text"' in line]
        assert messages[-1]["text"].split() == words
        assert any(0 < len(message["text"].split()) < len(words) for message in messages)

    server = serving(decoder, visit)
    assert metric(server, 'streams_total{protocol="sherpa"}') == 1


def test_vosk_client(decoder: OnlineDecoder, tmp_path: Path) -> None:
    if importlib.util.find_spec("vosk") is None:  # not imported here: its library hangs beside torch
        pytest.skip("vosk is not installed")
    first, second = sentence(21), sentence(22)
    samples = np.concatenate([audio(decoder, first), np.zeros(32000, np.float32), audio(decoder, second)])
    (tmp_path / "speech.raw").write_bytes(sixteen_bits(samples))

    async def visit(server: Server, url: str) -> None:
        text = await output_of(sys.executable, "-c", VOSK, url, str(tmp_path / "speech.raw"))
        output = json.loads(text.splitlines()[-1])
        assert output["text"].split("\n") == [" ".join(first), " ".join(second), ""]
        words = [word for result in output["results"] for word in result.get("result", [])]
        assert [word["word"] for word in words] == first + second
        assert all(word["conf"] > 0.9 and word["start"] < word["end"] for word in words)

    server = serving(decoder, visit)
    assert metric(server, 'streams_total{protocol="vosk"}') == 1
