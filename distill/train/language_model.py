"""A Transformer language model in the training loop: its step, its batches, its validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from distill.config.language_model import LanguageModel
from distill.lm.model import TransformerLm, build_lm, count_parameters
from distill.lm.scoring import log_probabilities
from distill.lm.text import PADDING, ROWS, TOKENS, Corpus, TextBatch, TextLoader, padded, split_rows, write_corpus
from distill.lm.units import Units, learn_units
from distill.losses.term import Losses, Term
from distill.text import read_lines
from distill.train.distributed import Ranks
from distill.train.loop import Trainer, TrainingPlan
from distill.train.schedule import count_updates


class LmStep(nn.Module):
    """The model and its loss: cross-entropy in nats per unit."""

    def __init__(self, model: TransformerLm) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TextBatch, targets: None = None) -> Losses:
        """One term, summed over the units of the batch."""
        total = -log_probabilities(self.model, batch.inputs, batch.targets).sum()
        count = (batch.targets != PADDING).sum()
        return Losses({"nats": Term(total, count)})


def build_lm_trainer(
    settings: LanguageModel, text: Path, valid: Sequence[str], folder: Path, ranks: Ranks, device: torch.device
) -> Trainer:
    """A trainer of the model on a text; `folder` receives its units, the token ids of the text, and checkpoints.

    valid: validation sentences. Raises FileNotFoundError naming the stage that writes the text, ValueError
    for a text without words, or without sentences to validate on.
    """
    torch.manual_seed(settings.seed)
    if ranks.first:
        prepare(settings, text, folder)
    ranks.wait()
    units = Units.load(folder, settings.text.units)
    loader = TextLoader(Corpus(folder), settings.text.batch_units, settings.seed, ranks.rank, ranks.world)
    model = build_lm(settings.model, len(units), settings.seed)
    batches = validation(settings, units, valid, ranks)
    plan = TrainingPlan(
        settings, loader.epoch, lambda: batches, count_updates(settings.optim, loader.count), units.symbols,
        count_parameters(model), folder, ranks, device,
    )  # fmt: skip
    return Trainer(plan, LmStep(model))


def prepare(settings: LanguageModel, text: Path, folder: Path) -> None:
    """Write units and the token ids of the text, unless a killed training has left them."""
    if not text.is_file():
        raise FileNotFoundError(f"no text corpus at {text}; stage 0 writes it (run.sh --stage 0 --stop-stage 0)")
    if (folder / ROWS).is_file():
        return
    chosen = settings.text
    units = learn_units(read_lines(text), chosen.units, chosen.most_units, settings.seed, folder)
    write_corpus(read_lines(text), units, chosen.context, folder)


def remove_token_ids(folder: Path) -> None:
    """Remove the token ids of the text, which only training needs."""
    for name in (ROWS, TOKENS):
        (folder / name).unlink(missing_ok=True)


def validation(settings: LanguageModel, units: Units, sentences: Sequence[str], ranks: Ranks) -> list[TextBatch]:
    """Batches of a rank's validation sentences; raises ValueError where there are none."""
    rows = sorted((row for row in (units.sentence(s.split()) for s in sentences) if len(row) > 2), key=len)
    if not rows:
        raise ValueError(f"no transcripts in cut set '{settings.text.valid}' to validate the language model on")
    rows = list(ranks.mine(rows))
    chosen = split_rows([len(row) - 1 for row in rows], settings.text.batch_units)
    return [TextBatch(("validation",), *padded(rows[some])) for some in chosen]
