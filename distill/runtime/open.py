"""Opens a trained or exported model for a session or a server; torch is imported for the torch runtime alone."""

from __future__ import annotations

import logging
from pathlib import Path

from distill.config.bounds import SOURCES
from distill.runtime.info import ModelInfo
from distill.runtime.runner import RUNTIMES, BatchRunner
from distill.runtime.session import Session

log = logging.getLogger(__name__)


def open_session(folder: Path | str, runtime: str = "", mode: str = "", output: str = "", threads: int = 1) -> Session:
    """A session for an experiment's folder, for an export folder alone, or for a published model (`is_published`).

    runtime: torch (the last checkpoint, or the published weights), onnx or int8 (exported by stage 12); empty: onnx,
    torch for a published model. mode: streaming or offline; empty: streaming if the model has chunks. output: main, ctc
    or transducer; empty: the first of these that was trained. Raises FileNotFoundError or ValueError naming the missing
    part.
    """
    runtime = runtime or ("torch" if is_published(folder) else "onnx")
    if mode not in ("", "streaming", "offline"):
        raise ValueError(f"mode '{mode}' is not known; expected streaming or offline")
    _check_runtime(runtime)
    if runtime == "torch":
        from distill.runtime.torch_runner import open_model, torch_runner

        model, info = open_model(folder, output, threads)
        return Session(torch_runner(model, info, streams(info, mode)))
    if is_published(folder):
        raise ValueError(f"{folder} is a published model, without graphs for --runtime {runtime}; use --runtime torch")
    from distill.runtime.onnx_runner import file_name, onnx_runner, read_export

    folder, info = read_export(Path(folder))
    output, kind = info.chosen(output), "stream" if streams(info, mode) else "whole"
    path = folder / file_name(kind, output, runtime == "int8")
    return Session(onnx_runner(path, info, kind == "stream", threads, output))


def open_batches(folder: Path, runtime: str = "", output: str = "", threads: int = 1) -> BatchRunner:
    """The runner of many streams for an experiment's folder; output as of `open_session`.

    runtime: torch (the last checkpoint), onnx or int8 (exported by stage 12); empty: onnx, which is faster,
    unless the export is missing or older than the checkpoint. Raises FileNotFoundError or ValueError.
    """
    _check_runtime(runtime or "torch")
    if (runtime or preferred(folder)) == "torch":
        from distill.runtime.torch_runner import TorchBatches, open_model

        return TorchBatches(*open_model(folder, output, threads))
    from distill.runtime.onnx_runner import OnnxBatches, file_name, read_export

    folder, info = read_export(folder)
    info.chunk_samples(False)  # refuses full context
    output = info.chosen(output)
    return OnnxBatches(folder / file_name("stream", output, runtime == "int8"), info, threads, output)


def place_of(text: str) -> Path | str:
    """The model that an option names: the source of a published one (a folder of one included), or a folder of ours."""
    if is_published(text):
        return text
    return f"hf:{text}" if (Path(text) / "config.json").is_file() else Path(text)


def is_published(place: Path | str) -> bool:
    """Whether a model is named as in `pretrained`: hf:NAME, fairseq:FILE and so on."""
    return str(place).startswith(tuple(f"{kind}:" for kind in SOURCES))


def _check_runtime(runtime: str) -> None:
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime '{runtime}' is not known; expected torch, onnx or int8")


def streams(info: ModelInfo, mode: str) -> bool:
    """Whether a mode runs in chunks; raises ValueError where it should and the model has full context."""
    if mode == "streaming":
        info.chunk_samples(False)
    return mode == "streaming" or (not mode and info.chunk_frames > 0)


def preferred(folder: Path) -> str:
    """onnx if there is an export that is up to date, else torch, with the reason in the log."""
    exported, epochs = folder / "export" / "export.json", list(folder.glob("epoch-*.pt"))
    if (folder / "export.json").is_file() or (exported.is_file() and not epochs):
        return "onnx"  # an export folder alone
    if not epochs:
        return "torch"  # opening it raises the error
    if not exported.is_file():
        log.info("%s has no export; the checkpoint is run by torch, which is slower (stage 12 exports)", folder)
        return "torch"
    if exported.stat().st_mtime < max(path.stat().st_mtime for path in epochs):
        log.warning("%s/export is older than the checkpoint, which torch runs; stage 12 exports it anew", folder)
        return "torch"
    return "onnx"
