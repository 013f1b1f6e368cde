"""Messages of existing clients of streaming recognisers: sherpa-onnx's and Vosk's."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np

from distill.batch import convertible
from distill.config.model import SAMPLE_RATE
from distill.runtime.resample import CONVERTIBLE, Resampler
from distill.runtime.session import checked
from distill.server.scheduler import Result

log = logging.getLogger(__name__)
EMPTY = np.zeros(0, np.float32)


class Sherpa:
    """sherpa-onnx's: float32 samples at 16 kHz, then "Done"; {"text", "segment", ...} after every chunk.

    Besides its own keys a message has "result", words as Vosk writes them (partial ones without "conf" unless the
    stream requests confidences), how many of them are "settled" (will not change), and "samples" processed so far.
    """

    name = "sherpa"
    replies = False  # results are sent as they come, not one per message of audio
    goodbye = "Done!"  # follows the last result

    def decode(self, message: str | bytes) -> np.ndarray | None:
        """Samples (n,) at 16 kHz, n >= 0; None at the end of the stream. Raises ValueError for malformed messages."""
        if isinstance(message, str):
            if message == "Done":
                return None
            raise ValueError(f"a text message {message[:40]!r}; expected binary float32 samples, or Done at the end")
        if len(message) % 4:
            raise ValueError(f"{len(message)} bytes are no float32 samples; send 4 bytes a sample, 16 kHz, mono")
        return checked(np.frombuffer(message, "<f4")) if message else EMPTY

    def flush(self) -> np.ndarray:
        """Samples (n,) still buffered at the end of the stream."""
        return EMPTY

    def encode(self, result: Result) -> str:
        """A result as a message."""
        words = result.words
        return json.dumps({
            "text": result.text, "segment": result.segment, "is_final": result.final, "start_time": 0.0,
            "tokens": [word.text for word in words], "timestamps": [word.start for word in words],
            "result": _words(result), "settled": result.stable, "samples": result.samples,
        })  # fmt: skip


class Vosk:
    """Vosk's: int16 samples at the rate of a "config" message, then "eof"; one reply to every message of audio.

    A sample may begin in one message and end in the next.
    """

    name = "vosk"
    replies = True
    goodbye = ""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        self._rate, self._words = rate, True
        self._resampler: Resampler | None = None
        self._incomplete, self._warned = b"", False  # bytes of an incomplete sample

    def decode(self, message: str | bytes) -> np.ndarray | None:
        """As `Sherpa.decode`."""
        if isinstance(message, str):
            return self._decode_text(message)
        message = self._incomplete + message
        whole = len(message) // 2 * 2
        self._incomplete = message[whole:]
        if not whole:
            return EMPTY
        self._resampler = self._resampler or Resampler(self._rate)
        return self._resampler(checked(np.frombuffer(message[:whole], "<i2")))

    def _decode_text(self, message: str) -> np.ndarray | None:
        try:
            content = json.loads(message)
        except (json.JSONDecodeError, RecursionError):
            content = None
        if not isinstance(content, dict) or not {"config", "eof", "reset"} & content.keys():
            raise ValueError(f'a text message {message[:40]!r}; expected {{"config": …}} or {{"eof": 1}}')
        if "config" in content:
            self._configure(content["config"])
        elif content.get("eof"):
            return None
        return EMPTY

    def _configure(self, config: Any) -> None:
        given = config.get("sample_rate", self._rate) if isinstance(config, dict) else None
        try:  # some clients write the number as text
            rate = float(given) if isinstance(given, str | int | float) else math.nan
        except (ValueError, OverflowError):
            rate = math.nan
        if not rate.is_integer() or not convertible(int(rate)):
            raise ValueError(f"sample_rate {given!r:.30}; expected {CONVERTIBLE}")
        if self._resampler is not None and int(rate) != self._rate:
            raise ValueError(f"sample_rate {rate:g} after audio at {self._rate}; send the config first")
        if (ignored := sorted(config.keys() - {"sample_rate", "words"})) and not self._warned:
            self._warned = True  # once per stream
            log.warning("unsupported options of a Vosk client are ignored: %.120s", ascii(ignored))
        self._rate, self._words = int(rate), bool(config.get("words", True))

    def flush(self) -> np.ndarray:
        """As `Sherpa.flush`."""
        if self._incomplete:
            log.warning("a Vosk client's stream ended within a sample: its last byte is left out")
        return self._resampler.flush() if self._resampler is not None else EMPTY

    def encode(self, result: Result) -> str:
        """As `Sherpa.encode`."""
        if not result.final:
            return json.dumps({"partial": result.text})
        content: dict[str, Any] = {"result": _words(result)} if self._words and result.words else {}
        return json.dumps({**content, "text": result.text})


def _words(result: Result) -> list[dict[str, Any]]:
    return [
        {**({} if math.isnan(w.confidence) else {"conf": w.confidence}), "end": w.end, "start": w.start, "word": w.text}
        for w in result.words
    ]


def choose(path: str, first: str | bytes) -> Sherpa | Vosk:
    """The protocol of a connection: by its path (/sherpa, /vosk), else by its first message.

    JSON text means Vosk, anything else sherpa-onnx.
    """
    if path == "/vosk" or (path != "/sherpa" and isinstance(first, str) and first.lstrip().startswith("{")):
        return Vosk()
    return Sherpa()
