"""A recipe's folders after stage 6, small enough that labelling and decoding take seconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from lhotse import MonoCut, Recording, SupervisionSegment

from distill.config.experiment import Experiment
from distill.corpora.cut_sets import write_cuts
from distill.files import write_json
from distill.fsa.k2_format import save_fsa
from distill.graphs.unit_ngram import train_unit_ngram
from distill.graphs.word_ngram import train_word_ngram
from distill.models import checkpoint
from distill.models.recogniser import Recogniser
from distill.recipe.options import Recipe
from tests.support.clients import WORDS, build_decoder
from tests.support.models import WAVE, build

ROOT = Path(__file__).parents[2]
PARTS = {"unlabelled": 13, "dev": 3, "test-clean": 5, "test-other": 3}
LM = """
model: {dim: 16, ffn_dim: 32, layers: 1, heads: 2, dropout: 0}
text: {units: words, batch_units: 200}
optim: {updates: 12, lr: 1.0e-2}
rescoring: {nbest: 4, beam: 4}
"""


@dataclass(frozen=True)
class Tiny:
    """Folders of a recipe."""

    data: Path
    conf: Path
    exp: Path

    def command(self, script: str, *options: str) -> list[str]:
        folders = ("--conf-dir", str(self.conf), "--data-dir", str(self.data), "--exp-dir", str(self.exp))
        given = ("--corpus", "tiny", *folders, "--experiment", "teacher,other", *options)
        return [sys.executable, str(ROOT / "local" / script), *given]

    def start(self, script: str, *options: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(script, *options),
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, script: str, *options: str) -> str:
        """What the script logs, once it has succeeded."""
        return succeeded(self.start(script, *options))

    def run_ranks(self, script: str, world: int) -> list[str]:
        """The same by some ranks, as a launcher starts them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        ranks = [self.start(script, **common, RANK=str(n), LOCAL_RANK=str(n)) for n in range(world)]
        return [succeeded(rank) for rank in ranks]


def succeeded(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder: cut sets of noise, lang folder, n-grams, graphs."""
    data = tmp_path_factory.mktemp("tiny") / "data"
    for name in ("lang_phones", "graphs", "lm", "cuts", "text"):
        (data / name).mkdir(parents=True)
        write_json(data / name / ".done", {"settings": {}, "inputs": {}, "hash": name})
    lang = build_decoder(data / "lang_phones").lang
    for name in ("HLG.fst", "lm.arpa"):
        (data / "lang_phones" / name).rename(data / "graphs" / name)
    units = [lang.pronunciation_ids(word, "test")[0] for word in WORDS]
    save_fsa(data / "graphs/denominator.pt", train_unit_ngram(units, 2, len(lang.units)))
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(WORDS, 5)) for _ in range(300)]
    (data / "text/lm.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    for order in (3, 4):
        train_word_ngram(text, order, lang.lexicon.words, least=1).write(data / f"lm/words.{order}gram.arpa")
    patch = pytest.MonkeyPatch()
    patch.setattr("distill.corpora.cut_sets.BLOCK", 4)
    for part, count in PARTS.items():
        write_cuts((a_cut(data, part, n, rng) for n in range(count)), data / f"cuts/{part}.jsonl.gz")
    patch.undo()
    return data


def a_cut(data: Path, part: str, number: int, rng: np.random.Generator) -> MonoCut:
    path = data / "audio" / f"{part}-{number}.wav"
    path.parent.mkdir(exist_ok=True)
    loud = np.repeat(rng.uniform(0.01, 0.3, 40), 200)
    soundfile.write(path, (loud * rng.standard_normal(8000))[: 4000 + 300 * number], 16000)
    recording = Recording.from_file(path)
    said = SupervisionSegment(path.stem, path.stem, 0.0, recording.duration, text=" ".join(rng.choice(WORDS, 2)))
    custom = {"reference": said.text}
    said = said if part != "unlabelled" else SupervisionSegment(path.stem, path.stem, 0.0, said.duration, custom=custom)
    return MonoCut(path.stem, 0, recording.duration, 0, [said], recording=recording)


def a_model(seed: int, streams: bool, outputs: int) -> Recogniser:
    """Random weights, the outputs' large enough for posteriors to differ."""
    settings = build(WAVE, streams).settings
    torch.manual_seed(seed)
    model = Recogniser(settings, outputs).eval()
    with torch.no_grad():
        model.front_end.gain.fill_(3.0)
        model.head.output.weight.mul_(20)
    return model


def add_transducer(tiny: Tiny, alone: bool = False, predictor: str = "stateless", **settings: Any) -> Recipe:
    """`other` with a transducer of lively weights beside its main output, or alone; `settings` of its decoding."""
    path, folder = tiny.conf / "other.yaml", tiny.exp / "other"
    values = yaml.safe_load(path.read_text())
    values["model"]["transducer"] = {"predictor": predictor, "dim": 8, "joiner_dim": 8}
    values["objective"] = {"alpha": None, "beta": None} if alone else values["objective"]
    values["objective"]["transducer"] = {}
    methods = ["transducer_greedy", "transducer_beam"]
    values["decoding"] = {"methods": methods if alone else ["1best", *methods], **settings}
    path.write_text(yaml.safe_dump(values))
    experiment, content = Experiment.load(path), checkpoint.load(folder / "epoch-1.pt")
    torch.manual_seed(0)
    model = Recogniser(experiment.model, len(content["units"]))
    assert model.transducer is not None
    with torch.no_grad():
        model.transducer.output.weight.mul_(8)
    weights = {**model.state_dict(), **content["model"]}
    checkpoint.save(folder / "epoch-1.pt", {**content, "model": weights, "experiment": experiment.resolved()})
    folders = (tiny.conf, tiny.data, tiny.exp)
    return Recipe("tiny", *folders, None, 1, "cpu", "native", "phones", "ctc", False, False, (), ("other",))


def with_own_graphs(tiny: Tiny, *further: str) -> Recipe:
    """The recipe of `teacher` with its own copies of graphs, n-grams and further folders, ready for stage 4."""
    for name in ("graphs", "lm", *further):
        original = (tiny.data / name).resolve()
        (tiny.data / name).unlink()
        shutil.copytree(original, tiny.data / name)
    (tiny.data / "lm/units.pt").write_bytes((tiny.data / "graphs/denominator.pt").read_bytes())
    write_json(tiny.data / "lm/summary.json", {"units": {"perplexity": 2.0}, "words.3gram": {"perplexity": 3.0}})
    folders = (tiny.conf, tiny.data, tiny.exp)
    return Recipe("tiny", *folders, None, 1, "cpu", "native", "phones", "ctc", False, False, (), ("teacher",))


@pytest.fixture
def tiny(tiny_data: Path, tmp_path: Path) -> Tiny:
    """Two trained experiments: `teacher`, and `other`, which streams."""
    units = (tiny_data / "lang_phones/tokens.txt").read_text(encoding="utf-8").split()[::2]
    (tmp_path / "conf").mkdir()
    for seed, name in enumerate(("teacher", "other")):
        model = a_model(seed, name == "other", len(units))
        values = {"stage": 6, "optim": {"updates": 1}, "model": model.settings.model_dump(mode="json")}
        values |= {"objective": {"alpha": 1, "beta": 1}, "data": {"max_duration": 1.0}}
        (tmp_path / f"conf/{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        experiment = Experiment.load(tmp_path / f"conf/{name}.yaml")
        folder = tmp_path / "exp" / name
        folder.mkdir(parents=True)
        content = {"model": model.state_dict(), "experiment": experiment.resolved(), "units": units}
        checkpoint.save(folder / "epoch-1.pt", content)
        write_json(folder / ".done", {"settings": {}, "inputs": {}, "hash": name})
    (tmp_path / "conf/lm.yaml").write_text(LM, encoding="utf-8")
    data = tmp_path / "data"
    data.mkdir()
    for path in tiny_data.iterdir():
        (data / path.name).symlink_to(path)
    return Tiny(data, tmp_path / "conf", tmp_path / "exp")
