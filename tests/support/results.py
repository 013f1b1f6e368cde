"""Fabricated result files of experiments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.results import WerResult
from distill.scoring.wer import Scored, write_results


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def training(folder: Path, stage: int, chunk: int = 0, init: str | None = None, **changes: Any) -> None:
    """result.json of an experiment's folder; parameters and losses are made up."""
    content = {
        "experiment": folder.name, "description": "", "corpus": "librispeech",
        "params": {"trunk": 1_000_000, "head": 10_000, "training_only": 500}, "updates": 7, "audio_hours": 1.25,
        "wall_s": 90.0, "train_loss": 0.5, "valid_loss": None, "without_path": 0, "recomputed": 0, "commit": "abc",
        "hardware": "a processor", "command": "run.sh",
        "config": {
            "stage": stage, "init": init, "model": {"streaming": {"chunk_frames": chunk}},
            "teacher": {"experiment": "teacher"} if stage in (8, 9) else None,
        },
    }  # fmt: skip
    write(folder / "result.json", content | changes)


def facts(experiment: str, mode: str, method: str, **changes: Any) -> dict[str, Any]:
    """The keys of wer.json that do not follow from the scored utterances."""
    content = {
        "experiment": experiment, "corpus": "librispeech", "mode": mode, "method": method, "lm": None, "chunk_ms": 320,
        "lookahead_mean_ms": 150, "lookahead_max_ms": 300, "epoch": 1, "avg": 1, "seed": 0, "commit": "abc",
    }  # fmt: skip
    return content | changes


def wer(test_set: str, mode: str, method: str, rate: float, **changes: Any) -> dict[str, Any]:
    """wer.json: 100 words, all errors substitutions."""
    rates = {"set": test_set, "wer": rate, "ci95": [rate - 0.5, rate + 0.5], "ref_words": 100, "sub": int(rate),
             "ins": 0, "del": 0}  # fmt: skip
    return facts("ss", mode, method) | rates | changes


def decoding(experiment: Path, test_set: str, mode: str, method: str, rate: float, **changes: Any) -> Path:
    """wer.json of one decoding; returns its folder."""
    folder = experiment / f"decode_{test_set}_{mode}_{method}"
    write(folder / "wer.json", wer(test_set, mode, method, rate, experiment=experiment.name, **changes))
    return folder


def superb_task(
    experiment: Path, task: str, conditions: Mapping[str, Mapping[str, float]] = {}, own: bool = False, **figures: float
) -> None:
    """superb/TASK.json of an experiment, with figures under conditions."""
    content = {
        "experiment": experiment.name, "task": task, "figures": figures, "runs": [figures], "epoch": 1, "weights": "a",
        "conditions": {name: {"settings": {}, "figures": values} for name, values in conditions.items()},
        "overrides": [], "data": "data", "own_data": own, "hardware": "a processor", "command": "superb.sh",
        "commit": "abc",
    }  # fmt: skip
    write(experiment / "superb" / f"{task}.json", content)


def timing(**changes: Any) -> dict[str, Any]:
    """timing.json without rows."""
    content = {
        "experiment": "ss", "corpus": "librispeech", "threads": 1, "params": {"trunk": 3, "head": 1},
        "macs_per_second": 1e9, "gemm_gflops": 70.0, "chunk_ms": 320.0, "lookahead_mean_ms": 150.0,
        "lookahead_max_ms": 300.0, "lookahead_parts": [], "rows": [], "delays": [], "hardware": "a processor",
        "command": "run.sh", "commit": "abc",
    }  # fmt: skip
    return content | changes


def timing_row(runtime: str, rtf: float, mode: str = "streaming") -> dict[str, Any]:
    return {
        "mode": mode, "runtime": runtime, "audio_s": 20.0, "rtf": rtf, "rtf_low": rtf, "rtf_high": rtf,
        "rtf_wall": rtf, "finalisation_ms": 1.0, "peak_mb": 50.0, "model_mb": 20.0, "file_mb": None,
    }  # fmt: skip


def write_decoding(folder: Path, test_set: str, suffix: str, scored: Sequence[Scored], info: Mapping[str, Any]) -> None:
    """icefall's files and wer.json."""
    rate = write_results(folder, test_set, suffix, scored)
    WerResult.model_validate({**info, "set": test_set, **rate.fields()}).write(folder / "wer.json")
