"""Types of settings with their bounds. Numbers are finite, and no other type is converted to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from distill.config.names import NAME, NAME_RULE, VARIANTS, check_name

SOURCES = ("hf", "fairseq", "torchaudio", "whisper")  # of published checkpoints
SOURCE_RULE = "hf:NAME, a FOLDER with a / in it, fairseq:FILE, torchaudio:FILE, whisper:FOLDER or random"
RANDOM = "random"  # in their place: weights drawn from the seed

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]

Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Count = Annotated[Whole, Field(ge=0, le=10**9)]  # may be none
Positive = Annotated[Whole, Field(ge=1, le=10**9)]
Codewords = Annotated[Whole, Field(ge=2, le=65536)]  # of one alone every frame is right
Width = Annotated[Whole, Field(ge=1, le=65536)]  # channels, kernels, strides, blocks
Rest = Annotated[Whole, Field(ge=0, le=65536)]  # a width that pruning has left, 0: nothing
Kernel = Annotated[Whole, Field(ge=2, le=65536)]  # of convolutions over the encoder's frames
Span = Annotated[Whole, Field(ge=0, le=10**6)]  # frames of chunks and histories
Probability = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(ge=0, lt=1)]  # dropped, or kept of a running mean: never all
Epsilon = Annotated[Number, Field(gt=0, le=1)]
Beam = Annotated[Number, Field(gt=0, le=1000)]  # in natural-log units
Scale = Annotated[Number, Field(gt=0, le=1000)]
Weight = Annotated[Number, Field(ge=0, le=1000)]  # a scale that may be off
Score = Annotated[Number, Field(ge=-1000, le=1000)]
Seconds = Annotated[Number, Field(gt=0, le=10**6)]


def _must(rule: str, test: Callable[[Any], bool]) -> AfterValidator:
    """A validator of values that pass a test; the error gives the rule."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(f"must {rule}")
        return value

    return AfterValidator(check)


def _source(value: str) -> str:
    if value == RANDOM:
        return value
    kind, _, place = value.partition(":") if ":" in value else ("hf" if "/" in value else "", "", value)
    if kind not in SOURCES or not place.strip() or "\0" in place:
        raise ValueError(f"must be {SOURCE_RULE}")
    return f"{kind}:{place}"


def _sums_to_1(value: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(value) - 1) > 1e-3:
        raise ValueError(f"must sum to 1, and sums to {sum(value):g}")
    return value


def _without_nulls(value: Any) -> Any:
    if value is None:
        return {}
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else value


Name = Annotated[str, AfterValidator(check_name)]
Folder = Annotated[
    str,
    _must(
        f"be a folder below the data dir, its names separated by /: {NAME_RULE}",
        lambda value: not value or all(NAME.fullmatch(part) for part in value.split("/")),
    ),
]
Source = Annotated[str, AfterValidator(_source)]
UnitsName = Annotated[str, _must(f"be one of {', '.join(VARIANTS)}", VARIANTS.__contains__)]
Snr = Annotated[Number, Field(ge=-200, le=200)]  # dB
InOrder = _must("be a range, its lower end first", lambda value: value[0] <= value[1])
SumsTo1 = AfterValidator(_sums_to_1)
WithoutNulls = BeforeValidator(_without_nulls)
"""Of a mapping that a base may have begun: entries that are null are taken away, null takes all."""
EachOnce = _must("name each of its entries once", lambda value: len(set(value)) == len(value))
