"""The result files of experiments as types: wer.json, result.json, timing.json and what belongs to them.

A field is the file's key, but for `test_set` ("set") and `dele` ("del"). Reports read these files and stages write
them through the same class, so that a missing or unknown key is an error that names the file. Imports pydantic alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distill.files import write_json

T = TypeVar("T", bound="ResultFile")
LM_STAGE = 11  # trains the Transformer LM, whose result.json is not a recogniser's


class Record(BaseModel):
    """Immutable part of a result file; optional fields that were not given are left out of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """The record as written in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class ResultFile(Record):
    """A record with a file of its own."""

    STAGE: ClassVar[str]  # the stage that writes it, for messages

    @classmethod
    def read(cls: type[T], path: Path) -> T:
        """Raises ValueError, naming the file, for text that is not JSON and for missing, unknown or wrong keys."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            what = f"{path} is not a valid {path.name} ({'; '.join(problems[:3])}{more})"
            raise ValueError(f"{what}; remove it and run {cls.STAGE} again") from None

    def write(self, path: Path) -> None:
        """Write the file atomically, keys sorted."""
        write_json(path, self.plain())


class RescoringWeights(Record):
    """Weights of n-best rescoring: graph score, language model score, score per word."""

    graph: float
    lm: float
    word: float


class Tuning(Record):
    """Errors on the development set before and after the weights were chosen, and of the best candidates."""

    test_set: str = Field(validation_alias="set", serialization_alias="set")
    mode: str
    utterances: int
    ref_words: int
    before: int
    errors: int
    oracle: int


class WerResult(ResultFile):
    """wer.json: error rate (%) of one decoding with its 95 % interval, and how it was decoded.

    mode: offline, streaming, streaming-<chunk> or one of these with -onnx or -int8; lm: None where no words were
    searched; chunk and look-ahead in ms, None offline. Rescored decodings have weights, tuning, nbest (length of the
    lists) and oracle_errors (of the best candidate of each list). condition: the distortion of the test set
    (`decoding.conditions`), None for the audio as it is.
    """

    STAGE = "its stage, 10 or 11,"

    experiment: str
    corpus: str
    test_set: str = Field(validation_alias="set", serialization_alias="set")
    mode: str
    method: str
    lm: str | None
    ref_words: int
    sub: int
    ins: int
    dele: int = Field(validation_alias="del", serialization_alias="del")
    wer: float
    ci95: tuple[float, float]
    chunk_ms: float | None
    lookahead_mean_ms: float | None
    lookahead_max_ms: float | None
    epoch: int
    avg: int
    seed: int
    commit: str
    weights: RescoringWeights | None = None
    tuning: Tuning | None = None
    nbest: int | None = None
    oracle_errors: int | None = None
    condition: str | None = None


class Sizes(Record):
    """Numbers of parameters; training_only: those dropped after training (None in timing.json)."""

    trunk: int
    head: int
    training_only: int | None = None

    @property
    def kept(self) -> int:
        return self.trunk + self.head


class TrainingResult(ResultFile):
    """result.json: what one training did. config: the resolved settings; ranks: processes (1 where not given).

    best_epoch: of the lowest validation loss; its checkpoint is kept. figures: of the last validation, by name.
    """

    STAGE = "its training"

    experiment: str
    description: str
    corpus: str
    params: Sizes
    updates: int
    audio_hours: float
    wall_s: float
    train_loss: float | None
    valid_loss: float | None
    without_path: int
    recomputed: int
    left_out: int = 0
    config: Mapping[str, Any]
    hardware: str
    command: str
    commit: str
    ranks: int | None = None
    best_epoch: int | None = None
    figures: Mapping[str, float] | None = None

    @property
    def stage(self) -> int:
        return int(self.config["stage"])


class LookaheadPart(Record):
    """One source of look-ahead, in ms; None: unbounded."""

    name: str
    mean: float | None
    max: float | None


class TimingRow(Record):
    """One runtime and mode on one thread: RTF (processor time per second of audio, median and extremes).

    finalisation_ms: from the last sample to the last frame; peak_mb: of the process; model_mb: added by the model.
    """

    mode: str
    runtime: str
    audio_s: float
    rtf: float
    rtf_low: float
    rtf_high: float
    rtf_wall: float
    finalisation_ms: float
    peak_mb: float
    model_mb: float
    file_mb: float | None


class WordLatency(Record):
    """Word latency in ms against a forced alignment, for one runtime and mode; None where no utterance was right."""

    mode: str
    runtime: str
    test_set: str = Field(validation_alias="set", serialization_alias="set")
    aligned_by: str
    right: int
    utterances: int
    first_mean_ms: float | None
    first_p90_ms: float | None
    last_mean_ms: float | None
    last_p90_ms: float | None
    finalisation_mean_ms: float | None
    finalisation_p90_ms: float | None


class TimingResult(ResultFile):
    """timing.json: speed, memory, look-ahead and word latency of an exported model."""

    STAGE = "stage 12"

    experiment: str
    corpus: str
    threads: int
    params: Sizes
    macs_per_second: float
    gemm_gflops: float
    chunk_ms: float | None
    lookahead_mean_ms: float | None
    lookahead_max_ms: float | None
    lookahead_parts: tuple[LookaheadPart, ...]
    rows: tuple[TimingRow, ...]
    delays: tuple[WordLatency, ...] = ()
    hardware: str
    command: str
    commit: str


class Perplexity(Record):
    """Perplexity per word; unknown and words: of the Transformer LM alone."""

    perplexity: float
    unknown: int | None = None
    words: int | None = None


class Perplexities(ResultFile):
    """perplexity/summary.json: every language model on the same sentences; left_out: those with unknown words."""

    STAGE = "stage 11"

    test_set: str = Field(validation_alias="set", serialization_alias="set")
    sentences: int
    left_out: int
    models: Mapping[str, Perplexity]


class CalibrationBin(Record):
    """Recognised words with confidences in one range: how many, their mean confidence, the share that is correct."""

    words: int
    confidence: float
    right: float


class CalibrationResult(ResultFile):
    """confidence.json: calibration of one decoding's word confidences (`scoring.calibration.Calibration`)."""

    STAGE = "stage 10"

    words: int
    right: float
    nce: float | None
    error: float
    bins: tuple[CalibrationBin, ...]


class Condition(Record):
    """Figures of distorted test recordings, and the settings of their distortions (`distill.config.distortions`).

    noises: hashes of the listings of recorded noise, by folder.
    """

    settings: Mapping[str, Any]
    noises: Mapping[str, str] = {}
    figures: Mapping[str, float]


class SuperbResult(ResultFile):
    """superb/TASK.json: a task of SUPERB by s3prl's recipe, figures by s3prl's names in % (MTWV times 100).

    figures: means over runs, of which only ER has several (folds). weights: digest of the upstream's, of one epoch.
    overrides: settings of s3prl's recipe other than its own. own_data: not the benchmark's, but recordings in its
    layout. last_state: the task was trained on the last hidden states alone. conditions: the test recordings under
    distortions, by name.
    """

    STAGE = "tools/superb.sh"

    experiment: str
    task: str
    figures: Mapping[str, float]
    runs: tuple[Mapping[str, float], ...]
    epoch: int
    weights: str
    overrides: tuple[str, ...]
    data: str
    own_data: bool
    last_state: bool = False
    conditions: Mapping[str, Condition] = {}
    hardware: str
    command: str
    commit: str
