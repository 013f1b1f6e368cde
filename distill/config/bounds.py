"""Types of settings with their bounds. Numbers are finite, and no other type is converted to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from distill.config.names import NAME, NAME_RULE, VARIANTS, check_name

Sequenced = TypeVar("Sequenced", bound=Sequence)

SOURCES = ("hf", "fairseq", "torchaudio")  # of published checkpoints
RANDOM = "random"  # in their place: weights drawn from the seed

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]

Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Count = Annotated[Whole, Field(ge=0, le=10**9)]  # may be none
Positive = Annotated[Whole, Field(ge=1, le=10**9)]
Width = Annotated[Whole, Field(ge=1, le=65536)]  # channels, kernels, strides, blocks
Span = Annotated[Whole, Field(ge=0, le=10**6)]  # frames of chunks and histories
Probability = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(ge=0, lt=1)]  # dropped, or kept of a running mean: never all
Epsilon = Annotated[Number, Field(gt=0, le=1)]
Beam = Annotated[Number, Field(gt=0, le=1000)]  # in natural-log units
Scale = Annotated[Number, Field(gt=0, le=1000)]
Weight = Annotated[Number, Field(ge=0, le=1000)]  # a scale that may be off
Score = Annotated[Number, Field(ge=-1000, le=1000)]
Seconds = Annotated[Number, Field(gt=0, le=10**6)]


def _one_of_units(value: str) -> str:
    if value not in VARIANTS:
        raise ValueError(f"must be one of {', '.join(VARIANTS)}")
    return value


def _folder(value: str) -> str:
    if value and not all(NAME.fullmatch(part) for part in value.split("/")):
        raise ValueError(f"must be a folder below the data dir, its names separated by /: {NAME_RULE}")
    return value


def _source(value: str) -> str:
    if value == RANDOM:
        return value
    kind, _, place = value.partition(":") if ":" in value else ("hf" if "/" in value else "", "", value)
    if kind not in SOURCES or not place.strip() or "\0" in place:
        raise ValueError("must be hf:NAME, a FOLDER with a / in it, fairseq:FILE, torchaudio:FILE or random")
    return f"{kind}:{place}"


def _in_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("must be a range, its lower end first")
    return value


def _each_once(value: Sequenced) -> Sequenced:
    if len(set(value)) < len(value):
        raise ValueError("must name each of its entries once")
    return value


def _sums_to_1(value: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(value) - 1) > 1e-3:
        raise ValueError(f"must sum to 1, and sums to {sum(value):g}")
    return value


Name = Annotated[str, AfterValidator(check_name)]
Folder = Annotated[str, AfterValidator(_folder)]
Source = Annotated[str, AfterValidator(_source)]
UnitsName = Annotated[str, AfterValidator(_one_of_units)]
Snr = Annotated[Number, Field(ge=-200, le=200)]  # dB
InOrder = AfterValidator(_in_order)
SumsTo1 = AfterValidator(_sums_to_1)
EachOnce = AfterValidator(_each_once)
