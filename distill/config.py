"""The tree of settings of an experiment: every default stands here, a YAML file holds what differs.

`Experiment.load` reads a YAML file (which may name a `base` to differ from), applies `key=value`
overrides and resolves every default. The resolved tree is stored in each checkpoint, so decoding,
export and serving take an experiment folder and never an architecture flag.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FBANK_SHIFT, FBANK_WIDTH = 160, 400
"""Samples between two Fbank frames, and samples that each of them sees: 10 and 25 ms."""


class Settings(BaseModel):
    """Frozen node of the tree; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'{_nearest(key, cls.model_fields)}")
        return values


def _nearest(key: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"


class FrontEnd(Settings):
    """Audio to frames: a stack of convolutions (channels, kernel, stride) over the waveform or over Fbank frames."""

    input: Literal["waveform", "fbank"] = "waveform"  # fbank: Kaldi's log-mel energies, a frame each 10 ms
    mels: int = 80  # of Fbank frames
    layers: tuple[tuple[int, int, int], ...] = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
    bias: bool = False  # BASE-like stacks have none, Large-like stacks do
    norm: Literal["group", "frame"] = "group"  # statistics over time (does not stream) or over channels
    norm_layers: Literal["first", "all"] = "first"
    norm_eps: float = 1e-5  # of "frame" norms; larger where audio has digital silence (a norm of zeros explodes)
    first: Literal["random", "gabor"] = "random"  # gabor: log-compressed Gabor pairs at mel centres, trained on
    causal: bool = False  # pad on the left, so that frame t ends with sample (t + 1) * hop
    # normalised per utterance, times a stored gain, or as it is (Fbank frames have a stored mean and scale instead)
    waveform: Literal["utterance", "gain", "none"] = "utterance"

    @property
    def unit(self) -> tuple[int, int]:
        """Shift and width, in samples, of what the first convolution counts in."""
        return (FBANK_SHIFT, FBANK_WIDTH) if self.input == "fbank" else (1, 1)

    @property
    def stride(self) -> int:
        """Inputs of the first convolution per frame."""
        return math.prod(stride for _, _, stride in self.layers)

    @property
    def reach(self) -> int:
        """Inputs of the first convolution that one frame sees."""
        inputs, stride = 1, 1
        for _, kernel, step in self.layers:
            inputs += (kernel - 1) * stride
            stride *= step
        return inputs

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.stride * self.unit[0]

    @property
    def receptive(self) -> int:
        """Samples that one frame sees."""
        shift, width = self.unit
        return (self.reach - 1) * shift + width

    @property
    def context(self) -> int:
        """Samples before its own hop that a frame sees."""
        if self.input == "fbank":
            return (FBANK_WIDTH - FBANK_SHIFT) // 2  # frames are centred on their shift, as Kaldi's are
        return self.receptive - self.hop if self.causal else 0

    @property
    def ahead(self) -> int:
        """Samples after its own hop that a frame waits for."""
        return max(0, self.receptive - self.hop - self.context)

    @model_validator(mode="after")
    def _check(self) -> FrontEnd:
        if self.input == "waveform":
            return self
        default = FrontEnd.model_fields["layers"].default
        wrong = {
            f"layers of a waveform stack ({len(default)}); one convolution, such as [[512, 3, 2]], is meant": (
                self.layers == default
            ),
            "first: gabor": self.first != "random",
            "causal: true (a frame of Fbank is centred, as runtimes have it)": self.causal,
            f"waveform: {self.waveform} (write none: a mean and scale are stored)": self.waveform != "none",
            "norm: group": self.norm == "group",
        }
        found = [name for name, is_wrong in wrong.items() if is_wrong]
        if found:
            raise ValueError(f"a front-end with input: fbank cannot have {'; '.join(found)}")
        return self


class Encoder(Settings):
    """Transformer of wav2vec 2.0: convolutional positions, then blocks."""

    dim: int = 768
    ffn_dim: int = 3072
    layers: int = 12
    heads: int = 12
    norm_first: bool = False  # pre-LN (Large) or post-LN (BASE)
    always_project: bool = False  # a projection even where features have the width already, as other libraries keep it
    relative_buckets: int = 0  # WavLM's gated relative position bias: 320; 0: none
    relative_distance: int = 800  # frames beyond which all distances share a bucket
    position_kernel: int = 128
    position_groups: int = 16
    position_causal: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    layer_drop: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> Encoder:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.dim % self.position_groups:
            raise ValueError(f"dim {self.dim} is not a multiple of position_groups {self.position_groups}")
        return self


class Streaming(Settings):
    """Chunked attention: frame i of chunk c = i // chunk sees [c * chunk - history, (c + 1) * chunk).

    With `train_chunks` each training batch draws one of them (and one of `train_histories`), so that one
    model serves many latencies; elsewhere it runs at chunk_frames and history_frames.
    """

    chunk_frames: int = Field(default=0, ge=0)  # 0: full context
    history_frames: int = Field(default=0, ge=0)
    sink_frames: int = Field(default=0, ge=0)  # attention sinks: first frames, visible for ever
    train_chunks: tuple[int, ...] = ()  # 0 stands for full context
    train_histories: tuple[int, ...] = ()  # empty: always history_frames

    @model_validator(mode="after")
    def _check(self) -> Streaming:
        if min((*self.train_chunks, *self.train_histories), default=0) < 0:
            raise ValueError("streaming.train_chunks and train_histories count frames: none can be negative")
        if not self.chunk_frames and (self.train_chunks or self.sink_frames):
            raise ValueError("streaming.train_chunks and sink_frames need streaming.chunk_frames, the size it runs at")
        if self.train_histories and not self.train_chunks:
            raise ValueError("streaming.train_histories are drawn with train_chunks, which are empty")
        return self


class Mask(Settings):
    """Spans of frames and channels zeroed on the convolutions' output while training (as SpecAugment)."""

    time_probability: float = 0.0
    time_length: int = 10
    channel_probability: float = 0.0
    channel_length: int = 64


class Model(Settings):
    """Everything that decides shapes; with the number of outputs it builds the network."""

    front_end: FrontEnd = FrontEnd()
    encoder: Encoder = Encoder()
    streaming: Streaming = Streaming()
    mask: Mask = Mask()
    shared_head_dim: int | None = None  # width of the teacher whose prediction layer is shared; None: own head
    ctc_output: bool = False  # a second output beside it, trained with CTC, for runtimes without a graph

    @model_validator(mode="after")
    def _check_streaming(self) -> Model:
        if not self.streaming.chunk_frames:
            return self
        front, encoder = self.front_end, self.encoder
        blockers = {
            "front_end.norm: group": front.norm == "group",
            "front_end.waveform: utterance": front.waveform == "utterance",
            "encoder.position_causal: false": not encoder.position_causal,
        }
        found = [name for name, blocks in blockers.items() if blocks]
        if found:
            raise ValueError(f"streaming.chunk_frames needs a model that streams, but it has {', '.join(found)}")
        return self


class Lattice(Settings):
    """How stored lattices become numerators (Manohar et al. 2018; the formula: `distill.graphs.weighting`)."""

    beam: float = 4.0  # sequences this much worse than the best are left out
    lm_scale: float = 0.5  # share of the denominator LM that the decoding graph's scores stand in for
    acoustic_scale: float = 0.0  # of the teacher's acoustic scores on the paths
    tolerance: int = -1  # frames by which a unit may lie outside of where the lattice has it; -1: anywhere
    confidence: bool = False  # frames weighted by the posterior of the best path's output
    nbest: int = 10  # sequences of numerator: nbest
    nbest_beam: float = 6.0


class Data(Settings):
    """What is trained on; parts are names of cut sets in data/cuts."""

    train: tuple[str, ...] = ("labelled",)
    valid: str = "dev"
    valid_utterances: int = 0  # 0: all of the part
    max_duration: float = 200.0  # seconds of audio per batch and process
    buckets: int = 30
    workers: int = 2  # loading processes; 0: in the training process
    keep_audio: bool = False  # keep decoded audio in memory (small corpora)
    short_first: bool = False  # first epoch in order of duration
    numerator: Literal["transcript", "one_best", "nbest", "lattice"] = "lattice"  # of cuts without text
    lattice: Lattice = Lattice()


class Augment(Settings):
    """Waveform augmentation, each with its own probability (papers/001 §5.1.3)."""

    volume_probability: float = 0.5
    volume: tuple[float, float] = (0.3, 3.0)
    pitch_probability: float = 0.5
    pitch: tuple[float, float] = (0.9, 1.1)
    noise_probability: float = 0.0
    noise_snr: tuple[float, float] = (8.0, 30.0)  # dB
    noise_part: str = ""  # folder of clips below the data dir; empty: coloured noise


class Teacher(Settings):
    """Whose layers and outputs the student learns."""

    experiment: str
    hears: Literal["augmented", "clean"] = "augmented"  # the student's waveform, or the one before augmentation
    keep_targets: bool = False  # compute each cut's targets once; needs hears: clean

    @model_validator(mode="after")
    def _check(self) -> Teacher:
        if self.keep_targets and self.hears != "clean":
            raise ValueError("teacher.keep_targets needs teacher.hears: clean (targets change with augmentation)")
        return self


class Objective(Settings):
    """(1 - alpha) hidden + alpha (beta LF-MMI + (1 - beta) MSE of outputs), papers/001 Eq. 1-3."""

    alpha: float = 0.8
    beta: float = 0.8
    mmi_scale: float = 5.0  # about the frames of a phone: LF-MMI is counted per frame, MSE per value
    ctc_scale: float = 0.0  # of the second output's CTC (model.ctc_output) beside LF-MMI, relative to it
    den_scale: float = 1.0
    leaky: float = 0.0  # coefficient of the leaky HMM in the denominator (Kaldi's recipes: 0.1), 0: off
    out_of_range: float = 0.0  # scale of the penalty on logits beyond +-30 (Kaldi's recipes: 0.01), 0: off
    precision: Literal["input", "float32", "float64"] = "input"  # of the sums over paths
    teacher_layers: tuple[int, ...] = ()  # g(i) of student block i = 1..; 0: none; empty: 2i
    hidden_norm: Literal["none", "layer"] = "none"  # targets as they are, or normalised over channels

    @property
    def uses_hidden(self) -> bool:
        return self.alpha < 1

    @property
    def uses_outputs(self) -> bool:
        return self.alpha > 0 and self.beta < 1

    @property
    def uses_mmi(self) -> bool:
        return self.alpha > 0 and self.beta > 0

    @property
    def uses_ctc(self) -> bool:
        return self.ctc_scale > 0


class Optim(Settings):
    """Adam with the tri-state schedule: warm up, hold, decay to `final_scale` of the peak."""

    updates: int = 0  # exactly one of updates and epochs
    epochs: int = 0
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip: float = 2.0
    phases: tuple[float, float, float] = (0.1, 0.4, 0.5)
    final_scale: float = 0.05
    decay: Literal["linear", "exponential"] = "linear"  # as the paper writes, or as fairseq does
    accumulate: int = 1  # batches per update
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if (self.updates > 0) == (self.epochs > 0):
            raise ValueError("give either optim.updates or optim.epochs, and a positive number")
        return self


class Saving(Settings):
    """Checkpoints: one per epoch, plus one every `every_updates` to survive being killed."""

    every_updates: int = 500
    keep: int = 10  # epoch checkpoints kept


Method = Literal["1best", "greedy", "nbest", "nbest-rescoring", "whole-lattice-rescoring", "nbest-oracle"]


class Decoding(Settings):
    """How the main WER rows are made."""

    avg: int = 1  # checkpoints averaged
    beam: float = 15.0
    max_active: int = 2000
    acoustic_scale: float = 1.0
    lattice_beam: float = 6.0  # what a teacher stores of its lattices: sequences this much worse than the best
    chunks: tuple[int, ...] = ()  # further chunk sizes, in frames, that a streaming model is decoded with
    # further: nbest, nbest-rescoring, whole-lattice-rescoring, nbest-oracle
    methods: tuple[Method, ...] = ("1best", "greedy")
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


class Graphs(Settings):
    """How language models and graphs are made from text (stages 2 to 4): conf/graphs.yaml, --set graphs.KEY=VALUE."""

    seed: int = 0  # draws pronunciations, silences and BPE's sample of sentences
    order: int = 2  # of the unit n-gram
    # interpolated: every unit can follow (Witten-Bell); chain: only what was seen, as Kaldi's chain-est-phone-lm
    style: Literal["interpolated", "chain"] = "interpolated"
    no_prune_order: int = 3  # chain: n-grams of this order keep all their histories
    num_extra_states: int = 2000  # chain: longer histories kept beyond those
    silence_edge: float = 0.8  # probability of silence before and after a sentence
    silence_inside: float = 0.1  # and between words
    bpe_pieces: int = 500
    min_biphone_count: int = 100  # in the labelled transcripts; a rarer pair shares its outputs
    min_monophone_count: int = 20
    independent_silence: bool = False  # biphones: silence has one class, and counts as no context

    @model_validator(mode="after")
    def _check(self) -> Graphs:
        if not 2 <= self.order <= 4:
            raise ValueError(f"order must be 2, 3 or 4, got {self.order}")
        if not self.no_prune_order >= 1:
            raise ValueError(f"no_prune_order must be at least 1, got {self.no_prune_order}")
        for name in ("silence_edge", "silence_inside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        return self

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Graphs:
        """Defaults, then those of a YAML file if it is there, then "key=value" overrides."""
        values = _read(path) if path.is_file() else {}
        for override in overrides:
            _override(values, override)
        return _parsed(cls, values, str(path))


class Experiment(Settings):
    """One training and how it is decoded; its YAML's stem is its name."""

    name: str = ""
    stage: Literal[6, 8, 9]
    description: str = ""
    seed: int = 0
    model: Model = Model()
    pretrained: str | None = None  # stage 5 of a teacher: hf:FOLDER_OR_NAME, fairseq:FILE, torchaudio:FILE; else random
    init: str | None = None  # experiment whose parameters of the same name and shape are taken over
    init_blocks: tuple[int, ...] = ()  # block of `init`, from 1, that each block starts from; empty: the same one
    init_slice: tuple[str, ...] = ()  # beginnings of names of larger tensors whose leading part is taken over
    teacher: Teacher | None = None
    data: Data = Data()
    augment: Augment = Augment()
    objective: Objective = Objective()
    optim: Optim
    saving: Saving = Saving()
    decoding: Decoding = Decoding()

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        objective = self.objective
        if (objective.uses_hidden or objective.uses_outputs) and self.teacher is None:
            raise ValueError(
                f"objective alpha {objective.alpha}, beta {objective.beta} learns from a teacher, but"
                " 'teacher' is not set; without one use alpha: 1, beta: 1"
            )
        if self.decoding.chunks and not (self.model.streaming.chunk_frames and min(self.decoding.chunks) > 0):
            raise ValueError(f"decoding.chunks {self.decoding.chunks} are for a model with streaming.chunk_frames")
        if objective.uses_ctc != self.model.ctc_output:
            raise ValueError(
                f"objective.ctc_scale {objective.ctc_scale} and model.ctc_output {str(self.model.ctc_output).lower()}"
                " do not go together: a second output needs a scale above 0 to learn, and a scale needs the output"
            )
        layers = self.model.encoder.layers
        if len(self.init_blocks) not in (0, layers):
            raise ValueError(
                f"init_blocks has {len(self.init_blocks)} entries, expected one for each of {layers} blocks"
            )
        if len(objective.teacher_layers) not in (0, layers):
            raise ValueError(
                f"objective.teacher_layers has {len(objective.teacher_layers)} entries, expected one for each"
                f" of the {layers} blocks (0 for none)"
            )
        return self

    @property
    def layer_map(self) -> dict[int, int]:
        """g: student block -> teacher block, both counted from 1 (papers/001 §5.1.2: g(i) = 2i)."""
        count = self.model.encoder.layers
        teacher_layers = self.objective.teacher_layers or tuple(2 * i for i in range(1, count + 1))
        return {i: g for i, g in enumerate(teacher_layers, 1) if g}

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = (), suffix: str = "") -> Experiment:
        """Read a YAML file, apply "a.b=value" overrides; raises ValueError naming file and key.

        `suffix` goes to its name and to those of the experiments it builds on: with other units they are others.
        """
        return load_settings(cls, Path(path), overrides)._renamed(suffix)

    def _renamed(self, suffix: str) -> Experiment:
        changes: dict[str, Any] = {"name": self.name + suffix}
        if self.init is not None:
            changes["init"] = self.init + suffix
        if self.teacher is not None:
            changes["teacher"] = self.teacher.model_copy(update={"experiment": self.teacher.experiment + suffix})
        return self.model_copy(update=changes)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Experiment:
        """Build from a nested mapping; raises ValueError with `where` and each wrong key."""
        return _parsed(cls, values, where)

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, for checkpoints and hashes."""
        return self.model_dump(mode="json")


Node = TypeVar("Node", bound=Settings)


def load_settings(kind: type[Node], path: Path, overrides: Sequence[str] = ()) -> Node:
    """Settings that have a name, their file's: read it and its `base`, apply "a.b=value" overrides.

    Raises FileNotFoundError, or ValueError naming file and key.
    """
    values = _read(path)
    for override in overrides:
        _override(values, override)
    values.setdefault("name", path.stem)
    return _parsed(kind, values, str(path))


def _parsed(kind: type[Node], values: Mapping[str, Any], where: str) -> Node:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=1)
        raise FileNotFoundError(f"no experiment at {path}{f'; did you mean {near[0]}?' if near else ''}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    base = values.pop("base", None)
    return _merge(_read(path.parent / base), values) if base else values


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override '{override}' is not of the form key=value, such as optim.lr=1e-3")
    *parents, leaf = key.split(".")
    for parent in parents:
        node = values.get(parent)
        values[parent] = dict(node) if isinstance(node, dict) else {}
        values = values[parent]
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override '{override}': not a valid value: {error}") from None


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        got = "" if isinstance(item.get("input"), dict) else f" (got {item.get('input')!r})"
        lines.append(f"{where + ': ' if where else ''}{message}{got}")
    return "; ".join(lines)
