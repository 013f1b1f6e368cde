"""Sessions, server and tools over a transducer, alone and beside a main output: the words of stage 10."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.data.audio import read_audio
from distill.decode.online_transducer import OnlineBeam
from distill.recipe import decoding, exporting
from distill.recipe.emissions import Run, cut_set
from distill.recipe.options import Recipe
from distill.runtime.info import ModelInfo
from distill.runtime.open import open_batches, open_session
from distill.runtime.timing import piece_of, run
from distill.runtime.transcriber import Transcriber, open_search
from distill.server import app
from distill.server.connection import Limits
from distill.server.server import Address, Server
from tests.support.clients import sherpa
from tests.support.tiny_recipe import Tiny, add_transducer
from tools import transcribe

KINDS = {
    "alone": {"alone": True},
    "joint": {"transducer_beam": 5, "transducer_lm_scale": 0.6},
    "lstm": {"alone": True, "predictor": "lstm"},
}
OUTPUT = {"alone": "", "joint": "transducer", "lstm": ""}
SET = "test-other"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recipe(tiny: Tiny, kind: str) -> Recipe:
    return add_transducer(tiny, **KINDS[kind])


def stage_10s(recipe: Recipe, runtime: str = "torch", mode: str = "streaming") -> dict[str, list[str]]:
    """Words of the beam by utterance."""
    run = Run(recipe.experiment("other"), SET, mode, runtime, output="transducer")
    found = decoding.transducer_beam(decoding.Decoding(recipe, run)).scored
    return {each.name: list(each.hypothesis) for each in found}


def in_odd_portions(transcriber: Transcriber, wave: np.ndarray) -> list[str]:
    cuts = [1, 400, 401, 1999, 2600, 7000]
    ended = [words for piece in np.split(wave, cuts) if len(piece) for words in transcriber.feed(piece)]
    return [word.text for words in (*ended, *transcriber.finish()) for word in words]


def export(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stage 12 without its measurements of speed."""
    monkeypatch.setattr(exporting, "timing_rows", lambda *_: iter(()))
    folder = recipe.exp("other") / "export"
    folder.mkdir()
    exporting.export(recipe, recipe.experiment("other"), folder)
    return folder


def test_a_session_has_the_words_of_stage_10(recipe: Recipe, kind: str) -> None:
    session = open_session(recipe.exp("other"), "torch", output=OUTPUT[kind])
    new_search = open_search(recipe.exp("other"), session.runner, data=recipe.data_dir)
    search = new_search()
    assert isinstance(search, OnlineBeam) and session.output == "transducer"
    assert (search.decoder.size, search.decoder.tree.scale) == pytest.approx(
        (5, 0.6 * np.log(10)) if kind == "joint" else (8, 0.3 * np.log(10))
    )
    expected, transcriber = stage_10s(recipe), Transcriber(session, new_search)
    found = {cut.id: in_odd_portions(transcriber, read_audio(cut)) for cut in cut_set(recipe.cuts, SET)}
    assert found == expected and all(found.values())
    offline = open_session(recipe.exp("other"), "torch", "offline", OUTPUT[kind])
    again = Transcriber(offline, open_search(recipe.exp("other"), offline.runner, data=recipe.data_dir))
    assert {cut.id: in_odd_portions(again, read_audio(cut)) for cut in cut_set(recipe.cuts, SET)} == expected


def test_speed_is_measured_with_the_greedy_search(recipe: Recipe, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session, joined = open_session(recipe.exp("other"), "torch", output=OUTPUT[kind]), []
    log_probs = session.runner.network.log_probs
    monkeypatch.setattr(session.runner.network, "log_probs", lambda *own: joined.append(1) or log_probs(*own))
    audio = read_audio(next(iter(cut_set(recipe.cuts, SET))))
    run(session, audio, piece_of(session, "streaming", len(audio)))
    assert len(joined) == len(session.whole(audio))


def test_stage_12_exports_it_and_sessions_need_no_option(
    recipe: Recipe, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnx", reason="the extra 'deploy' is not installed")
    expected, folder = stage_10s(recipe), export(recipe, monkeypatch)
    info = ModelInfo.of_export(folder / "export.json")
    assert info.selectable == (("main", "transducer") if kind == "joint" else ("transducer",))
    forms = {
        f"{name}.transducer{form}.onnx" for name in ("stream", "whole", "decoder", "joiner") for form in ("", ".int8")
    }
    assert {path.name for path in folder.glob("*.transducer*.onnx")} == forms, "sherpa-onnx takes none on waveforms"
    assert (folder / "HLG.fst").exists() == (folder / "stream.onnx").exists() == (kind == "joint")
    assert (folder / "words.3gram.arpa").is_file() and "for our own sessions alone" in caplog.text
    delays = json.loads((folder / "timing.json").read_text())["delays"]
    assert [row["aligned_by"] for row in delays] == (["other", "other"] if kind == "joint" else [])
    for mode in ("streaming", "offline"):
        for runtime in ("onnx", "int8"):
            session = open_session(folder, runtime, mode, OUTPUT[kind])
            transcriber = Transcriber(session, open_search(folder, session.runner))
            found = {cut.id: in_odd_portions(transcriber, read_audio(cut)) for cut in cut_set(recipe.cuts, SET)}
            assert found == stage_10s(recipe, runtime, mode)
            assert runtime == "int8" or found == expected
    frames = open_batches(folder, output=OUTPUT[kind]).step([])
    assert frames == []


@pytest.mark.parametrize("kind", ["alone", "joint"], indirect=True)
def test_the_server_recognises_with_it(recipe: Recipe, kind: str, tmp_path: Path) -> None:
    wave = np.concatenate([read_audio(cut) for cut in cut_set(recipe.cuts, SET)]).astype(np.float32)
    session = open_session(recipe.exp("other"), "torch", output=OUTPUT[kind])
    transcriber = Transcriber(session, open_search(recipe.exp("other"), session.runner, data=recipe.data_dir))
    expected = in_odd_portions(transcriber, wave)

    async def visit() -> list[dict]:
        scheduler = app.open_scheduler(recipe.exp("other"), recipe.data_dir, "torch", output=OUTPUT[kind])
        server = Server(scheduler, Address(port=0), Limits(leave=0.0))
        await server.start()
        try:
            return await asyncio.wait_for(sherpa(f"ws://127.0.0.1:{server.port}/sherpa?confidence", wave), 120)
        finally:
            await server.close()

    messages = asyncio.run(visit())
    assert messages[-1]["tokens"] == expected and messages[-1]["is_final"] and len(messages) > 2
    assert all(0 < word["conf"] <= 1 for message in messages for word in message["result"])
    for earlier, later in itertools.pairwise(messages):
        assert later["tokens"][: earlier["settled"]] == earlier["tokens"][: earlier["settled"]]


@pytest.mark.parametrize("kind", ["alone", "joint"], indirect=True)
def test_files_are_transcribed_with_it(
    recipe: Recipe, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cut = cut_set(recipe.cuts, SET)[0]
    soundfile.write(tmp_path / "a.wav", read_audio(cut), 16000, subtype="FLOAT")
    expected = stage_10s(recipe)[cut.id]
    options = ["--experiment", str(recipe.exp("other")), "--runtime", "torch", "--data-dir", str(recipe.data_dir)]
    options += ["--output", OUTPUT[kind]] if OUTPUT[kind] else []

    def run(*further: str) -> str:
        monkeypatch.setattr(sys, "argv", ["transcribe.py", *options, *further, str(tmp_path / "a.wav")])
        transcribe.main()
        return capsys.readouterr().out

    assert run("--partial").split() == expected
    said = json.loads(run("--format", "json", "--segments"))
    assert [word["text"] for word in said["words"]] == expected
    assert all(0 < word["confidence"] <= 1 and word["start"] < word["end"] for word in said["words"])
    assert [line.split()[4] for line in run("--format", "ctm").splitlines()] == expected
    with pytest.raises(ValueError, match=r"beam of [58] hypotheses"):
        run("--beam", "9")


def test_exported_networks_are_searched_without_torch() -> None:
    code = "import sys, distill.runtime.open, distill.runtime.onnx_runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["alone"], indirect=True)
def test_what_is_missing_is_named(recipe: Recipe, tmp_path: Path) -> None:
    open_other = partial(open_session, recipe.exp("other"), "torch")
    for output in ("main", "third"):
        with pytest.raises(ValueError, match=f"other has no trained output '{output}'; it has transducer"):
            open_other(output=output)
    session = open_other()
    with pytest.raises(ValueError, match="other has no output that was trained; fine-tune it first"):
        session.info.model_copy(update={"selectable": ()}).chosen("")
    with pytest.raises(FileNotFoundError, match=r"lang/tokens\.txt; run stage 12, or name .* \(--data-dir\)"):
        open_search(recipe.exp("other"), session.runner)
    with pytest.raises(FileNotFoundError, match="stage 2 writes it, or name the data folder"):
        open_search(recipe.exp("other"), session.runner, data=tmp_path)
    for name in ("lang_phones", "graphs"):
        (tmp_path / "bare" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bare" / name).symlink_to(recipe.data_dir / name)
    with pytest.raises(FileNotFoundError, match=r"bare/lm/words\.3gram\.arpa; stage 3 writes it"):
        open_search(recipe.exp("other"), session.runner, data=tmp_path / "bare")
    with pytest.raises(ValueError, match="--graph and --beam are of outputs over a graph"):
        open_search(recipe.exp("other"), session.runner, tmp_path / "HLG.fst", data=recipe.data_dir)
