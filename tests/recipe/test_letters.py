"""A published fine-tuned teacher through stages 0 to 10: no stage 6, its letters as units, students of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.published import LETTERS, write_twin

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = re.findall(r"^  run (\d+) .*?\" (\S+\.py.*)$", (ROOT / "local/stage.sh").read_text(), flags=re.MULTILINE)
"""(number, script and its options) of each stage."""
TEACHER = """
stage: 5
pretrained: {folder}
model:
  front_end: {{layers: [[16, 10, 5], [16, 8, 8], [24, 8, 8]], bias: true, norm: frame, norm_layers: all}}
  encoder:
    {{dim: 32, ffn_dim: 48, layers: 4, heads: 2, norm_first: true, position_kernel: 16, position_groups: 4}}
data: {{max_duration: 12}}
"""
STUDENT = """
stage: 8
init: published
teacher: {experiment: published}
model:
  front_end: {layers: [[16, 10, 5], [16, 8, 8], [24, 8, 8]], bias: true, norm: frame, norm_layers: all, causal: true,
              waveform: gain}
  encoder: {dim: 16, ffn_dim: 32, layers: 2, heads: 2, norm_first: true, position_kernel: 16, position_groups: 4,
            position_causal: true}
  shared_head_dim: 32
data: {train: [labelled, unlabelled], valid_utterances: 4, max_duration: 12, workers: 0}
augment: {pitch_probability: 0}
optim: {updates: 3}
"""
STREAMING = "{base: student.yaml, stage: 9, init: student, model: {streaming: {chunk_frames: 16, history_frames: 64}}}"


def stages(
    folder: Path, first: int, last: int, experiments: str = "published,student,streaming", units: str = "letters"
) -> str:
    """Run stages; returns what they print."""
    options = [f"--{kind}-dir={folder / kind}" for kind in ("conf", "data", "exp")]
    options += ["--corpus=librispeech", "--rehearse=true", "--nj=1", f"--units={units}", f"--experiment={experiments}"]
    printed = ""
    for number, script in SCRIPTS:
        if first <= int(number) <= last:
            name, *more = script.split()
            done = subprocess.run(
                [sys.executable, str(ROOT / "local" / name), *options, *more],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            printed += done.stdout
            assert done.returncode == 0, f"stage {number}: {done.stdout[-3000:]}"
    return printed


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("letters")
    (folder / "conf").mkdir()
    write_twin(folder / "model", binary=True)
    texts = {"published": TEACHER.format(folder=folder / "model"), "student": STUDENT, "streaming": STREAMING}
    for name, text in texts.items():
        (folder / f"conf/{name}.yaml").write_text(text)
    return folder, stages(folder, 0, 10)


def test_its_letters_are_the_units(recipe: tuple[Path, str]) -> None:
    lang = recipe[0] / "data/lang_letters"
    units = [line.split()[0] for line in (lang / "tokens.txt").read_text().splitlines()]
    assert units == ["<blk>", "<s>", "</s>", "<unk>", "▁", *LETTERS[5:]]
    words = dict(line.split(maxsplit=1) for line in (lang / "lexicon.txt").read_text().splitlines())
    assert all(spelling == f"{' '.join(word)} ▁" for word, spelling in words.items())


def test_stage_6_is_left_out_and_says_so(recipe: tuple[Path, str]) -> None:
    folder, printed = recipe
    assert re.search(r"stage 6: published_letters \(hf:.*model\) is taken over as it is: nothing to train", printed)
    assert sorted(path.name for path in (folder / "exp/published_letters").glob("*.pt")) == ["epoch-0.pt"]
    result = json.loads((folder / "exp/published_letters/result.json").read_text())
    assert (result["updates"], result["config"]["stage"]) == (0, 5) and result["params"]["training_only"] == 0
    theirs = torch.load(folder / "model/pytorch_model.bin", weights_only=True)
    ours = torch.load(folder / "exp/published_letters/epoch-0.pt", weights_only=True)["model"]
    assert torch.equal(ours["head.output.weight"], theirs["lm_head.weight"])


def test_its_emissions_make_lattices_and_students(recipe: tuple[Path, str]) -> None:
    folder, _ = recipe
    summary = json.loads((folder / "data/num/published_letters/summary.json").read_text())
    assert summary["unlabelled"]["utterances"] == 40
    for name in ("student_letters", "streaming_letters"):
        result = json.loads((folder / f"exp/{name}/result.json").read_text())
        assert result["updates"] == 3 and result["without_path"] == 0
    copied = (folder / "exp/student_letters/init.tsv").read_text().splitlines()
    assert "copied\thead.output.weight" in copied, "the prediction layer is shared"
    for name, modes in (("published", ["offline"]), ("student", ["offline"]), ("streaming", ["offline", "streaming"])):
        for mode in modes:
            for method in ("1best", "greedy"):
                assert (folder / f"exp/{name}_letters/decode_test-clean_{mode}_{method}/wer.json").is_file()


def test_a_second_call_has_nothing_to_do_and_students_need_not_name_the_teacher(recipe: tuple[Path, str]) -> None:
    printed = stages(recipe[0], 2, 9, "student,streaming")
    assert "making" not in printed and printed.count("up to date") >= 5
