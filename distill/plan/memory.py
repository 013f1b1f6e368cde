"""Peak memory of an update: its tensors' shapes are computed on torch's meta device, which stores no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from distill.batch import SAMPLE_RATE, Batch, Targets
from distill.config.experiment import Experiment
from distill.config.model import Mask, Model
from distill.config.units import CODEWORDS
from distill.losses.objective import TERMS
from distill.losses.term import LossTerm, TermContext
from distill.losses.transducer import slice_bytes
from distill.models.recogniser import Recogniser, without_values
from distill.models.transfer import frozen_parameters

HALF = {F.linear, F.conv1d, torch.conv1d, torch.matmul, Tensor.matmul, Tensor.__matmul__}
UNITS_PER_SECOND = 12
"""Phones of read speech."""
FULL = {F.layer_norm, F.group_norm, F.log_softmax, torch.log_softmax, Tensor.log_softmax}
"""Functions that CUDA's autocast computes in half and in single precision, of those that the models use."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training on one device; parameters: trained numbers of model and terms."""

    parameters: int
    weights: int
    teacher: int
    optimizer: int
    gradients: int
    activations: int  # with temporary tensors, at the moment when they are most
    lfmmi: int
    transducer: int

    @property
    def total(self) -> int:
        return sum(vars(self).values()) - self.parameters


def update_memory(
    experiment: Experiment, teacher: Model | None, outputs: int, states: int, rows: int, seconds: float
) -> Memory:
    """Memory of an update on `rows` utterances of so many seconds; states: of the denominator.

    Attention is counted as a fused kernel's, which stores no (T, T) scores; of a loss's relations between frames some
    rows are there at a time (`distill.losses.term.sum_over_rows`). LF-MMI has alpha and beta of all states and frames,
    scores and posteriors; a transducer the largest slice of `distill.losses.transducer`. Of terms of masked frames
    (pre-training) parameters count, and no activations.
    """
    model = without_values(_steady(experiment.model), outputs).train()
    theirs = without_values(_steady(teacher), outputs).eval().requires_grad_(False) if teacher else None
    with torch.device("meta"):
        terms = terms_of(experiment, teacher)
    on_gpu = partial(_AsOnGpu, getattr(torch, experiment.optim.precision))
    if experiment.compute.checkpoint_activations:
        blocks: Any = model.encoder.blocks
        for block in blocks:
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, context_fn=lambda: (nullcontext(), on_gpu())
            )
    frozen_parameters(experiment, model)
    step = nn.ModuleList([model, *terms.values()])
    wave = torch.empty(rows, round(seconds * SAMPLE_RATE), device="meta")
    samples = torch.full((rows,), wave.shape[1], device="meta")
    distortions = torch.empty(rows, len(experiment.distortions), device="meta")
    batch = Batch((), wave, samples, clean=wave, distortions=distortions)
    layers = teacher.encoder.layers if teacher else 0
    attention = experiment.objective.attention_map(experiment.model.encoder.layers)
    taught = experiment.objective.teacher_blocks(experiment.model.encoder.layers, layers) if teacher else []
    with _Peak() as peak:
        with on_gpu():
            targets = _targets(theirs, batch, taught, clusters_of(experiment), attention.values()) if theirs else None
            frames, loss = _forward(model, terms, batch, targets, attention)
        loss.backward()
    lfmmi = 4 * frames * (2 * states + 4 * outputs) if "mmi" in experiment.objective.terms else 0
    joined = 0
    if {"transducer", "transducer_kl"} & experiment.objective.terms.keys() and (joiner := experiment.model.transducer):
        joined = slice_bytes(frames // rows, round(UNITS_PER_SECOND * seconds), max(outputs, joiner.joiner_dim))
    trained = sum(parameter.numel() for parameter in step.parameters() if parameter.requires_grad)
    return Memory(
        trained, _bytes(step), _bytes(theirs) if theirs else 0, 8 * trained, 4 * trained,
        max(0, peak.most - 4 * trained), lfmmi, joined,
    )  # fmt: skip


def terms_of(experiment: Experiment, teacher: Model | None) -> dict[str, LossTerm]:
    """The terms of an experiment that need neither graphs nor transcripts, for their parameters; those have none."""
    clusters, labels = clusters_of(experiment), len(experiment.distortions)
    context = TermContext(experiment.model, teacher, clusters=clusters, distortions=labels)
    settings = experiment.objective.terms
    return {n: TERMS[n].build(settings[n], context) for n in settings if not {"graphs", "tokens"} & TERMS[n].needs}


def clusters_of(experiment: Experiment) -> int:
    """Units of an experiment; without any, as many codewords as a teacher is taken to have."""
    return experiment.units.clusters if experiment.units else CODEWORDS


def _targets(teacher: Recogniser, batch: Batch, blocks: list[int], codes: int, attention: Collection[int]) -> Targets:
    with torch.no_grad():
        output = teacher(batch.wave, batch.samples, attention=attention)
    hidden = {block: output.hidden[block] for block in blocks}
    logits = output.logits.new_empty(*output.logits.shape[:2], codes)
    return Targets(output.logits, hidden, output.lengths, output.ctc_logits, output.normed, logits, output.attention)


def _forward(
    model: Recogniser, terms: Mapping[str, nn.Module], batch: Batch, targets: Targets | None, attention: Collection[int]
) -> tuple[int, Tensor]:
    """Frames of the batch, and a loss of model and terms."""
    output = model(batch.wave, batch.samples, attention=attention)
    losses = [output.logits.float().log_softmax(-1).sum()]
    rows, frames, _ = output.logits.shape
    if targets is not None:  # fitted to the student's frames, as copies
        fitted = tree_map_only(Tensor, lambda x: x.new_empty(rows, frames, *x.shape[2:]), targets)
        at_student = fitted._replace(lengths=output.lengths, logits=torch.empty_like(output.logits))
        for term in terms.values():
            losses += [loss.total for loss in term(output, at_student, batch).terms.values()]
    return rows * frames, sum(losses, start=losses[0].new_zeros(()))


def _steady(settings: Model) -> Model:
    """A model without random shapes: no masks, dropped blocks or drawn chunks."""
    encoder = settings.encoder.model_copy(update={"layer_drop": 0.0})
    streaming = settings.streaming.model_copy(update={"train_chunks": (), "train_histories": ()})
    return settings.model_copy(update={"encoder": encoder, "streaming": streaming, "mask": Mask()})


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


class _Peak(TorchDispatchMode):
    """Bytes of the tensors that operations make: those alive, and the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)):
            if storage._cdata not in self._seen | before:
                self._seen.add(storage._cdata)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.alive)
        return result

    def _free(self, number: int, size: int) -> None:
        self._seen.discard(number)
        self.alive -= size


class _AsOnGpu(TorchFunctionMode):
    """The types that CUDA's autocast gives tensors, and attention by a fused kernel."""

    def __init__(self, precision: torch.dtype) -> None:
        super().__init__()
        self.precision = precision

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = self.precision if func in HALF else torch.float32 if func in FULL else None
        if func is F.scaled_dot_product_attention:
            query, key, value = (x.to(self.precision) for x in args[:3])
            return _FusedAttention.apply(query, key, value, kwargs["attn_mask"].to(self.precision))
        if kind is not None and self.precision is not torch.float32:
            args, kwargs = tree_map_only(Tensor, lambda x: x.to(kind) if x.is_floating_point() else x, (args, kwargs))
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """Tensors of a fused attention: inputs, output and a log-sum per query are stored."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, bias, result, query.new_empty(query.shape[:3], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, _, _ = ctx.saved_tensors
        return tuple(torch.empty_like(x) if needed else None for x, needed in zip(inputs, ctx.needs_input_grad))
