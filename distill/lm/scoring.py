"""Log-probabilities and perplexities of sentences under a trained language model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from distill.config.language_model import LanguageModel
from distill.lm.model import TransformerLm, build_lm
from distill.lm.text import PADDING, padded, split_rows
from distill.lm.units import UNKNOWN, Units
from distill.models import checkpoint

Sentence = tuple[str, ...]


class Scorer:
    """Log-probabilities of sentences by a language model."""

    def __init__(self, model: TransformerLm, units: Units, batch_units: int = 8000) -> None:
        self.model, self.units, self.batch_units = model.eval(), units, batch_units

    @torch.no_grad()
    def __call__(self, sentences: Sequence[Sentence]) -> np.ndarray:
        """Natural-log probability of each sentence, its end included: (N,) float64; equal ones are scored once."""
        place = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
        rows = [self.units.sentence(sentence) for sentence in place]
        lengths = np.array([len(row) - 1 for row in rows], dtype=np.int64)
        order = np.argsort(lengths, kind="stable")
        scores, device = np.zeros(len(rows)), self.model.embedding.weight.device
        for part in split_rows(lengths[order], self.batch_units):
            some = order[part]
            inputs, targets = (x.to(device) for x in padded([rows[row] for row in some]))
            log_probs = log_probabilities(self.model, inputs, targets)
            scores[some] = log_probs.double().sum(1).cpu().numpy()
        return scores[[place[sentence] for sentence in sentences]]


def log_probabilities(model: TransformerLm, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Natural log-probability of every target, 0 for PADDING: inputs, targets (B, T) -> (B, T) float32."""
    loss = torch.nn.functional.cross_entropy(
        model(inputs).float().flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="none"
    )
    return -loss.unflatten(0, inputs.shape)


def perplexity(scorer: Scorer, sentences: Iterable[str]) -> dict[str, float | int]:
    """Perplexity per word, sentence ends counted, and the number of words with a unit that the text lacks.

    As `ArpaLm.perplexity` counts, whatever the units. Raises ValueError without sentences.
    """
    rows = [tuple(sentence.split()) for sentence in sentences]
    count = sum(len(words) + 1 for words in rows)
    if not count:
        raise ValueError("no sentences to measure a perplexity on")
    unknown = sum(UNKNOWN in scorer.units.of(word) for words in rows for word in words)
    total = float(scorer(rows).sum())
    return {"perplexity": round(math.exp(-total / count), 3), "words": count - len(rows), "unknown": unknown}


def load_lm(folder: Path, device: torch.device | str = "cpu") -> tuple[Scorer, LanguageModel, int]:
    """The trained model of a folder, averaged by its settings, those settings, and the epoch.

    Raises FileNotFoundError or ValueError naming what is missing or damaged.
    """
    paths = checkpoint.epoch_paths(folder)
    if not paths:
        raise FileNotFoundError(
            f"no Transformer language model in {folder}: no epoch-N.pt; run.sh --stage 11 trains it"
        )
    last = checkpoint.load(list(paths.values())[-1], device)
    settings = LanguageModel.model_validate(last["experiment"])
    chosen = list(paths.values())[-settings.avg :]
    if len(chosen) < settings.avg:
        raise ValueError(f"{folder} has epochs {list(paths)}; cannot average {settings.avg} (avg)")
    units = Units.load(folder, settings.text.units)
    if units.symbols != last["units"]:
        raise ValueError(f"{folder} has other units than its checkpoints; remove the folder and run stage 11 again")
    model = build_lm(settings.model, len(units))
    states = [last if path == chosen[-1] else checkpoint.load(path, device) for path in chosen]
    model.load_state_dict(checkpoint.average([state["model"] for state in states]))
    return Scorer(model.to(device), units, settings.text.batch_units), settings, max(paths)
