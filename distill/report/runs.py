"""Experiments as reports read them: result.json, the wer.json of each decoding, timing.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from distill.config.decoding import OF_TRANSDUCER
from distill.files import ASIDE
from distill.report.results import LM_STAGE, SuperbResult, TimingResult, TimingRow, TrainingResult, WerResult

TIMING = "export/timing.json"
SUPERB = "superb"  # in an experiment's folder
GRAPH, UNITS, TRANSFORMER, BEAM = "1best", "greedy", "transformer-lm", "transducer_beam"
RESCORED = ("nbest-rescoring", "whole-lattice-rescoring", TRANSFORMER)  # with another language model than the graph's


@dataclass(frozen=True)
class Run:
    """One experiment: its name, its training, its decodings, and its timing where it was exported.

    distorted: decodings of test sets under conditions, which are none of `decodings`. superb: its tasks of SUPERB.
    """

    name: str
    training: TrainingResult
    decodings: tuple[WerResult, ...]
    timing: TimingResult | None = None
    distorted: tuple[WerResult, ...] = ()
    superb: tuple[SuperbResult, ...] = ()

    @property
    def stage(self) -> int:
        return self.training.stage

    @property
    def streams(self) -> bool:
        return bool(self.training.config["model"]["streaming"]["chunk_frames"])

    @property
    def size(self) -> int:
        """Parameters that are kept after training."""
        return self.training.params.kept

    @property
    def open_size(self) -> float | None:
        """Those of them that gates left at the last validation, None without gates, or with gates of multiply-adds."""
        closed = (self.training.figures or {}).get("sparsity")
        pruning = self.training.config["model"].get("pruning") or {}
        return (
            None
            if closed is None or pruning.get("of", "parameters") != "parameters"
            else self.size - closed * self.training.params.trunk
        )

    @property
    def modes(self) -> list[str]:
        return sorted({decoding.mode for decoding in self.decodings})

    @property
    def main_mode(self) -> str:
        """The mode whose rates represent the model: streaming if it was decoded so."""
        return "streaming" if "streaming" in self.modes else "offline"

    @property
    def main_method(self) -> str:
        """The method whose rates represent the model: over the graph, of a transducer alone its beam search."""
        methods = {*self.training.config.get("decoding", {}).get("methods", ())}
        return BEAM if methods and methods <= {*OF_TRANSDUCER} else GRAPH

    @property
    def lookahead_ms(self) -> float | None:
        """Mean look-ahead of a streaming model, None for another."""
        return next((d.lookahead_mean_ms for d in self.decodings if d.mode == "streaming"), None)

    @property
    def fastest(self) -> TimingRow | None:
        """The row of the lowest real-time factor in the main mode, None where it was not timed."""
        rows = self.timing.rows if self.timing else ()
        return min((row for row in rows if row.mode == self.main_mode), key=lambda row: row.rtf, default=None)

    def decoding(self, test_set: str, mode: str, method: str, condition: str = "") -> WerResult | None:
        """One decoding, None where it was not done."""
        every, wanted = self.distorted if condition else self.decodings, (test_set, mode, method)
        some = (d for d in every if (d.condition or "") == condition)
        return next((d for d in some if (d.test_set, d.mode, d.method) == wanted), None)

    def error_rate(self, test_set: str, method: str | None = None) -> float | None:
        """Error rate (%) in the main mode by a method, of itself the main one; None where there is none.

        test_set: or "SET CONDITION".
        """
        name, _, condition = test_set.partition(" ")
        decoding = self.decoding(name, self.main_mode, method or self.main_method, condition)
        return decoding.wer if decoding else None

    def rates(self, sets: Iterable[str], mode: str, method: str) -> list[str]:
        """One cell per test set: '12.34 [11.2-13.5]', or '-' where nothing was decoded."""
        return [rate(self.decoding(test_set, mode, method)) for test_set in sets]


def rate(decoding: WerResult | None) -> str:
    """'12.34 [11.2-13.5]', or '-' for none."""
    if decoding is None:
        return "-"
    low, high = decoding.ci95
    return f"{decoding.wer:.2f} [{low:.1f}-{high:.1f}]"


def millions(runs: Sequence[Run]) -> str:
    """Parameters (M) of an experiment's runs, with gates the mean of what they leave too: '2.49 (1.27 open)'."""
    if not runs:
        return "-"
    left = [size for run in runs if (size := run.open_size) is not None]
    return f"{runs[0].size / 1e6:.2f}" + (f" ({fmean(left) / 1e6:.2f} open)" if left else "")


def read_runs(folder: Path) -> list[Run]:
    """The experiments below a folder, by stage and name.

    Raises FileNotFoundError if none has a result.json, ValueError for a file that is not a result.
    """
    runs = []
    for training, experiment in trainings(folder):
        if training.stage != LM_STAGE:
            path, every = experiment / TIMING, [WerResult.read(file) for file in decoding_files(experiment)]
            timing = TimingResult.read(path) if path.is_file() else None
            plain, distorted = (tuple(d for d in every if bool(d.condition) == kind) for kind in (False, True))
            superb = tuple(SuperbResult.read(file) for file in superb_files(experiment))
            runs.append(Run(experiment.name, training, plain, timing, distorted, superb))
    if not runs:
        raise FileNotFoundError(
            f"no trained experiment in {folder}: expected */result.json, which stages 6, 8 and 9 make;"
            " run.sh --stage 6 --stop-stage 9 with the same options"
        )
    return sorted(runs, key=lambda run: (run.stage, run.name))


def trainings(folder: Path) -> list[tuple[TrainingResult, Path]]:
    """Every result.json below a folder with its experiment's folder, without those put aside."""
    paths = [path for path in sorted(folder.glob("*/result.json")) if ASIDE not in path.parent.name]
    return [(TrainingResult.read(path), path.parent) for path in paths]


def superb_files(experiment: Path) -> list[Path]:
    """Results of an experiment's tasks of SUPERB."""
    return sorted((experiment / SUPERB).glob("*.json"))


def decoding_files(experiment: Path) -> list[Path]:
    """The wer.json of an experiment's decodings, without those of a killed stage (*.tmp) and those put aside."""
    paths = sorted(experiment.glob("decode_*/wer.json"))
    return [path for path in paths if path.parent.suffix not in (".tmp", ".old") and ASIDE not in path.parent.name]


def test_sets(runs: Iterable[Run], conditions: bool = False) -> list[str]:
    """Names of the sets that any experiment was decoded on, sorted; conditions: under those too, "SET CONDITION"."""
    every = (decoding for run in runs for decoding in (*run.decodings, *(run.distorted if conditions else ())))
    return sorted({f"{decoding.test_set} {decoding.condition or ''}".strip() for decoding in every})


def hardest_set(runs: Iterable[Run]) -> str:
    """The test set with the highest mean error rate over the graph; empty where nothing was decoded."""
    rates: dict[str, list[float]] = {}
    for decoding in (d for run in runs for d in run.decodings if d.method == GRAPH):
        rates.setdefault(decoding.test_set, []).append(decoding.wer)
    return max(rates, key=lambda name: sum(rates[name]) / len(rates[name]), default="")
