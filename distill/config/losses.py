"""Settings of the objective: a table of weighted terms, and the shorthand of papers/001 for five of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distill.config.bounds import (
    Codewords,
    Count,
    EachOnce,
    Flag,
    Number,
    Positive,
    Probability,
    Scale,
    Seed,
    Share,
    Weight,
    Whole,
    Width,
)
from distill.config.loading import Settings
from distill.config.model import MOST_FBANK, SAMPLE_RATE, Model, frame_ratio

Mels = Annotated[Whole, Field(ge=1, le=MOST_FBANK)]
Precision = Literal["input", "float32", "float64"]
TeacherLayers = tuple[Annotated[Whole, Field(ge=0, le=65536)], ...]


class LossTerm(Settings):
    """A term of the objective; its file in `distill.losses` has the formula.

    taught: it needs a teacher. supervised: it needs transcripts, or lattices in their place, and the graphs. units: it
    needs k-means units (`distill.config.units`). codes: it needs the teacher's codewords, where units are given
    centroids of those. masked: it is of masked frames. distorted: it needs labels of the input's distortions
    (`distill.config.distortions`). hidden: what it compares of teacher blocks are hidden states.
    """

    taught: ClassVar[bool] = True
    supervised: ClassVar[bool] = False
    units: ClassVar[bool] = False
    codes: ClassVar[bool] = False
    masked: ClassVar[bool] = False
    distorted: ClassVar[bool] = False
    hidden: ClassVar[bool] = True

    weight: Annotated[Number, Field(ge=0, le=10**6)] = 1.0
    updates: Count = 0  # on for the first so many updates only; 0: for all
    start: Count = 0  # off in the first so many updates

    @model_validator(mode="after")
    def _check_on(self) -> LossTerm:
        if self.updates and self.start >= self.updates:
            raise ValueError(f"start: {self.start}: the term ends before, after update {self.updates} (updates)")
        return self

    def on(self, done: int) -> bool:
        """Whether it is part of the loss after so many updates."""
        return self.start <= done and (not self.updates or done < self.updates)

    def teacher_blocks(self, blocks: int) -> frozenset[int]:
        """Teacher blocks that the term compares, for a student with so many blocks; 0: their input."""
        return frozenset()

    def check_model(self, student: Model) -> None:
        """Raise ValueError where the term does not fit a student."""

    def check_models(self, student: Model, teacher: Model) -> None:
        """Raise ValueError where the term cannot compare them."""


class Mmi(LossTerm):
    """LF-MMI per frame, with the penalty `out_of_range` as a term of its own."""

    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True

    den_scale: Weight = 1.0
    leaky: Probability = 0.0  # coefficient of the leaky HMM in the denominator (Kaldi's recipes: 0.1), 0: off
    out_of_range: Weight = 0.0  # scale of the penalty on logits beyond +-30 (Kaldi's recipes: 0.01), 0: off
    precision: Precision = "input"  # of the sums over paths


class Ctc(LossTerm):
    """CTC per frame of the second output (model.ctc_output)."""

    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True

    precision: Precision = "input"


class Transducer(LossTerm):
    """RNN-T per frame of the transducer (model.transducer)."""

    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True


class TransducerKl(LossTerm):
    """KL divergence of the transducer's posteriors from the teacher's, along the teacher's best alignment."""

    supervised: ClassVar[bool] = True

    def check_models(self, student: Model, teacher: Model) -> None:
        if teacher.transducer is None:
            raise ValueError("transducer_kl: the teacher has no transducer (model.transducer) to learn from")


class Outputs(LossTerm):
    """MSE between the student's logits and the teacher's."""


class CtcOutputs(LossTerm):
    """The same for the second output; without effect for a teacher that has none."""


class Blockwise(LossTerm):
    """A term that compares student blocks with teacher blocks."""

    step: ClassVar[int] = 2

    layers: TeacherLayers = ()  # g(i): teacher block of student block i = 1..; 0: none; empty: i times `step`

    @model_validator(mode="after")
    def _check_layers(self) -> Blockwise:
        if self.layers and not any(self.layers):
            raise ValueError(
                f"layers {list(self.layers)} compare no block; give a teacher block above 0, or leave the term out"
            )
        return self

    def layer_map(self, blocks: int) -> dict[int, int]:
        """g of a student with so many blocks, both sides counted from 1 (papers/001 §5.1.2: g(i) = 2i)."""
        layers = self.layers or range(self.step, self.step * blocks + 1, self.step)
        return {i: g for i, g in enumerate(layers, 1) if g}

    def teacher_blocks(self, blocks: int) -> frozenset[int]:
        return frozenset(self.layer_map(blocks).values())


class Hidden(Blockwise):
    """MSE between mapped hidden states and the teacher's, summed over blocks."""

    norm: Literal["none", "layer"] = "none"  # targets as they are, or normalised over channels
    lr_scale: Scale = 1.0  # learning rate of the W_i relative to the model's
    lower_weight: Weight = 1.0  # of each block before the last one of the map


class Regression(Blockwise):
    """L1 and cosine distance between predicted hidden states and the teacher's, a mean over predicted blocks.

    heads: `blocks` are predicted from the last block (last), or their mean is (mean); or g(i) from block i (layers); or
    each block of `groups` from the same one of the student, by one linear layer per group.
    """

    heads: Literal["last", "mean", "layers", "groups"] = "last"
    blocks: Annotated[tuple[Width, ...], EachOnce, Field(min_length=1)] = (4, 8, 12)  # of the teacher
    groups: tuple[Annotated[tuple[Annotated[Whole, Field(ge=0, le=65536)], ...], Field(min_length=1)], ...] = ()
    identity: Flag = False  # linear layers start as the identity, as far as both widths go
    cosine: Literal["log_sigmoid", "plain"] = "log_sigmoid"  # - log sigmoid of the cosine, or minus the cosine
    cosine_weight: Weight = 1.0

    def pairs(self, blocks: int) -> list[tuple[int, tuple[int, ...]]]:
        """(student block, teacher blocks whose mean is the target) of each prediction, for so many student blocks."""
        pairs: dict[str, list[tuple[int, tuple[int, ...]]]] = {
            "last": [(blocks, (g,)) for g in self.blocks],
            "mean": [(blocks, self.blocks)],
            "layers": [(i, (g,)) for i, g in self.layer_map(blocks).items()],
            "groups": [(block, (block,)) for group in self.groups for block in group],
        }
        return pairs[self.heads]

    def teacher_blocks(self, blocks: int) -> frozenset[int]:
        return frozenset(g for _, taught in self.pairs(blocks) for g in taught)

    def check_models(self, student: Model, teacher: Model) -> None:
        outside = [i for i, _ in self.pairs(0) if self.heads == "groups" and i > student.encoder.layers]
        if outside:
            raise ValueError(f"regression.groups names blocks {outside}, but the student has {student.encoder.layers}")

    @model_validator(mode="after")
    def _check(self) -> Regression:
        read = {"layers": "layers", "groups": "groups"}.get(self.heads, "blocks")
        for unread in {"blocks", "layers", "groups"} - {read}:
            if getattr(self, unread) != type(self).model_fields[unread].default:
                raise ValueError(
                    f"{unread} are not read with heads: {self.heads}; leave them out, or choose other heads"
                )
        every = [block for group in self.groups for block in group]
        if self.heads == "groups" and (not every or len(set(every)) < len(every)):
            raise ValueError(f"groups must name blocks, each once, such as [[0], [4, 8, 12]] (got {self.groups})")
        return self


class Relation(Blockwise):
    """A term that compares relations between the frames of an utterance, of each block with the same of the teacher."""

    step: ClassVar[int] = 1
    other_way: ClassVar[str] = "use the term temporal, which can average the teacher's frames"

    def check_models(self, student: Model, teacher: Model) -> None:
        ours, theirs = (1000 * model.front_end.hop / SAMPLE_RATE for model in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"{type(self).__name__.lower()}: relations between frames need the same frames in both models, but the"
                f" student's are {ours:g} ms apart and the teacher's {theirs:g} ms; give the student a front-end of the"
                f" teacher's rate, or {self.other_way}"
            )


class Attention(Relation):
    """KL divergence of attention maps averaged over heads from the teacher's, summed over blocks."""

    hidden: ClassVar[bool] = False

    def check_models(self, student: Model, teacher: Model) -> None:
        super().check_models(student, teacher)
        pairs = self.layer_map(student.encoder.layers)
        for name, model, blocks in (("student", student, pairs.keys()), ("teacher", teacher, pairs.values())):
            if bare := [i for i in blocks if i <= model.encoder.layers and not model.encoder.widths(i - 1).heads]:
                raise ValueError(f"attention: blocks {bare} of the {name} have no attention; leave them out of layers")
            if model.pruning is not None and {"heads", "layers"} & {*model.pruning.units}:
                raise ValueError(
                    f"attention: gates of the {name} close heads (model.pruning.units), which an average of maps over"
                    " heads does not know; leave heads and layers out of the units, or use the term temporal"
                )
            if any(model.encoder.attention_of):
                raise ValueError(
                    f"attention: blocks of the {name} take maps from others (encoder.attention_of), and so have none to"
                    " compare; use the term temporal"
                )
            if model.encoder.time_reduction > 1:
                raise ValueError(
                    f"attention: maps of the {name} are of every {model.encoder.time_reduction} frames together"
                    " (encoder.time_reduction), and need those of the other model; use the term temporal"
                )
            if model.encoder.relative_buckets:
                raise ValueError(
                    f"attention: the {name} adds gated relative positions to its scores (WavLM), which this term does"
                    " not compute; use the term temporal"
                )
            if model.front_end.tail:
                raise ValueError(
                    f"attention: the {name} also attends to {model.front_end.tail} frames of silence behind the audio"
                    " (front_end.tail, as Whisper), which the other model does not have; use the term temporal"
                )
            if model.streaming.chunk_frames:
                raise ValueError(
                    f"attention: the {name} sees chunks of {model.streaming.chunk_frames} frames, and the divergence of"
                    " maps needs the same frames visible in both; give both full context, or use the term temporal"
                )


class Temporal(Relation):
    """MSE between temporal Gram matrices of student and teacher, summed over blocks."""

    other_way: ClassVar[str] = "of a multiple of its hop and temporal.average: true"

    # layer: of the input of the first block, and of the output of each; intra: between input and output of each
    kinds: Annotated[tuple[Literal["layer", "intra"], ...], EachOnce, Field(min_length=1)] = ("layer", "intra")
    norm: Literal["none", "dim", "cosine"] = "dim"  # products of channels: their sum, their mean, or the cosine
    average: Flag = False  # over the teacher's frames that one of the student's spans; false: other rates are refused

    def teacher_blocks(self, blocks: int) -> frozenset[int]:
        outputs = super().teacher_blocks(blocks)
        inputs = {"layer": {0}, "intra": {g - 1 for g in outputs}}
        return outputs.union(*(inputs[kind] for kind in self.kinds))

    def check_models(self, student: Model, teacher: Model) -> None:
        if not self.average or student.front_end.hop % teacher.front_end.hop:
            super().check_models(student, teacher)


class Front(LossTerm):
    """Distance between the front-ends' normed frames; with `updates` the first step of papers/000's two."""

    kind: Literal["l1", "l2"] = "l1"


class Discriminative(LossTerm):
    """KL divergence of the student's distribution over codewords from the teacher's."""

    codes: ClassVar[bool] = True

    frames: Literal["all", "masked"] = "all"  # those that model.mask hits in the student's input, or all
    final_dim: Width = 256  # of the student's codeword embeddings
    temperature: Scale = 0.1  # of its logits, which are cosines

    def check_model(self, student: Model) -> None:
        if self.frames == "masked" and not student.mask.time_probability:
            raise ValueError(
                "objective.discriminative.frames: masked, but no frame is: set model.mask.time_probability, or all"
            )


class Adversary(LossTerm):
    """Classification of the input's distortions by a classifier that learns it, and a student that unlearns it.

    Validation losses are without it, as papers/003 chooses checkpoints by the loss of distillation alone.
    """

    taught: ClassVar[bool] = False
    distorted: ClassVar[bool] = True

    reversal: Weight = 0.01  # lambda: scale of the student's gradient, which is followed up
    lr_scale: Scale = 1.0  # learning rate of the classifier relative to the model's


class Sparsity(LossTerm):
    """Distance of the share that gates close (model.pruning) from a target, by multipliers that learn.

    Validation losses are without it.
    """

    taught: ClassVar[bool] = False

    target: Share = 0.75  # of front-end and encoder, in what model.pruning.of names
    warm_up: Count = 5000  # updates in which the target rises from 0


class Denoising(LossTerm):
    """L1 distance of predicted log-mel energies from those of the clean waveform."""

    taught: ClassVar[bool] = False

    mels: Mels = 80


class MaskedPrediction(LossTerm):
    """A term of pre-training: masked frames are predicted, from the audio alone."""

    taught: ClassVar[bool] = False
    masked: ClassVar[bool] = True


class Hubert(MaskedPrediction):
    """Cross-entropy of frames' units over codewords; defaults as published for HuBERT."""

    units: ClassVar[bool] = True

    block: Count = 0  # whose output is projected, from 1; 0: the last one's
    final_dim: Width = 256
    temperature: Scale = 0.1
    masked_weight: Scale = 1.0
    unmasked_weight: Weight = 0.0
    feature_penalty: Weight = 10.0  # times the mean square of the front-end's output

    def check_model(self, student: Model) -> None:
        if self.block > student.encoder.layers:
            raise ValueError(
                f"objective.hubert.block is {self.block}, but the encoder has blocks 1 to {student.encoder.layers}"
            )


class Contrastive(MaskedPrediction):
    """wav2vec 2.0's: masked frames against codewords of other frames; defaults as published for its Base."""

    groups: Width = 2
    codewords: Codewords = 320  # of each group
    final_dim: Width = 256  # of joined codewords, and of the space in which they are compared; Large: 768
    negatives: Positive = 100
    temperature: Scale = 0.1
    gumbel: tuple[Scale, Scale, Scale] = (2.0, 0.5, 0.999995)  # temperature at first, at least, factor per update
    diversity: Weight = 0.1
    feature_penalty: Weight = 10.0  # times the mean square of the front-end's output

    @model_validator(mode="after")
    def _check(self) -> Contrastive:
        if self.final_dim % self.groups:
            raise ValueError(f"{self.groups} groups do not divide final_dim {self.final_dim}")
        return self


class BestRq(MaskedPrediction):
    """Cross-entropy of masked frames' codewords of random codebooks; defaults as published."""

    codebooks: Width = 1
    codewords: Codewords = 8192
    dim: Width = 16
    mels: Mels = 80
    seed: Seed = 0  # of projections and codebooks


class Objective(Settings):
    """Terms by name, or their shorthand (1 - alpha) hidden + alpha (beta LF-MMI + (1 - beta) outputs), Eq. 1-3.

    Without any term alpha and beta are 0.8. A term may come from one of the two, not from both.
    """

    mmi: Mmi | None = None
    ctc: Ctc | None = None
    transducer: Transducer | None = None
    transducer_kl: TransducerKl | None = None
    outputs: Outputs | None = None
    ctc_outputs: CtcOutputs | None = None
    hidden: Hidden | None = None
    regression: Regression | None = None
    attention: Attention | None = None
    temporal: Temporal | None = None
    front: Front | None = None
    discriminative: Discriminative | None = None
    adversary: Adversary | None = None
    sparsity: Sparsity | None = None
    denoising: Denoising | None = None
    hubert: Hubert | None = None
    contrastive: Contrastive | None = None
    bestrq: BestRq | None = None

    alpha: Probability | None = None
    beta: Probability | None = None
    mmi_scale: Scale = 5.0  # scales per-frame LF-MMI to be comparable with per-element MSE; about the frames per phone
    ctc_scale: Weight = 0.0  # of CTC, relative to LF-MMI
    den_scale: Weight = 1.0
    leaky: Probability = 0.0
    out_of_range: Weight = 0.0
    precision: Precision = "input"
    teacher_layers: TeacherLayers = ()
    hidden_norm: Literal["none", "layer"] = "none"

    @property
    def terms(self) -> dict[str, LossTerm]:
        """Settings of the terms with a weight above 0, the shorthand resolved, by name."""
        every = self._named() | (self._shorthand() if self.uses_shorthand else {})
        return {name: term for name, term in every.items() if term.weight > 0}

    def check_models(self, student: Model, teacher: Model) -> None:
        """Raise ValueError where a term cannot compare them."""
        for term in self.terms.values():
            term.check_models(student, teacher)
        if self.taught:
            frame_ratio(student, teacher)

    def attention_map(self, blocks: int) -> dict[int, int]:
        """Teacher block of each student block whose attention is compared, for a student with so many blocks."""
        term = self.terms.get("attention")
        return term.layer_map(blocks) if isinstance(term, Attention) else {}

    def teacher_blocks(self, blocks: int, teacher: int) -> list[int]:
        """Teacher blocks whose hidden states any term compares.

        Raises ValueError for a block that is compared, and is not in a teacher of so many.
        """
        by_term = {name: term.teacher_blocks(blocks) for name, term in self.terms.items()}
        for name, named in by_term.items():
            if outside := sorted(block for block in named if not 0 <= block <= teacher):
                raise ValueError(
                    f"objective: the term {name} names teacher blocks {outside}, but the teacher has 1 to {teacher}"
                )
        return sorted(frozenset().union(*(by_term[name] for name in by_term if self.terms[name].hidden)))

    @property
    def taught(self) -> list[str]:
        """Terms that need a teacher."""
        return [name for name, term in self.terms.items() if term.taught]

    @property
    def layer_lists(self) -> dict[str, TeacherLayers]:
        """Every list of teacher blocks, by its key."""
        of_terms = {f"{name}.layers": getattr(term, "layers", ()) for name, term in self._named().items()}
        return {"teacher_layers": self.teacher_layers, **of_terms}

    def _named(self) -> dict[str, LossTerm]:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if isinstance(value, LossTerm)}

    @property
    def uses_shorthand(self) -> bool:
        return not (self.alpha is None and self.beta is None and self._named())

    @property
    def shares(self) -> tuple[float, float]:
        """alpha and beta of the shorthand."""
        alpha, beta = (0.8 if value is None else value for value in (self.alpha, self.beta))
        return alpha, beta

    def _shorthand(self) -> dict[str, LossTerm]:
        alpha, beta = self.shares
        mmi, outputs = alpha * beta * self.mmi_scale, alpha * (1 - beta)
        options = {name: getattr(self, name) for name in ("den_scale", "leaky", "out_of_range", "precision")}
        terms = {
            "mmi": Mmi.model_construct(weight=mmi, **options),
            "ctc": Ctc.model_construct(weight=mmi * self.ctc_scale, precision=self.precision),
            "outputs": Outputs.model_construct(weight=outputs),
            "ctc_outputs": CtcOutputs.model_construct(weight=outputs if self.ctc_scale else 0.0),
            "hidden": Hidden.model_construct(weight=1 - alpha, layers=self.teacher_layers, norm=self.hidden_norm),
        }
        return {name: term for name, term in terms.items() if term.weight > 0}

    @model_validator(mode="after")
    def _check(self) -> Objective:
        if self.uses_shorthand:
            twice = sorted(set(self._named()) & set(self._shorthand()))
            if twice:
                raise ValueError(
                    f"{', '.join(twice)}: given as a term and by the shorthand alpha, beta; give the terms alone, or"
                    " choose alpha and beta so that the shorthand leaves it out"
                )
        else:
            fields = type(self).model_fields
            others = fields.keys() - self._named().keys()
            unused = sorted(name for name in others if getattr(self, name) != fields[name].default)
            if unused:
                raise ValueError(
                    f"{', '.join(unused)}: of the shorthand, which needs alpha or beta; these are settings of the terms"
                    f" ({', '.join(self._named())}) otherwise"
                )
        terms = self.terms.values()
        for done in sorted({0, *(term.updates for term in terms)}):
            if not any(term.on(done) for term in terms):
                raise ValueError(
                    f"no term is on after update {done}; give one with a weight above 0 that `start` and `updates`"
                    " leave on"
                )
        return self
