"""Published models in their exact layout: transcribed as transformers does, from a folder, a cache and a server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.support.published import BASE, LARGE, LETTERS, write_twin

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
NAME = "facebook/wav2vec2-base-960h"
SECONDS = (0.8, 2.3)


def noise(folder: Path) -> list[Path]:
    """Recordings whose loudness changes, so that outputs do."""
    draw, paths = np.random.default_rng(4), []
    for number, seconds in enumerate(SECONDS):
        envelope = np.repeat(draw.uniform(0.01, 0.3, 60), 800)[: int(16000 * seconds)]
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], envelope * draw.standard_normal(len(envelope)), 16000, subtype="PCM_16")
    return paths


def lively(model: torch.nn.Module, folder: Path, binary: bool) -> None:
    """A prediction layer large enough for letters to change from frame to frame, stored in place of the first.

    The words' delimiter takes the row of a letter that every twin emits.
    """
    swapped = [LETTERS.index(letter) for letter in "|N"]
    with torch.no_grad():
        model.lm_head.weight[swapped] = model.lm_head.weight[swapped[::-1]]
        model.lm_head.weight.mul_(300)
        model.lm_head.bias.zero_()
    if binary:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)


def expected(model: torch.nn.Module, folder: Path, audio: list[Path]) -> list[str]:
    """Texts of transformers' own model and processor, one recording at a time."""
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    processor = transformers.Wav2Vec2Processor(extractor, transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder))
    texts = []
    for path in audio:
        inputs = processor(soundfile.read(path)[0], sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            ids = model(inputs.input_values).logits.argmax(-1)
        texts.append(" ".join(processor.batch_decode(ids)[0].split()))
    return texts


def transcribe(source: str, audio: list[Path], **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/transcribe.py"), "--experiment", source, *map(str, audio)]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=known, timeout=300)


def texts_of(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.split("\t")[1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("name", "kind", "binary"),
    [("Wav2Vec2ForCTC", BASE, True), ("Wav2Vec2ForCTC", LARGE, False), ("HubertForCTC", LARGE, True)],
)
def test_a_published_model_transcribes_as_transformers_does(
    name: str, kind: dict, binary: bool, tmp_path: Path
) -> None:
    folder, audio = tmp_path / "model", noise(tmp_path)
    model = write_twin(folder, name, kind, binary)
    lively(model, folder, binary)
    texts = expected(model, folder, audio)
    assert all(len(text) > 20 for text in texts) and any(" " in text for text in texts), texts
    assert texts_of(transcribe(str(folder), audio)) == texts


def test_a_blank_that_is_not_the_first_row_and_lower_case(tmp_path: Path) -> None:
    """As models fine-tuned by others have them: the blank last."""
    folder, audio = tmp_path / "model", noise(tmp_path)
    letters = [*(letter.lower() for letter in LETTERS[3:]), "<s>", "</s>", "<pad>"]
    model = write_twin(folder, kind=LARGE, pad_token_id=len(letters) - 1)
    (folder / "vocab.json").write_text(json.dumps({letter: row for row, letter in enumerate(letters)}))
    (folder / "tokenizer_config.json").unlink()
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    lively(model, folder, False)
    assert texts_of(transcribe(f"hf:{folder}", audio)) == expected(model, folder, audio)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, list[str], list[Path]]:
    folder, audio = tmp_path / "model", noise(tmp_path)
    model = write_twin(folder, kind=BASE, binary=True)
    lively(model, folder, True)
    return folder, expected(model, folder, audio), audio


def test_a_name_is_found_in_the_cache_without_a_network(published: tuple, tmp_path: Path) -> None:
    folder, texts, audio = published
    cache = tmp_path / "home/hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("a" * 40)
    assert texts_of(transcribe(f"hf:{NAME}", audio, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")) == texts


def test_without_network_and_cache_one_line_names_repository_files_and_folder(tmp_path: Path) -> None:
    done = transcribe(f"hf:{NAME}", noise(tmp_path), HF_HOME=str(tmp_path / "none"), HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    for part in (NAME, "huggingface.co", "config.json", "pytorch_model.bin", "vocab.json", "into a folder", "HF_HOME"):
        assert part in line, line


class Hub(BaseHTTPRequestHandler):
    """The hub's answers for one repository in `folder`."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        names = sorted(path.name for path in self.folder.iterdir())
        if path.startswith(f"/api/models/{NAME}"):
            listing = {"id": NAME, "sha": "b" * 40, "siblings": [{"rfilename": name} for name in names]}
            tree = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in names]
            content = json.dumps(tree if "/tree/" in path else listing).encode()
        elif path.startswith(f"/{NAME}/resolve/") and (name := path.rpartition("/")[2]) in names:
            content = (self.folder / name).read_bytes()
            self.asked += [name] if body else []
        else:
            self.send_error(404)
            return
        self.send_response(200)
        headers = {
            "Content-Length": str(len(content)), "X-Repo-Commit": "b" * 40, "Content-Type": "application/json",
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }  # fmt: skip
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(published: tuple) -> Iterator[tuple[str, list[str]]]:
    """Address of a server with the published model, and the names of files that were fetched."""
    handler = type("OneModel", (Hub,), {"folder": published[0], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()


def test_a_name_is_downloaded_once(published: tuple, hub: tuple[str, list[str]], tmp_path: Path) -> None:
    folder, texts, audio = published
    (folder / "flax_model.msgpack").write_bytes(b"not wanted")
    address, asked = hub
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    for _ in range(2):
        assert texts_of(transcribe(f"hf:{NAME}", audio, **environment)) == texts
    assert sorted(asked) == sorted(path.name for path in folder.iterdir() if path.suffix != ".msgpack")
