"""Settings of the decodings behind the rows of word error rates."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from distill.config.loading import Settings

Method = Literal["1best", "greedy", "nbest", "nbest-rescoring", "whole-lattice-rescoring", "nbest-oracle"]


class Decoding(Settings):
    """How the main WER rows are made."""

    avg: int = 1  # checkpoints averaged
    beam: float = 15.0
    max_active: int = 2000
    acoustic_scale: float = 1.0
    lattice_beam: float = 6.0  # what a teacher stores of its lattices: sequences this much worse than the best
    chunks: tuple[int, ...] = ()  # further chunk sizes, in frames, that a streaming model is decoded with
    # further: nbest, whole-lattice-rescoring, nbest-oracle
    methods: tuple[Method, ...] = ("1best", "greedy", "nbest-rescoring")
    nbest: int = 100  # sentences of a list
    rescoring_lm: str = "4gram"  # words.<this>.arpa of stage 3 takes the place of words.3gram.arpa
    rescoring_scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the exchange; dev chooses
    blank_skip: float = 0.0  # 1best: of a run of frames with a blank as probable as this one is searched; 0: all are
    rescoring_word_scores: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)  # per word; dev chooses

    @model_validator(mode="after")
    def _check(self) -> Decoding:
        if not 0 <= self.blank_skip <= 1:
            raise ValueError(f"blank_skip is a probability, got {self.blank_skip}")
        if self.nbest < 1:
            raise ValueError(f"nbest must be at least 1, got {self.nbest}")
        return self
