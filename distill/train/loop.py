"""The one training loop: teacher, offline student, streaming student and every ablation run through it."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.batch import Batch
from distill.config.training import Optim, Saving
from distill.losses.objective import Losses, Targets
from distill.models import checkpoint
from distill.models.recogniser import Recogniser, count_parameters
from distill.train.distributed import Ranks
from distill.train.monitor import Monitor
from distill.train.schedule import learning_rate
from distill.train.teacher import TeacherTargets

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is; stored in checkpoints, so that a killed one continues where it stopped."""

    updates: int = 0
    epoch: int = 0  # the one being trained, from 0
    batch: int = 0  # batches of it already trained on
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    dropped: int = 0  # utterances without a path
    recomputed: int = 0  # utterances done again in the log semiring
    train_loss: float = math.nan
    valid_loss: float = math.nan


class Trained(Protocol):
    """What the loop asks of settings: those of a recogniser or of a language model."""

    @property
    def name(self) -> str: ...

    @property
    def optim(self) -> Optim: ...

    @property
    def saving(self) -> Saving: ...

    def resolved(self) -> dict[str, Any]: ...


class Step(nn.Module):
    """Model and objective as one module, so that data-parallel training covers both."""

    def __init__(self, model: Recogniser, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, targets: Targets | None) -> Losses:
        """The terms of the loss of a batch on this device."""
        output = self.model(batch.wave, batch.samples)
        through = self.model.head.through
        return self.objective(
            output.logits, output.hidden, output.lengths, batch.graphs, targets, through, output.ctc
        )  # fmt: skip

    def sizes(self) -> dict[str, int]:
        """Parameters of the model's parts."""
        return count_parameters(self.model)


class Trainer:
    """Trains until the schedule ends; `run` may be called again after a kill and continues."""

    def __init__(
        self,
        experiment: Trained,
        model: nn.Module,
        objective: nn.Module,
        teacher: TeacherTargets | None,
        batches: Callable[[int, int], Iterator[Any]],
        valid: Callable[[], Iterator[Any]],
        updates: int,
        units: Sequence[str],
        folder: Path,
        ranks: Ranks,
        device: torch.device,
        step: Callable[..., Any] = Step,
    ) -> None:
        """batches(epoch, skip) yields an epoch's batches without the first `skip`; updates: how many in all.

        step(model, objective) makes the module that gives a batch's Losses and its parameters' `sizes`;
        batches have `ids`, `seconds` and `to(device)`.
        """
        self.experiment, self.settings = experiment, experiment.optim
        self.model, self.objective, self.teacher = model, objective, teacher
        self.batches, self.valid, self.total = batches, valid, updates
        self.units, self.folder, self.ranks, self.device = list(units), folder, ranks, device
        self.step = step(model, objective).to(device)
        self.parallel = ranks.wrap(self.step, device)
        self.parameters = [p for p in self.step.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, self.settings.lr, self.settings.betas, self.settings.eps, self.settings.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.precision == "float16")
        self.progress = Progress()
        self._saved_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what result.json says of the training."""
        self._resume()
        monitor = Monitor(self.folder, self.experiment.name, self.total, self.progress.updates, self.ranks.first)
        while self.progress.updates < self.total:
            self._epoch(monitor)
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
            self.progress.valid_loss = self._validate(monitor)
            self.progress.train_loss = monitor.mean("loss")
            self._save_epoch()
        monitor.close()
        return self.result()

    def result(self) -> dict[str, Any]:
        """Counts, hours and losses of the training so far."""
        training_only = sum(p.numel() for p in self.objective.parameters())
        progress = self.progress
        return {
            "params": {**self.step.sizes(), "training_only": training_only},
            "updates": progress.updates,
            "audio_hours": round(progress.audio_seconds / 3600, 3),
            "wall_s": round(progress.wall_seconds, 1),
            "train_loss": progress.train_loss,
            "valid_loss": progress.valid_loss,
            "without_path": progress.dropped,
            "recomputed": progress.recomputed,
        }

    def _epoch(self, monitor: Monitor) -> None:
        batches = self.batches(self.progress.epoch, self.progress.batch)
        started = time.monotonic()
        while self.progress.updates < self.total:
            group = list(islice(batches, self.settings.accumulate))
            if not group:
                break
            rate = learning_rate(self.settings, self.progress.updates / self.total)
            values = self._update(group, rate)
            self.progress.updates += 1
            self.progress.batch += len(group)
            self.progress.wall_seconds += time.monotonic() - started
            started = time.monotonic()
            monitor.update(self.progress.updates, values, rate)
            if self.progress.updates % self.experiment.saving.every_updates == 0:
                self._save("last.pt")

    def _update(self, group: Sequence[Batch], rate: float) -> dict[str, float]:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.step.train()
        if self.teacher is not None:
            self.teacher.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            quiet = getattr(self.parallel, "no_sync", contextlib.nullcontext)
            with contextlib.nullcontext() if last else quiet():
                loss, parts = self._loss(batch)
                self.scaler.scale(loss / len(group)).backward()
            for name, value in parts.items():
                values[name] = values.get(name, 0.0) + value / len(group)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self._check_finite({**values, "gradient": float(norm)}, group)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._count(group)
        return {**values, "gradient": float(norm)}

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        batch = batch.to(self.device)
        targets = self.teacher(batch) if self.teacher is not None else None
        precision = getattr(torch, self.settings.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            losses = self.parallel(batch, targets)
        self.progress.dropped += int(losses.dropped)
        self.progress.recomputed += losses.recomputed
        return self._combine(losses)

    def _combine(self, losses: Losses) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the terms, each divided by its count over all processes.

        Gradients are averaged over processes afterwards, hence the factor `world`.
        """
        total, values = torch.zeros((), device=self.device), {}
        for name, term in losses.terms.items():
            count = self.ranks.sum(term.count.detach().double()).clamp_min(1)
            mean = term.total / count.to(term.total.dtype)
            total = total + term.weight * mean * self.ranks.world
            values[name] = float(self.ranks.sum(mean.detach()))
        values["loss"] = float(self.ranks.sum(total.detach())) / self.ranks.world
        return total, values

    def _check_finite(self, values: dict[str, float], group: Sequence[Batch]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if self.scaler.is_enabled() and bad == ["gradient"]:
            return  # the scaler skips this update and lowers its scale
        if bad:
            cuts = ", ".join(cut_id for batch in group for cut_id in batch.ids)
            raise FloatingPointError(
                f"update {self.progress.updates + 1}: {', '.join(bad)} not finite, on cuts {cuts};"
                f" nothing of this update was applied. Lower optim.lr ({self.settings.lr}) or look at these cuts"
            )

    def _count(self, group: Sequence[Batch]) -> None:
        seconds = torch.tensor(sum(batch.seconds for batch in group), device=self.device)
        self.progress.audio_seconds += float(self.ranks.sum(seconds))

    @torch.no_grad()
    def _validate(self, monitor: Monitor) -> float:
        self.step.eval()
        sums: dict[str, list[float]] = {}
        for batch in self.valid():
            moved = batch.to(self.device)
            targets = self.teacher(moved) if self.teacher is not None else None
            losses = self.step(moved, targets)
            for name, term in losses.terms.items():
                total, count, _ = sums.setdefault(name, [0.0, 0.0, term.weight])
                sums[name] = [total + float(term.total), count + float(term.count), term.weight]
        values = {name: total / max(1.0, count) for name, (total, count, _) in sums.items()}
        values["loss"] = sum(weight * values[name] for name, (_, _, weight) in sums.items())
        monitor.valid(self.progress.updates, values, self.progress.epoch)
        return values["loss"]

    def _save_epoch(self) -> None:
        name = f"epoch-{self.progress.epoch}.pt"
        self._save(name)
        self._save("last.pt")
        paths = list(checkpoint.epoch_paths(self.folder).values())
        if self.ranks.first:
            for path in paths[: -self.experiment.saving.keep]:
                path.unlink()

    def _save(self, name: str) -> None:
        self.ranks.wait()
        if self.ranks.first:
            content = {
                "model": self.model.state_dict(),
                "objective": self.objective.state_dict(),
                "experiment": self.experiment.resolved(),
                "units": self.units,
                "progress": asdict(self.progress),
            }
            if name == "last.pt":
                content |= {
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "random": torch.get_rng_state(),
                }
            checkpoint.save(self.folder / name, content)
        self.ranks.wait()

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        content = checkpoint.load(path, self.device)
        self.model.load_state_dict(content["model"])
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["random"].cpu())
        self.progress = Progress(**content["progress"])
        log.info("continuing from update %d of %d (%s)", self.progress.updates, self.total, path)
