"""What existing clients of streaming recognisers send and expect: sherpa-onnx's and Vosk's messages."""

from __future__ import annotations

import json
import logging
import math
from typing import Any, Protocol

import numpy as np

from distill.runtime.resample import Resampler
from distill.runtime.session import SAMPLE_RATE, checked
from distill.server.scheduler import Result

log = logging.getLogger(__name__)
RATES = (4000, 192_000)


class Dialogue(Protocol):
    """One connection's language."""

    answers: bool  # each message of audio is answered by exactly one

    def hear(self, message: str | bytes) -> np.ndarray | None:
        """Samples (n,) at 16 kHz, n >= 0; None: the stream ends. Raises ValueError saying what is wrong."""

    def rest(self) -> np.ndarray:
        """At the end: samples (n,) that were held back."""

    def say(self, result: Result) -> str:
        """A result as a message."""

    def farewell(self) -> str | None:
        """What follows the last result."""


class Sherpa:
    """sherpa-onnx's: float32 samples at 16 kHz, then "Done"; {"text", "segment", ...} after every chunk.

    Beside its own keys a message has "result", words as Vosk writes them (before the final message without "conf",
    unless the stream asked for confidences), how many of them are "settled", and "samples", heard so far.
    """

    answers = False

    def hear(self, message: str | bytes) -> np.ndarray | None:
        if isinstance(message, str):
            if message == "Done":
                return None
            raise ValueError(f"a text message {message[:40]!r}; expected binary float32 samples, or Done at the end")
        if len(message) % 4:
            raise ValueError(f"{len(message)} bytes are no float32 samples; send 4 bytes a sample, 16 kHz, mono")
        samples = np.frombuffer(message, "<f4")
        return checked(samples) if len(samples) else samples

    def rest(self) -> np.ndarray:
        return np.zeros(0, np.float32)

    def say(self, result: Result) -> str:
        words = result.words
        return json.dumps({
            "text": result.text, "segment": result.segment, "is_final": result.final, "start_time": 0.0,
            "tokens": [word.text for word in words], "timestamps": [word.start for word in words],
            "result": _words(result), "settled": result.settled, "samples": result.samples,
        })  # fmt: skip

    def farewell(self) -> str | None:
        return "Done!"


class Vosk:
    """Vosk's: int16 samples at the rate of a "config" message, then "eof"; one reply to every message of audio.

    A sample may begin in one message and end in the next.
    """

    answers = True

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        self._rate, self._words = rate, True
        self._resampler: Resampler | None = None
        self._begun, self._warned = b"", False

    def hear(self, message: str | bytes) -> np.ndarray | None:
        if isinstance(message, str):
            return self._told(message)
        message = self._begun + message
        self._begun = message[len(message) // 2 * 2 :]
        samples = np.frombuffer(message[: len(message) // 2 * 2], "<i2")
        if self._resampler is None:
            self._resampler = Resampler(self._rate)
        return self._resampler(checked(samples)) if len(samples) else samples.astype(np.float32)

    def _told(self, message: str) -> np.ndarray | None:
        try:
            told = json.loads(message)
        except (json.JSONDecodeError, RecursionError):
            told = None
        if not isinstance(told, dict) or not {"config", "eof", "reset"} & told.keys():
            raise ValueError(f'a text message {message[:40]!r}; expected {{"config": …}} or {{"eof": 1}}')
        if "config" in told:
            self._configure(told["config"])
            return np.zeros(0, np.float32)
        return None if told.get("eof") else np.zeros(0, np.float32)

    def _configure(self, config: Any) -> None:
        given = config.get("sample_rate", self._rate) if isinstance(config, dict) else None
        rate = _number(given)
        if not RATES[0] <= rate <= RATES[1] or rate != int(rate):
            raise ValueError(f"sample_rate {given!r:.60}; expected a whole number from {RATES[0]} to {RATES[1]}")
        if self._resampler is not None and int(rate) != self._rate:
            raise ValueError(f"sample_rate {rate:g} after audio at {self._rate}; send the config first")
        if (ignored := sorted(config.keys() - {"sample_rate", "words"})) and not self._warned:
            self._warned = True  # once a stream, however often it asks
            log.warning("a Vosk client asks for what is not there, and goes without it: %.120s", ascii(ignored))
        self._rate, self._words = int(rate), bool(config.get("words", True))

    def rest(self) -> np.ndarray:
        if self._begun:
            log.warning("a Vosk client's stream ended within a sample: its last byte is left out")
        return self._resampler.rest() if self._resampler is not None else np.zeros(0, np.float32)

    def say(self, result: Result) -> str:
        if not result.final:
            return json.dumps({"partial": result.text})
        content: dict[str, Any] = {"result": _words(result)} if self._words and result.words else {}
        return json.dumps({**content, "text": result.text})

    def farewell(self) -> str | None:
        return None


def _number(given: Any) -> float:
    """A number, or the text of one, as some clients send it; nan for anything else."""
    try:
        return float(given) if isinstance(given, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _words(result: Result) -> list[dict[str, Any]]:
    return [
        {**({} if math.isnan(w.confidence) else {"conf": w.confidence}), "end": w.end, "start": w.start, "word": w.text}
        for w in result.words
    ]


def choose(path: str, first: str | bytes) -> Dialogue:
    """The language of a connection: by its path (/sherpa, /vosk), else by its first message.

    Audio without a word before it is taken for sherpa-onnx's, a text in JSON for Vosk's.
    """
    if path == "/vosk":
        return Vosk()
    if path == "/sherpa" or isinstance(first, bytes) or not first.lstrip().startswith("{"):
        return Sherpa()
    return Vosk()
