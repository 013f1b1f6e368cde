"""The one training loop: teacher, offline student, streaming student and every ablation run through it."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distill.batch import Batch, Targets
from distill.config.training import Optim, Saving
from distill.losses.objective import Losses
from distill.models import checkpoint
from distill.models.encoder import Encoder
from distill.models.recogniser import Recogniser, count_parameters
from distill.train.distributed import Ranks
from distill.train.monitor import Monitor
from distill.train.schedule import learning_rate
from distill.train.stopping import Asked, noticing
from distill.train.teacher import TeacherTargets

log = logging.getLogger(__name__)
Sums = dict[str, tuple[float, float, float]]  # of terms: total, count, weight


@dataclass
class Progress:
    """How far a training is; stored in checkpoints, so that a killed one continues where it stopped."""

    updates: int = 0
    epoch: int = 0  # epochs that were validated and stored; the one being trained, from 0
    batch: int = 0  # batches of it already trained on
    losses: float = 0.0  # sum of its updates' losses
    losses_of: int = 0  # updates that they are of
    finished: bool = False  # the last epoch was validated and stored
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0  # of all calls, validation and checkpoints included; of a killed one up to its last.pt
    dropped: int = 0  # utterances without a path
    recomputed: int = 0  # utterances done again in the log semiring
    train_loss: float = math.nan
    valid_loss: float = math.nan


class Trained(Protocol):
    """What the loop asks of settings: those of a recogniser or of a language model."""

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int: ...

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
        return self.objective(output, targets, batch)

    def sizes(self) -> dict[str, int]:
        """Parameters of the model's parts."""
        return count_parameters(self.model)


@dataclass(frozen=True)
class Shared:
    """What all ranks together have of a batch: totals and counts of the terms, and what is added up for the result."""

    totals: dict[str, float]
    counts: dict[str, float]
    dropped: int
    recomputed: int
    seconds: float
    asked_to_end: bool

    def means(self, losses: Losses) -> dict[str, float]:
        """The terms' means and their weighted sum, `loss`."""
        values = {name: total / self.counts[name] for name, total in self.totals.items()}
        return {**values, "loss": sum(term.weight * values[name] for name, term in losses.terms.items())}


class Trainer:
    """Trains until the schedule ends; `run` may be called again after a kill and continues to the same result.

    All random numbers of an update are drawn from seeds of the experiment's seed, the update and the rank: nothing
    that happened before, in this process or in one that was killed, has a part in them.
    """

    def __init__(
        self,
        experiment: Trained,
        model: nn.Module,
        objective: nn.Module,
        teacher: TeacherTargets | None,
        batches: Callable[[int, int], Generator[Any, None, None]],
        valid: Callable[[], Iterator[Any]],
        updates: int,
        units: Sequence[str],
        folder: Path,
        ranks: Ranks,
        device: torch.device,
        step: Callable[..., Any] = Step,
    ) -> None:
        """batches(epoch, skip) yields this rank's shares of an epoch's batches without the first `skip`.

        valid() yields this rank's share of the validation. updates: how many in all. step(model, objective) makes
        the module that gives a batch's Losses and its parameters' `sizes`; batches have `ids`, `seconds`, `counted`
        and `to(device)`.
        """
        self.experiment, self.settings = experiment, experiment.optim
        self.model, self.objective, self.teacher = model, objective, teacher
        self.batches, self.valid, self.total = batches, valid, updates
        self.units, self.folder, self.ranks, self.device = list(units), folder, ranks, device
        self.step = step(model, objective).to(device)
        encoders = [module for module in model.modules() if isinstance(module, Encoder)]
        self.parallel = ranks.wrap(self.step, device, any(encoder.settings.layer_drop for encoder in encoders))
        self._alike = torch.Generator()  # for what all ranks draw alike
        for encoder in encoders:
            encoder.draws = self._alike
        self.parameters = [p for p in self.step.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, self.settings.lr, self.settings.betas, self.settings.eps, self.settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.precision == "float16")
        self.progress = Progress()
        self._asked, self._ending = Asked(), False
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what result.json says of the training.

        SIGTERM or Ctrl-C: all ranks finish the update, the first writes last.pt, and all raise SystemExit. Raises
        RuntimeError where another rank is gone.
        """
        self._began = time.monotonic()
        self._resume()
        monitor = Monitor(self.folder, self.experiment.name, self.total, self.progress.updates, self.ranks.first)
        with contextlib.closing(monitor), noticing() as self._asked, self.ranks.meeting():
            while not self.progress.finished:
                self._epoch(monitor)
                self.progress.valid_loss = self._validate(monitor)
                self._finish_epoch()
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
        progress = self.progress
        with contextlib.closing(self.batches(progress.epoch, progress.batch)) as batches:  # ends loading processes
            while progress.updates < self.total:
                group = list(islice(batches, self.settings.accumulate))
                if not group:
                    break
                rate = learning_rate(self.settings, progress.updates / self.total)
                values = self._update(group, rate)
                progress.updates += 1
                progress.batch += len(group)
                progress.losses += values["loss"]
                progress.losses_of += 1
                monitor.update(progress.updates, values, rate)
                if self._ending:
                    self._end()
                if progress.updates % self.experiment.saving.every_updates == 0:
                    self._save("last.pt")
        if not progress.batch:
            raise ValueError(f"{self.experiment.name}: epoch {progress.epoch + 1} has no batches to train on")

    def _update(self, group: Sequence[Batch], rate: float) -> dict[str, float]:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.step.train()
        if self.teacher is not None:
            self.teacher.model.eval()
        self._seed()
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
        return {**values, "gradient": float(norm)}

    def _seed(self) -> None:
        """Begin the random numbers of an update: one row for all ranks alike, one for each."""
        number = self.experiment.seed, self.progress.updates
        alike, own = (
            int(np.random.SeedSequence((*number, row)).generate_state(1, np.uint64)[0])
            for row in (0, 1 + self.ranks.rank)
        )
        self._alike.manual_seed(alike)
        torch.manual_seed(own)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        batch = batch.to(self.device)
        targets = self.teacher(batch) if self.teacher is not None else None
        precision = getattr(torch, self.settings.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            losses = self.parallel(batch, targets)
        shared = self._share(losses, batch)
        self.progress.dropped += shared.dropped
        self.progress.recomputed += shared.recomputed
        self.progress.audio_seconds += shared.seconds
        self._ending = shared.asked_to_end
        return self._combine(losses, shared, batch.counted), shared.means(losses)

    def _share(self, losses: Losses, batch: Batch) -> Shared:
        """The one exchange of a batch beside that of gradients."""
        names = list(losses.terms)
        terms = [*(losses.terms[name].total for name in names), *(losses.terms[name].count for name in names)]
        own = torch.stack([value.detach().double() for value in (*terms, losses.dropped)]) * batch.counted
        others = [losses.recomputed * batch.counted, batch.seconds, bool(self._asked.signal)]
        every = torch.cat([own, torch.tensor(others, dtype=own.dtype, device=own.device)])
        values = self.ranks.sum(every).tolist()
        dropped, recomputed, seconds, asked = values[2 * len(names) :]
        counts = {name: max(1.0, count) for name, count in zip(names, values[len(names) :])}
        return Shared(dict(zip(names, values)), counts, int(dropped), int(recomputed), seconds, asked > 0)

    def _combine(self, losses: Losses, shared: Shared, counted: bool) -> Tensor:
        """Weighted sum of the terms, each divided by its count over all processes.

        Gradients are averaged over processes afterwards, hence the factor `world`.
        """
        factor = self.ranks.world * counted
        return sum(
            (term.total * (factor * term.weight / shared.counts[name]) for name, term in losses.terms.items()),
            start=torch.zeros((), device=self.device),
        )

    def _check_finite(self, values: dict[str, float], group: Sequence[Batch]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if self.scaler.is_enabled() and bad == ["gradient"]:
            return  # the scaler skips this update and lowers its scale
        if bad:
            ids = self.ranks.gather([cut_id for batch in group for cut_id in batch.ids])
            cuts = ", ".join(dict.fromkeys(cut_id for some in ids for cut_id in some))
            raise FloatingPointError(
                f"update {self.progress.updates + 1}: {', '.join(bad)} not finite, on cuts {cuts};"
                f" nothing of this update was applied. Lower optim.lr ({self.settings.lr}) or look at these cuts"
            )

    @torch.no_grad()
    def _validate(self, monitor: Monitor) -> float:
        self.step.eval()
        own: Sums = {}
        for batch in self.valid():
            if self._asked.signal:
                break
            moved = batch.to(self.device)
            targets = self.teacher(moved) if self.teacher is not None else None
            for name, term in self.step(moved, targets).terms.items():
                _add(own, name, float(term.total), float(term.count), term.weight)
        signals, sums = zip(*self.ranks.gather((self._asked.signal, own)))
        if any(signals):
            self._end()
        every: Sums = {}
        for some in sums:
            for name, (total, count, weight) in some.items():
                _add(every, name, total, count, weight)
        values = {name: total / max(1.0, count) for name, (total, count, _) in every.items()}
        values["loss"] = sum(weight * values[name] for name, (_, _, weight) in every.items())
        monitor.valid(self.progress.updates, values, self.progress.epoch + 1)
        return values["loss"]

    def _finish_epoch(self) -> None:
        progress = self.progress
        progress.train_loss = progress.losses / progress.losses_of
        progress.losses, progress.losses_of = 0.0, 0
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.finished = progress.updates >= self.total
        self._save(f"epoch-{progress.epoch}.pt")
        if self.ranks.first:
            for number, path in checkpoint.epoch_paths(self.folder).items():
                if number <= progress.epoch - self.experiment.saving.keep:
                    path.unlink()
        self._save("last.pt")

    def _end(self) -> None:
        """Leave a checkpoint and end the process; every rank comes here after the same update."""
        self._save("last.pt")
        if self.ranks.first:
            path = self.folder / "last.pt"
            log.info("checkpoint at update %d written to %s; the same command continues", self.progress.updates, path)
        raise SystemExit(self._asked.status)

    def _save(self, name: str) -> None:
        now = time.monotonic()
        self.progress.wall_seconds += now - self._began
        self._began = now
        if not self.ranks.first:
            return
        content = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "experiment": self.experiment.resolved(),
            "units": self.units,
            "progress": asdict(self.progress),
            "ranks": self.ranks.world,
        }
        if name == "last.pt":
            content |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        checkpoint.save(self.folder / name, content)

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        content = self._last(path) if path.exists() else None
        updates = self.ranks.gather(content["progress"]["updates"] if content else 0)
        if len(set(updates)) > 1:
            raise ValueError(f"the ranks find other checkpoints at {path} (updates {updates}); they must share exp-dir")
        if content is None:
            return
        self.model.load_state_dict(content["model"])
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        log.info("continuing from update %d of %d (%s)", self.progress.updates, self.total, path)
        before = content.get("ranks", 1)
        if before != self.ranks.world:
            log.warning(
                "begun on %d processes, continued on %d: batches stay as they are, masks and dropout become others",
                before, self.ranks.world,
            )  # fmt: skip

    def _last(self, path: Path) -> dict[str, Any]:
        try:
            return checkpoint.load(path, self.device)
        except ValueError as error:
            epochs = ", ".join(found.name for found in checkpoint.epoch_paths(self.folder).values()) or "none"
            raise ValueError(
                f"{error}: move {path.name} away and training begins anew, which replaces the epochs that are there"
                f" ({epochs}). Nothing was changed"
            ) from None


def _add(sums: Sums, name: str, total: float, count: float, weight: float) -> None:
    before = sums.get(name, (0.0, 0.0, weight))
    sums[name] = before[0] + total, before[1] + count, weight
