"""Words while they are spoken: Viterbi beam search over HLG that goes on as log-probabilities come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import kaldi_decoder
import kaldifst
import numpy as np


class LiveDecoder:
    """One utterance at a time: `advance` with new frames, `words` at any moment, `reset` for the next.

    columns: for each input label of the graph (from 1) the model's output that it stands for; empty: label
    k stands for output k - 1. Raises FileNotFoundError naming the stage that writes the graph.
    """

    def __init__(
        self, hlg: Path, words: Sequence[str], columns: Sequence[int] = (), beam: float = 15.0,
        max_active: int = 2000, acoustic_scale: float = 1.0,
    ) -> None:  # fmt: skip
        if not hlg.is_file():
            raise FileNotFoundError(f"no decoding graph at {hlg}; stage 4 writes it (run.sh --stage 4 --stop-stage 4)")
        self._names, self._columns, self._scale = list(words), list(columns), acoustic_scale
        self._graph = kaldifst.StdVectorFst.read(str(hlg))
        options = kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active)
        self._decoder = kaldi_decoder.FasterDecoder(self._graph, options)
        self.reset()

    def reset(self) -> None:
        """Forget the utterance."""
        self._decoder.init_decoding()
        self._frames = 0

    def advance(self, log_probs: np.ndarray) -> None:
        """New frames (T, V); none are fine."""
        if not len(log_probs):
            return
        scaled = self._scale * (log_probs[:, self._columns] if self._columns else log_probs)
        frames = np.ascontiguousarray(scaled, dtype=np.float32)
        self._decoder.advance_decoding(kaldi_decoder.DecodableCtc(frames, offset=self._frames))
        self._frames += len(frames)

    def words(self, final: bool = False) -> tuple[str, ...]:
        """The best path's words so far; final: of paths that may end here, if there are any."""
        if not self._frames:
            return ()
        found, path = self._decoder.get_best_path(use_final_probs=final and self._decoder.reached_final())
        if not found:
            return ()
        return tuple(self._names[output] for output in kaldifst.get_linear_symbol_sequence(path)[2])
