"""Scripts of a recipe's stages, and the options that they share, for benchmarks that run stages themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs" / "librispeech"
STAGES = {
    0: ("prepare_corpus.py",), 2: ("prepare_lang.py",), 3: ("train_ngrams.py",), 4: ("compile_graphs.py",),
    5: ("train.py", "--stage=5"), 6: ("train.py", "--stage=6"), 7: ("label_unlabelled.py",),
    8: ("train.py", "--stage=8"), 9: ("train.py", "--stage=9"), 10: ("decode.py",),
}  # fmt: skip
"""Without those that no training needs; each script lies in local/."""


def flags(options: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Options of every stage's script, of the recipe librispeech; settings: for --set."""
    given = {"corpus": "librispeech", "corpus-dir": "", **options}
    return [*(f"--{key}={value}" for key, value in given.items()), *(f"--set={k}={v}" for k, v in settings.items())]
