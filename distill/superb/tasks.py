"""The tasks of SUPERB (Yang et al. 2021): s3prl's recipe of each, and the corpus that it reads.

Imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.config.names import hint

LIBRISPEECH = ("SPEAKERS.TXT", *(f"{part}/*/*/*.trans.txt" for part in ("train-clean-100", "dev-clean", "test-clean")))


@dataclass(frozen=True)
class Task:
    """A task: s3prl's class, corpus and its layout, and where s3prl writes the figures.

    folders: s3prl's names of the data folder or of folders in it. runs: settings of the data for each of several runs,
    over which figures are averaged. unit: of s3prl's figures, in %. evaluation: the stage of s3prl's recipe that
    evaluates waveforms of the test set alone; None: there is none, and the task has no conditions.
    """

    name: str
    title: str
    recipe: str
    corpus: str
    layout: tuple[str, ...]
    folders: Mapping[str, str] = field(default_factory=lambda: {"dataset_root": "."})
    runs: tuple[Mapping[str, Any], ...] = ({},)
    result: str = "evaluate/*/*/result.yaml"
    unit: float = 100.0
    evaluation: int | None = None

    def data(self, root: Path, run: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of s3prl's `prepare_data`; raises FileNotFoundError for a folder of another layout."""
        missing = [pattern for pattern in self.layout if not any(root.glob(pattern))]
        if not root.is_dir() or missing:
            what = f"has no {', '.join(missing)}" if root.is_dir() else "is not there"
            raise FileNotFoundError(
                f"{root} {what}; {self.name} expects {self.corpus} with {', '.join(self.layout)} in it (--data)"
            )
        return {name: str((root / folder).resolve()) for name, folder in self.folders.items()} | dict(run)


TASKS = {
    task.name: task
    for task in (
        Task("PR", "phoneme recognition", "SuperbPR", "LibriSpeech", LIBRISPEECH, evaluation=4),
        Task("ASR", "speech recognition", "SuperbASR", "LibriSpeech", LIBRISPEECH, evaluation=4),
        Task(
            "KS", "keyword spotting", "SuperbKS", "Speech Commands v0.01 and its test set",
            ("speech_commands_v0.01/*/*_nohash_*.wav", "speech_commands_v0.01/_background_noise_/*.wav",
             "speech_commands_test_set_v0.01/*/*.wav"),
            {"gsc1": "speech_commands_v0.01", "gsc1_test": "speech_commands_test_set_v0.01"}, evaluation=3,
        ),
        Task(
            "QbE", "query by example", "QueryByExample", "QUESST 2014",
            ("scoring/score-TWV-Cnxe.sh", "scoring/language_key_utterances.lst", "scoring/language_key_dev.lst",
             "scoring/language_key_eval.lst"), result="result.yaml",
        ),
        Task(
            "SID", "speaker identification", "SuperbSID", "VoxCeleb1",
            ("dev/wav/id*/*/*.wav", "test/wav/id*/*/*.wav"), evaluation=3,
        ),
        Task(
            "ASV", "speaker verification", "SuperbASV", "VoxCeleb1",
            ("dev/wav/id*/*/*.wav", "test/wav/id*/*/*.wav"), result="evaluate/*/best_result.yaml",
        ),
        Task(
            "SD", "speaker diarization", "SuperbSD", "Libri2Mix as Kaldi data directories",
            tuple(f"{part}/{name}" for part in ("train", "dev", "test") for name in ("wav.scp", "segments", "utt2spk")),
            {"data_dir": "."}, result="evaluate/*/*/dscore.yaml", unit=1.0,
        ),
        Task(
            "IC", "intent classification", "SuperbIC", "Fluent Speech Commands",
            ("data/train_data.csv", "data/valid_data.csv", "data/test_data.csv", "wavs/speakers/*/*.wav"),
            evaluation=3,
        ),
        Task(
            "SF", "slot filling", "SuperbSF", "Audio SNIPS",
            ("all.iob.snips.txt", "train/**/*.wav", "valid/**/*.wav", "test/**/*.wav"), evaluation=4,
        ),
        Task(
            "ER", "emotion recognition", "SuperbER", "IEMOCAP",
            ("Session1/dialog/EmoEvaluation/*.txt", "Session5/sentences/wav/*/*.wav"), {"iemocap": "."},
            tuple({"test_fold": fold} for fold in range(5)), evaluation=3,
        ),
    )
}  # fmt: skip


def without_conditions(task: Task) -> str:
    """Why a task is not measured under conditions."""
    able = ", ".join(name for name, other in TASKS.items() if other.evaluation is not None)
    return f"{task.name} is not measured under conditions, {able} are; leave --conditions out"


def find_task(name: str) -> Task:
    """The task of a name, in either case; raises ValueError with the nearest."""
    known = {task.upper(): task for task in TASKS}
    if name.upper() not in known:
        raise ValueError(f"'{name}' is not a task of SUPERB that is known here{hint(name.upper(), TASKS)}")
    return TASKS[known[name.upper()]]
