"""The training loop of teachers, students and language models."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.batch import BEGIN, Batch, Place, Targets
from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.files import replacing, write_text
from distill.losses.objective import Objective
from distill.losses.term import Losses
from distill.models import checkpoint
from distill.models.encoder import Encoder
from distill.models.recogniser import Recogniser
from distill.train import pictures
from distill.train.compute import computing_in, warn_of_slow_precision, wrap_blocks
from distill.train.distributed import Ranks
from distill.train.monitor import Monitor
from distill.train.optimiser import build_optimiser, clipped_together, set_rate
from distill.train.schedule import learning_rate
from distill.train.stopping import EndRequest, deferred_signals, exit_status
from distill.train.teacher import TeacherTargets

log = logging.getLogger(__name__)
LAST, BEFORE = "last.pt", "last-1.pt"  # what a training continues from: the newest, and the one before it
MOST_WRITTEN = 1 << 28  # bytes of an update that is not finite
NO_PATH = "no path: too few frames for its units, left out of the loss"
Sums = dict[str, tuple[float, float, float]]  # of terms: total, count, weight


@dataclass
class Progress:
    """State of a training besides its tensors; stored in checkpoints, so that a killed one continues."""

    updates: int = 0
    epoch: int = 0  # epochs done; the one being trained, from 0
    validated: int = 0  # updates at the last validation
    window: int = 0  # `Place` in it: what was trained on already
    batch: int = 0
    losses: float = 0.0  # sum of its updates' losses
    losses_of: int = 0  # updates that they are of
    finished: bool = False  # the last epoch was validated and stored
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0  # of all calls, validation and checkpoints included; of a killed one up to its last.pt
    dropped: int = 0  # utterances without a path, in every epoch
    recomputed: int = 0  # utterances done again in the log semiring
    train_loss: float = math.nan
    valid_loss: float = math.nan
    figures: dict[str, float] = field(default_factory=dict)  # of the last validation
    best_epoch: int = 0  # that of the lowest validation loss, from 1
    best_loss: float = math.inf


class TrainingStep(nn.Module):
    """A recogniser and its objective as one module, so that data-parallel training covers both."""

    def __init__(self, model: Recogniser, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, targets: Targets | None) -> Losses:
        """The terms of the loss of a batch on this device."""
        objective, given = self.objective, targets.masked if targets else None
        masked = objective.masked if given is None else given
        output = self.model(batch.wave, batch.samples, masked, objective.attention_map, batch.tokens)
        return objective(output, targets, batch)


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training but the modules that learn.

    batches(epoch, place) yields this rank's shares of an epoch's batches from a place in it; batches have `ids`,
    `seconds`, `counted`, `left_out`, `after` and `to(device)`. valid() yields this rank's share of the validation.
    updates: of the whole training, an estimate where epochs are asked for. units: names of the model's outputs. sizes:
    parameters of the model's parts. folder: of checkpoints. frozen: parameters that stay as they are in the first so
    many updates. probe: further figures of the model for a validation, on the first rank.
    """

    settings: Experiment | LanguageModel
    batches: Callable[[int, Place], Generator[Any, None, None]]
    valid: Callable[[], Iterable[Any]]
    updates: int
    units: Sequence[str]
    sizes: Mapping[str, int]
    folder: Path
    ranks: Ranks
    device: torch.device
    teacher: TeacherTargets | None = None
    frozen: Sequence[tuple[int, nn.Parameter]] = ()
    probe: Callable[[Recogniser], Mapping[str, float]] | None = None


class Trainer:
    """Trains until the schedule ends; `run` may be called again after a kill and continues to the same result.

    All random numbers of an update depend on the experiment's seed, the update and the rank alone, not on anything
    that happened before, in this process or in one that was killed.
    """

    def __init__(self, plan: TrainingPlan, step: nn.Module) -> None:
        """step(batch, targets) gives a batch's Losses; its submodule `model` is what is trained to be used."""
        self.plan, self.settings, self.ranks, self.device = plan, plan.settings.optim, plan.ranks, plan.device
        self.step = step.to(plan.device)
        encoders = [module for module in step.modules() if isinstance(module, Encoder)]
        self._alike = torch.Generator()  # for draws that are the same on all ranks
        for encoder in encoders:
            encoder.draws = self._alike
        self._objectives = [module for module in step.modules() if isinstance(module, Objective)]
        skips_parts = any(encoder.settings.layer_drop for encoder in encoders) or any(
            objective.may_skip_parts for objective in self._objectives
        )
        wrap_blocks(plan.settings.compute, [step, *([plan.teacher.model] if plan.teacher else [])])
        self.parallel = plan.ranks.wrap(self.step, plan.device, skips_parts)
        self.optimiser = build_optimiser(step, self.settings, plan.device)
        self.clipped = clipped_together(self.optimiser)
        self.precision = getattr(torch, self.settings.precision)
        warn_of_slow_precision(self.precision, plan.device)
        self.scaler = torch.amp.GradScaler(plan.device.type, enabled=self.settings.precision == "float16")
        self.progress = Progress()
        self._left_out: dict[str, str] = {}  # cut id -> why it cannot be trained on
        self._request, self._ending = EndRequest(), 0  # _ending: the signal that all ranks end by
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the training's part of result.json.

        SIGTERM, Ctrl-C or SIGUSR1, to any rank: all finish the update, the first writes last.pt, and all raise
        SystemExit, with status 75 for SIGUSR1. Raises RuntimeError where another rank has stopped.
        """
        self._began = time.monotonic()
        self._resume()
        monitor = Monitor(
            self.plan.folder, self.plan.settings.name, self.plan.updates, self.progress.updates, self.ranks.first
        )
        with contextlib.closing(monitor), deferred_signals() as self._request, self.ranks.meeting():
            while not self.progress.finished:
                self._epoch(monitor)
                if self._validation_is_due():
                    self.progress.valid_loss = self._validate(monitor)
                    self._finish_epoch()
                else:
                    self._begin_epoch()
        return self.result()

    def result(self) -> dict[str, Any]:
        """Counts, hours and losses of the training so far."""
        progress, sizes = self.progress, self.plan.sizes
        training_only = sum(p.numel() for p in self.step.parameters()) - sum(sizes.values())
        return {
            "params": {**sizes, "training_only": training_only},
            "updates": progress.updates,
            "audio_hours": round(progress.audio_seconds / 3600, 3),
            "wall_s": round(progress.wall_seconds, 1),
            "train_loss": progress.train_loss,
            "valid_loss": progress.valid_loss,
            "figures": progress.figures,
            "best_epoch": progress.best_epoch or None,
            "without_path": progress.dropped,
            "recomputed": progress.recomputed,
            "left_out": len(self._left_out),
        }

    def _epoch(self, monitor: Monitor) -> None:
        progress = self.progress
        place = Place(progress.window, progress.batch)
        with contextlib.closing(self.plan.batches(progress.epoch, place)) as batches:  # ends loading processes
            while self.settings.epochs or progress.updates < self.plan.updates:
                group = list(islice(batches, self.settings.accumulate))
                if not group:
                    break
                rate = learning_rate(self.settings, progress.updates / self.plan.updates)
                audio = progress.audio_seconds
                values = self._update(group, rate)
                progress.updates += 1
                progress.window, progress.batch = group[-1].after
                self._left_out |= dict(cut for batch in group for cut in batch.left_out)
                if values:
                    progress.losses += values["loss"]
                    progress.losses_of += 1
                monitor.update(progress.updates, values, rate, progress.audio_seconds - audio)
                if self._ending:
                    self._end()
                if progress.updates % self.plan.settings.saving.every_updates == 0:
                    self._save(LAST)
        if not progress.losses_of:
            name, epoch = self.plan.settings.name, progress.epoch + 1
            if Place(progress.window, progress.batch) == BEGIN:
                raise ValueError(f"{name}: epoch {epoch} has no batches: no cut of the training set was read")
            raise ValueError(
                f"{name}: nothing counted in the loss of any batch of epoch {epoch}: {len(self._left_out)} utterances"
                " were left out (skipped.tsv), and others have nothing to learn, as where masks leave no frame to"
                " predict; look at the warnings above"
            )

    def _update(self, group: Sequence[Batch], rate: float) -> dict[str, float]:
        """Means of the terms, loss and norm of the gradient; none where every utterance is lost: no step is taken."""
        set_rate(self.optimiser, rate)
        self.step.train()
        if self.plan.teacher is not None:
            self.plan.teacher.model.eval()
        self._begin_update()
        self.optimiser.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            quiet = getattr(self.parallel, "no_sync", contextlib.nullcontext)
            with contextlib.nullcontext() if last else quiet():
                loss, parts = self._loss(batch)
                self.scaler.scale(loss / len(group)).backward()
            for name, value in parts.items():
                values[name] = values.get(name, 0.0) + value / len(group)
        if not values:
            return {}
        for updates, parameter in self.plan.frozen:
            if self.progress.updates < updates:
                parameter.grad = None
        self.scaler.unscale_(self.optimiser)
        norm = self.clip()
        self._check_finite({**values, "gradient": float(norm)}, group)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {**values, "gradient": float(norm)}

    def clip(self) -> Tensor:
        """Clip the gradients; returns the norm of the model's."""
        norms = [nn.utils.clip_grad_norm_(together, self.settings.clip) for together in self.clipped]
        return norms[0]

    def _begin_update(self) -> None:
        """Seed the random numbers of an update: one row for all ranks alike, one for each; and number it."""
        for objective in self._objectives:
            objective.update_number = self.progress.updates
        number = self.plan.settings.seed, self.progress.updates
        alike, own = (
            int(np.random.SeedSequence((*number, row)).generate_state(1, np.uint64)[0])
            for row in (0, 1 + self.ranks.rank)
        )
        self._alike.manual_seed(alike)
        torch.manual_seed(own)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """This rank's loss to differentiate, and the means of the terms over all ranks with their weighted sum.

        No means where no term of the loss counts anything on any rank.
        """
        batch = batch.to(self.device)
        with computing_in(self.precision, self.device):
            targets = self.plan.teacher(batch) if self.plan.teacher is not None else None
            losses = self.parallel(batch, targets)
        totals, counted = self._reduced(losses, batch)
        counts = {name: max(1.0, count) for name, count in counted.items()}
        values = {name: total / counts[name] for name, total in totals.items()}
        values["loss"] = sum(term.weight * values[name] for name, term in losses.terms.items())
        factor = self.ranks.world * batch.counted  # gradients are averaged over ranks
        weighted = (term.total * (factor * term.weight / counts[name]) for name, term in losses.terms.items())
        loss = sum(weighted, start=torch.zeros((), device=self.device))
        return loss, values if any(term.weight and counted[name] for name, term in losses.terms.items()) else {}

    def _reduced(self, losses: Losses, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """Totals and counts of the terms, and the counters of the result, summed over ranks in one all-reduce."""
        terms = losses.terms.values()
        lost = torch.as_tensor(losses.dropped)
        sums = [*(term.total for term in terms), *(term.count for term in terms), lost.sum(), losses.recomputed]
        own = [torch.as_tensor(x, dtype=torch.float64, device=self.device).detach() * batch.counted for x in sums]
        number = self._request.signal
        flags = [batch.seconds, number == signal.SIGUSR1, number != 0]
        others = torch.tensor(flags, dtype=torch.float64, device=self.device)
        values = self.ranks.sum(torch.cat([torch.stack(own), others])).tolist()
        dropped, recomputed, seconds, warned, ended = values[2 * len(terms) :]
        self.progress.dropped += int(dropped)
        if dropped:
            rows = zip(batch.ids, lost.tolist())
            self._left_out |= {cut_id: NO_PATH for cut_id, without in rows if without}
        self.progress.recomputed += int(recomputed)
        self.progress.audio_seconds += seconds
        self._ending = self._request.agreed(warned > 0, ended > 0)
        return dict(zip(losses.terms, values)), dict(zip(losses.terms, values[len(terms) :]))

    def _check_finite(self, values: dict[str, float], group: Sequence[Batch]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if self.scaler.is_enabled() and bad == ["gradient"]:
            return  # the scaler skips this update and lowers its scale
        if bad:
            number = self.progress.updates + 1
            written = _write_batches(self.plan.folder / f"nonfinite-{number}-{self.ranks.rank}.npz", group)
            found = self.ranks.gather(([cut_id for batch in group for cut_id in batch.ids], written))
            cuts = ", ".join(dict.fromkeys(cut_id for some, _ in found for cut_id in some))
            raise FloatingPointError(
                f"update {number}: {', '.join(bad)} not finite, on cuts {cuts}; nothing of this update was applied."
                f" Lower optim.lr ({self.settings.lr}) or look at these cuts: {', '.join(text for _, text in found)}"
            )

    @torch.no_grad()
    def _validate(self, monitor: Monitor) -> float:
        self.step.eval()
        torch.manual_seed(self.plan.settings.seed)  # masks of pre-training, the same in every validation
        for objective in self._objectives:
            objective.update_number = self.progress.updates
        own: list[Sums] = []
        for batch in self.plan.valid():
            if self._request.signal:
                break
            moved = batch.to(self.device)
            targets = self.plan.teacher(moved) if self.plan.teacher is not None else None
            terms = self.step(moved, targets).terms
            own.append({name: (float(term.total), float(term.count), term.weight) for name, term in terms.items()})
        signals, of_ranks = zip(*self.ranks.gather((self._request.signal, _summed(own))))
        self._ending = self._request.agreed(signal.SIGUSR1 in signals, any(signals))
        if self._ending:
            self._end()
        every = _summed(of_ranks)
        values = {name: total / max(1.0, count) for name, (total, count, _) in every.items()}
        values["loss"] = sum(weight * values[name] for name, (_, _, weight) in every.items())
        if self.plan.probe is not None:
            values |= self.plan.probe(self.step.model)  # type: ignore[arg-type]  # torch types modules as tensors
        monitor.valid(self.progress.updates, values, self.progress.epoch + 1)
        self.progress.figures = values
        self._draw(monitor)
        return values["loss"]

    def _draw(self, monitor: Monitor) -> None:
        """Posteriors of a recogniser for two utterances of the validation, the same every time."""
        model = getattr(self.step, "model", None)
        if monitor.curves is not None and isinstance(model, Recogniser) and pictures.possible():
            utterances = (batch.row(n) for batch in self.plan.valid() for n in range(len(batch.ids)))
            for number, utterance in enumerate(islice(utterances, 2), 1):
                drawing = pictures.posteriors(model, utterance.to(self.device), self.plan.units)
                monitor.curves.picture(f"valid/utterance {number}", drawing, self.progress.updates)

    def _is_last_epoch(self) -> bool:
        epochs = self.settings.epochs
        return self.progress.epoch + 1 >= epochs if epochs else self.progress.updates >= self.plan.updates

    def _validation_is_due(self) -> bool:
        done = self.progress.updates - self.progress.validated
        return self._is_last_epoch() or done >= self.plan.settings.saving.least_updates

    def _begin_epoch(self) -> None:
        progress = self.progress
        progress.epoch, progress.window, progress.batch = progress.epoch + 1, 0, 0

    def _finish_epoch(self) -> None:
        progress = self.progress
        progress.train_loss = progress.losses / progress.losses_of
        progress.losses, progress.losses_of, progress.validated = 0.0, 0, progress.updates
        progress.finished = self._is_last_epoch()
        self._begin_epoch()
        if progress.valid_loss < progress.best_loss:
            progress.best_epoch, progress.best_loss = progress.epoch, progress.valid_loss
        self._save(f"epoch-{progress.epoch}.pt")
        self._save(LAST)
        if self._left_out and self.ranks.first:
            listed = self.plan.folder / "skipped.tsv"
            log.warning("%d cuts left out of training so far, listed in %s", len(self._left_out), listed)
        self._remove_epochs()

    def _remove_epochs(self) -> None:
        """Remove the checkpoints of epochs before the last `keep`, but for the best one."""
        paths = checkpoint.epoch_paths(self.plan.folder) if self.ranks.first else {}
        own = [number for number in paths if number <= self.progress.epoch]
        for number in own[: -self.plan.settings.saving.keep]:
            if number != self.progress.best_epoch:
                paths[number].unlink()

    def _end(self) -> None:
        """Leave a checkpoint and end the process; every rank comes here after the same update."""
        self._save(LAST)
        if self.ranks.first:
            path = self.plan.folder / LAST
            log.info("checkpoint at update %d written to %s; the same command continues", self.progress.updates, path)
        self.ranks.wait()  # launchers kill the others soon after the first has ended
        raise SystemExit(exit_status(self._ending))

    def _save(self, name: str) -> None:
        now = time.monotonic()
        self.progress.wall_seconds += now - self._began
        self._began = now
        for of_rank in self.ranks.gather(self._left_out):
            self._left_out |= of_rank
        if not self.ranks.first:
            return
        left_out = sorted(self._left_out.items())
        write_text(self.plan.folder / "skipped.tsv", "".join(f"{cut}\t{reason}\n" for cut, reason in left_out))
        state = self.step.state_dict()
        content = {
            "model": {name[6:]: value for name, value in state.items() if name.startswith("model.")},
            "objective": {name[10:]: value for name, value in state.items() if name.startswith("objective.")},
            "experiment": self.plan.settings.resolved(),
            "units": list(self.plan.units),
            "progress": asdict(self.progress),
            "ranks": self.ranks.world,
        }
        if name == LAST:
            states = {"optimizer": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}
            content |= {**states, "left_out": dict(left_out)}
            checkpoint.save(self.plan.folder / name, content, self.plan.folder / BEFORE)
        else:
            checkpoint.save(self.plan.folder / name, content)

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint; a damaged one is put aside. Raises ValueError where all are."""
        folder, problems, found = self.plan.folder, list[str](), None
        for path in (folder / LAST, folder / BEFORE):
            if found is None and path.exists():
                try:
                    self._restore(path)
                    found = path
                except ValueError as error:
                    problems.append(str(error))
        updates = self.ranks.gather(self.progress.updates)
        if len(set(updates)) > 1:
            raise ValueError(
                f"the ranks have other checkpoints in {folder} (updates {updates}); they must share exp-dir"
            )
        epochs = ", ".join(epoch.name for epoch in checkpoint.epoch_paths(folder).values()) or "none"
        if problems and found is None:
            raise ValueError(
                f"{'; '.join(problems)}: move {LAST} and {BEFORE} away and training starts over, which replaces the"
                f" existing epochs ({epochs}). Nothing was changed"
            )
        if problems and self.ranks.first:
            aside = (folder / LAST).rename(folder / "last.damaged")
            log.warning("%s. It is put aside as %s", problems[0], aside.name)
        if found is None and epochs != "none" and self.ranks.first:
            log.warning("no %s in %s: training starts over and replaces its epochs (%s)", LAST, folder, epochs)
        if found is not None:
            log.info("continuing from update %d of %d (%s)", self.progress.updates, self.plan.updates, found)
            self._remove_epochs()

    def _restore(self, path: Path) -> None:
        """Tensors and progress of a checkpoint; raises ValueError for one that is damaged or of another training."""
        content = checkpoint.load(path, self.device, checked=True)
        stored = {f"{part}.{name}": x for part in ("model", "objective") for name, x in content.get(part, {}).items()}
        own = self.step.state_dict()
        if not content.keys() >= {"optimizer", "scaler", "progress"} or (
            {name: x.shape for name, x in stored.items()} != {name: x.shape for name, x in own.items()}
        ):
            raise ValueError(f"{path}: no checkpoint that this training can continue from; put back a good copy")
        self.step.load_state_dict(stored)
        scales = [group["lr_scale"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(content["optimizer"])
        for group, scale in zip(self.optimiser.param_groups, scales, strict=True):
            group["lr_scale"] = scale  # earlier checkpoints have none
        self.scaler.load_state_dict(content["scaler"])
        self.progress, self._left_out = Progress(**content["progress"]), dict(content.get("left_out", {}))
        before = content.get("ranks", 1)
        if before != self.ranks.world and self.ranks.first:
            log.warning(
                "begun on %d processes, continued on %d: batches, their order and augmentation stay the same; masks and"
                " dropout are drawn anew, and sums are rounded differently", before, self.ranks.world,
            )  # fmt: skip


def _write_batches(path: Path, batches: Iterable[Any]) -> str:
    """Write ids and tensors (`0.wave`: those of the first batch) as far as there is room; returns where they are."""
    arrays: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        new = {f"{number}.{name}": x.cpu().numpy() for name, x in vars(batch).items() if isinstance(x, Tensor)}
        if arrays and sum(x.nbytes for x in [*arrays.values(), *new.values()]) > MOST_WRITTEN:
            break
        arrays |= {f"{number}.ids": np.array(batch.ids), **new}
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        return str(error)
    return str(path)


def _summed(parts: Iterable[Sums]) -> Sums:
    every: Sums = {}
    for sums in parts:
        for name, (total, count, weight) in sums.items():
            before = every.get(name, (0.0, 0.0, weight))
            every[name] = before[0] + total, before[1] + count, weight
    return every
