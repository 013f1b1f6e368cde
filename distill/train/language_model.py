"""A Transformer language model in the training loop: its step, its batches, its validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from distill.config.language_model import LanguageModel
from distill.lm.model import TransformerLm, build_lm, count_parameters
from distill.lm.scoring import log_probabilities
from distill.lm.text import NUMBERS, PADDING, ROWS, Corpus, TextBatch, TextLoader, padded, split_rows, write_corpus
from distill.lm.units import Units, learn_units
from distill.losses.objective import Losses
from distill.losses.term import Term
from distill.text import read_lines
from distill.train.distributed import Ranks
from distill.train.loop import Trainer


class LmStep(nn.Module):
    """The model and its loss: cross-entropy in nats per unit."""

    def __init__(self, model: TransformerLm, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: TextBatch, targets: None = None) -> Losses:
        """One term, summed over the units of the batch."""
        total = -log_probabilities(self.model, batch.inputs, batch.targets).sum()
        count = (batch.targets != PADDING).sum()
        return Losses({"nats": Term(total, count)}, count.new_zeros(()), 0)

    def sizes(self) -> dict[str, int]:
        """Parameters of the model's parts."""
        return count_parameters(self.model)


def build_lm_trainer(
    settings: LanguageModel, text: Path, valid: Sequence[str], folder: Path, ranks: Ranks, device: torch.device
) -> Trainer:
    """A trainer of the model on a text; `folder` receives its units, the text in numbers, and checkpoints.

    valid: sentences to validate on. Raises FileNotFoundError naming the stage that writes the text, ValueError
    for a text without words, or without sentences to validate on.
    """
    torch.manual_seed(settings.seed)
    if ranks.first:
        prepare(settings, text, folder)
    ranks.wait()
    units = Units.load(folder, settings.text.units)
    loader = TextLoader(Corpus(folder), settings.text.batch_units, settings.seed, ranks.rank, ranks.world)
    model = build_lm(settings.model, len(units), settings.seed)
    return Trainer(
        settings, model.to(device), nn.Identity(), None, loader.epoch, Validation(settings, units, valid, ranks),
        count_updates(settings, loader), units.symbols, folder, ranks, device, LmStep,
    )  # fmt: skip


def prepare(settings: LanguageModel, text: Path, folder: Path) -> None:
    """Units and the text in numbers, where a training that was killed has not left them."""
    if not text.is_file():
        raise FileNotFoundError(f"no text corpus at {text}; stage 0 writes it (run.sh --stage 0 --stop-stage 0)")
    if (folder / ROWS).is_file():
        return
    chosen = settings.text
    units = learn_units(read_lines(text), chosen.units, chosen.most_units, settings.seed, folder)
    write_corpus(read_lines(text), units, chosen.context, folder)


def forget_text(folder: Path) -> None:
    """Remove the text in numbers, which only training needs."""
    for name in (ROWS, NUMBERS):
        (folder / name).unlink(missing_ok=True)


def count_updates(settings: LanguageModel, loader: TextLoader) -> int:
    """Updates of the whole training; epochs are counted out."""
    optim = settings.optim
    if optim.updates:
        return optim.updates
    return sum(-(-loader.count(epoch) // optim.accumulate) for epoch in range(optim.epochs))


class Validation:
    """Batches of a rank's validation sentences, the same ones every time."""

    def __init__(self, settings: LanguageModel, units: Units, sentences: Sequence[str], ranks: Ranks) -> None:
        rows = [units.sentence(sentence.split()) for sentence in sentences]
        self.rows = sorted((row for row in rows if len(row) > 2), key=len)
        self.batch_units = settings.text.batch_units
        if not self.rows:
            raise ValueError(f"no transcripts in cut set '{settings.text.valid}' to validate the language model on")
        self.rows = list(ranks.mine(self.rows))

    def __call__(self) -> Iterator[TextBatch]:
        for some in split_rows([len(row) - 1 for row in self.rows], self.batch_units):
            inputs, targets = padded(self.rows[some])
            yield TextBatch(("validation",), inputs, targets)
