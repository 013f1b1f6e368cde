"""papers/000 through the stages: a pre-trained teacher as it is published, a student on Fbank, and its fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.models import checkpoint
from distill.models.pruning import open_units
from tests.recipe.test_letters import TEACHER, stages
from tests.support.published import write_twin

pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(1800)
STUDENT = """
stage: 8
init: pretrained
teacher: {experiment: pretrained}
model:
  front_end: {input: fbank, layers: [[24, 5, 2]], norm: frame, waveform: none}
  encoder: {dim: 16, ffn_dim: 16, layers: 2, heads: 2, position_kernel: 16, position_groups: 4}
units: {of: pretrained, layer: 3, clusters: 8}
data: {train: [labelled, unlabelled], valid_utterances: 4, max_duration: 12, workers: 0}
augment: {volume_probability: 0, pitch_probability: 0}
objective:
  front: {updates: 2}
  regression: {blocks: [2, 4], start: 2}
  discriminative: {start: 2, final_dim: 8}
optim: {updates: 4}
"""
TUNED = """
base: student.yaml
stage: 9
init: student
teacher: null
units: null
data: {train: [labelled]}
objective: {front: null, regression: null, discriminative: null, mmi: {}}
"""
PRUNED = """
base: student.yaml
units: null
model: {pruning: {units: [conv, heads, ffn]}}
objective: {front: null, regression: {start: 0}, discriminative: null, sparsity: {target: 0.3, warm_up: 2}}
optim: {updates: 2}
"""
SLIM = """
base: tuned.yaml
init: pruned
init_slim: true
optim: {updates: 2}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("agnostic")
    (folder / "conf").mkdir()
    write_twin(folder / "model", binary=True)
    teacher = TEACHER.format(folder=folder / "model") + "decoding: {methods: []}\n"
    texts = {"pretrained": teacher, "student": STUDENT, "tuned": TUNED, "pruned": PRUNED, "slim": SLIM}
    for name, text in texts.items():
        (folder / f"conf/{name}.yaml").write_text(text)
    return folder, stages(folder, 0, 10, ",".join(texts), "phones")


def test_what_the_gates_of_a_student_leave_is_fine_tuned(recipe: tuple[Path, str]) -> None:
    folder, _ = recipe
    pruned, slim = (checkpoint.load_recogniser(folder / f"exp/{name}")[0] for name in ("pruned", "slim"))
    assert open_units(pruned) == open_units(slim) and slim.settings.pruning is None
    assert slim.settings.encoder.ffn_dim != 16, "some channels are closed from the beginning"
    figures = json.loads((folder / "exp/pruned/result.json").read_text())["figures"]
    assert 0 < figures["sparsity"] < 1


def test_only_the_fine_tuned_student_is_decoded(recipe: tuple[Path, str]) -> None:
    folder, printed = recipe
    decoded = {path.parts[0] for path in (p.relative_to(folder / "exp") for p in folder.glob("exp/**/wer.json"))}
    assert decoded == {"tuned", "slim"} and "student has no outputs to decode" in printed
    assert not (folder / "data/num").exists(), "no lattices of a teacher without outputs"


def test_the_student_learns_from_states_and_centroids(recipe: tuple[Path, str]) -> None:
    folder, printed = recipe
    lines = (folder / "exp/student/curves.tsv").read_text().splitlines()[1:]
    terms = {line.split("\t")[1] for line in lines}  # of the validation after the second step
    assert terms == {f"valid/{name}" for name in ("regression2_2", "regression2_4", "discriminative", "loss")}
    assert "codewords of pretrained: centroids of its block 3" in printed
    result = json.loads((folder / "exp/student/result.json").read_text())
    assert result["updates"] == 4 and result["params"]["training_only"] > 0
