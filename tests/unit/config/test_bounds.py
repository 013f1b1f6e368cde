"""Every number has bounds, and every setting refuses what is none of its values: in an error that names it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.config.distortions import Distort
from distill.config.experiment import Experiment
from distill.config.files import overridden
from distill.config.graphs import Graphs
from distill.config.language_model import LanguageModel
from distill.config.loading import Settings
from distill.config.losses import Objective
from distill.config.supernet import Supernet
from distill.config.units import Units
from distill.losses.objective import TERMS

MINI = Path(__file__).parents[3] / "egs/librispeech/conf/mini"
FULL: dict[str, Settings] = {
    "experiment": Experiment.load(
        MINI / "ss_dynamic.yaml",
        [
            "init_blocks=[1, 2, 3]",
            "init_units=bpe",
            "pretrained='hf:x'",
            "init_slice=[a]",
            "probe=teacher",
            "data.lattice.tolerance=3",
            "model.encoder.head_dim=28",
            "model.encoder.attention_of=[0, 1, 0]",
            "model.encoder.block=conformer",
            "model.encoder.conv_causal=true",
            "model.encoder.conv_dim=112",
            "model.encoder.ffn_after_dim=432",
            "model.transducer={}",
            "objective.transducer={}",
            "model.encoder.rank=20",
            "model.pruning={units: [conv, ffn]}",
            "objective.sparsity={}",
        ],
    ),
    "objective": Objective.model_validate({name: {} for name in TERMS}),
    "units": Units(of="teacher", layer=2),
    "supernet": Supernet(dim=(64, 88), layers=(4, 5), heads=(3, 4), ffn_ratio=(3.0, 4.0)),
    "distort": Distort(steps=(("hall", "clean"), ("pitch",)), noises={"hall": "noise/hall"}),
    "graphs": Graphs(),
    "lm": LanguageModel.load(MINI / "lm.yaml"),
}
NO_NUMBER = [".nan", ".inf", "-.inf", "1e999", "1" + "0" * 30, "-1" + "0" * 30, "text", "'1'", "[1]", "{a: 1}", "true"]
NO_NUMBER += ["010", "1:30", "2024-01-01", "!!binary aGk=", "0x10"]
MAYBE = ["-1", "0", "1", "1.5", "1e-3", "1e9", "-0.0", "1e300"]
NO_FLAG = ["0", "1", "text", "'true'", "[]", "{}", "null", ".nan"]
NO_TEXT = ["1", ".nan", "true", "[a]", "{a: 1}"]


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a resolved tree by its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else name)
    else:
        yield key, node


def settings_of(kind: type) -> list[Any]:
    found = [(name, key, value) for name, tree in FULL.items() for key, value in leaves(tree.model_dump(mode="json"))]
    return [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in found if type(each[2]) is kind]


def given(tree: str, key: str, text: str) -> Settings:
    settings = FULL[tree]
    return type(settings).parse(overridden(settings.model_dump(mode="json"), [f"{key}={text}"]), "here")


def assert_refused(tree: str, key: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{key.rpartition('.')[2]}\b"):
        given(tree, key, text)


def assert_kept_or_refused(tree: str, key: str, text: str) -> None:
    try:
        taken = given(tree, key, text)
    except ValueError as error:
        assert key.rpartition(".")[2] in str(error)
    else:
        assert type(taken).model_validate(taken.model_dump(mode="json")) == taken


@pytest.mark.parametrize("kind", [Experiment, Graphs, LanguageModel])
def test_every_number_has_both_bounds(kind: type[Settings]) -> None:
    def numbers(node: Any, where: str) -> Iterator[tuple[str, dict]]:
        if isinstance(node, dict):
            if node.get("type") in ("integer", "number") and not {"enum", "const"} & node.keys():
                yield where, node
            for name, below in node.items():
                yield from numbers(below, f"{where}.{name}")
        elif isinstance(node, list):
            for below in node:
                yield from numbers(below, where)

    found = list(numbers(kind.model_json_schema(), kind.__name__))
    assert found
    for where, schema in found:
        assert {"minimum", "exclusiveMinimum"} & schema.keys() and {"maximum", "exclusiveMaximum"} & schema.keys(), (
            where
        )


MAY_BE_NULL = (
    "model.shared_head_dim",
    "model.encoder.head_dim",
    "model.encoder.conv_dim",
    "model.encoder.ffn_after_dim",
    "model.encoder.rank",
    "objective.alpha",
    "objective.beta",
)


@pytest.mark.parametrize(("tree", "key", "value"), settings_of(int) + settings_of(float))
def test_a_number_is_in_its_bounds_or_refused_by_name(tree: str, key: str, value: float) -> None:
    for text in NO_NUMBER + ([] if key in MAY_BE_NULL else ["", "null"]):
        assert_refused(tree, key, text)
    for text in MAYBE:
        assert_kept_or_refused(tree, key, text)
    if type(value) is int:
        assert_refused(tree, key, "1.5")


@pytest.mark.parametrize(("tree", "key", "value"), settings_of(bool))
def test_a_flag_is_true_or_false(tree: str, key: str, value: bool) -> None:
    for text in NO_FLAG:
        assert_refused(tree, key, text)


@pytest.mark.parametrize(("tree", "key", "value"), settings_of(str))
def test_text_is_text(tree: str, key: str, value: str) -> None:
    for text in NO_TEXT:
        assert_refused(tree, key, text)


@pytest.mark.parametrize(("tree", "key", "value"), settings_of(list))
def test_a_list_refuses_what_its_members_refuse(tree: str, key: str, value: list) -> None:
    for text in ("1", "text", "true", "{a: 1}", "[[[1]]]", "[.nan]", "[true]", "[null]", "[{a: 1}]", "[1e999]"):
        assert_refused(tree, key, text)
    for text in ("[]", "[-1]", "[0]", "[1e9]", "[a]", "[1, 1]", "[0, 0, 0]", "[a, a]", "[-1, 1]"):
        assert_kept_or_refused(tree, key, text)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("optim.phases", "[1, 1, 1]"), ("optim.phases", "[-1, 1, 1]"), ("optim.betas", "[0.9, 1]"), ("optim.clip", "0"),
        ("optim.accumulate", "0"), ("saving.every_updates", "0"), ("saving.keep", "-3"), ("data.train", "[]"),
        ("data.train", "[dev, dev]"), ("data.workers", "-1"), ("augment.volume", "[2, 1]"), ("augment.pitch", "[1, 9]"),
        ("augment.noise_snr", "[9, 8]"), ("model.encoder.heads", "0"), ("model.encoder.layer_drop", "1"),
        ("decoding.methods", "[]"), ("decoding.avg", "11"), ("decoding.rescoring_scales", "[1]"),
        ("model.encoder.relative_buckets", "3"), ("model.front_end.layers", "[]"), ("pretrained", "'wav2vec2'"),
        ("model.front_end.layers", "[[3, 8, 4]]"), ("model.front_end.layers", "[[2, 8, 9999], [2, 8, 9999]]"),
        ("init_units", "words"), ("init_slice", "['']"), ("data.lattice.nbest", "0"), ("seed", "-1"),
    ],
)  # fmt: skip
def test_settings_that_stop_or_mislead_a_training_are_refused(key: str, text: str) -> None:
    assert_refused("experiment", key, text)


def test_a_decay_to_nothing_is_linear() -> None:
    assert given("experiment", "optim.final_scale", "0") is not None
    with pytest.raises(ValueError, match="final_scale must be greater than 0"):
        given("experiment", "optim", "{final_scale: 0, decay: exponential}")


def test_tests_have_every_kind_of_setting() -> None:
    """None of the lists above is empty, and nothing but these kinds is left out."""
    assert all(settings_of(kind) for kind in (int, float, bool, str, list))
    rest = {key for tree in FULL.values() for key, value in leaves(tree.model_dump(mode="json")) if value is None}
    rest -= {
        "alpha",
        "beta",
        "units",
        "distort",
        "supernet",
        *(f"objective.{term}" for term in FULL["objective"].terms),
    }  # each in another tree
    assert rest == set() and math.isfinite(FULL["lm"].model_dump()["optim"]["lr"])
