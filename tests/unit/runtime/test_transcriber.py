"""Words from log-probabilities: over a graph as frames come, greedily without one; the CTC output beside LF-MMI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.config.experiment import Experiment
from distill.decode.online import OnlineSearch, open_exported
from distill.export.network import WholeGraph
from distill.graphs import topology
from distill.lfmmi import NativeEngine
from distill.losses.ctc import Ctc
from distill.models.recogniser import Recogniser
from distill.runtime.open import open_session, place_of
from distill.runtime.session import Session
from distill.runtime.torch_runner import info_of, torch_runner
from distill.runtime.transcriber import GreedySearch, Transcriber, open_search
from distill.text import Word
from tests.support.decoding import make_small
from tests.support.models import OUTPUTS, WAVE, build
from tests.unit.losses.test_objective import linear_graph
from tests.unit.runtime.test_session import forward, speech

FRAME = 0.02


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder whose graph has "AB", pronounced A B, and "C"."""
    folder = tmp_path_factory.mktemp("export")
    small = make_small(folder, "AB A B\nC C\n", ["AB C", "C AB AB"], 2)
    (folder / "lang").mkdir()
    for name in ("tokens.txt", "words.txt", "lexicon.txt", "optional_silence.txt"):
        (folder / "lang" / name).write_bytes((small.hlg.parent / name).read_bytes())
    return folder


def new_search(export: Path) -> OnlineSearch:
    return OnlineSearch(open_exported(export, ["<blk>", "SIL", "A", "B", "C"], FRAME))


def emissions(text: str) -> np.ndarray:
    """Log-probabilities of units ("_" is blank, "-" silence)."""
    return frames(["_-ABC".index(unit) for unit in text], 5)


def frames(labels: list[int], columns: int = 4) -> np.ndarray:
    log_probs = np.full((len(labels), columns), -8.0, np.float32)
    log_probs[np.arange(len(labels)), labels] = -0.01
    return log_probs


class Prepared:
    """A model with prepared log-probabilities, a frame for each sample."""

    def __init__(self, log_probs: np.ndarray) -> None:
        self.log_probs = log_probs

    def reset(self) -> None:
        self.at = 0

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        end = len(self.log_probs) if final else self.at + len(wave)
        start, self.at = self.at, end
        return self.log_probs[start:end]


def text_of(words: Iterable[Word]) -> list[str]:
    return [word.text for word in words]


@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 5, 8], range(1, 13)], ids=str)
def test_words_come_with_their_frames_however_these_are_cut(export: Path, cuts: Sequence[int]) -> None:
    search, seen = new_search(export), []
    for piece in np.split(emissions("_AA_B__CC_AB-"), list(cuts)):
        search.feed(piece)
        search.feed(piece[:0])
        seen.append(search.progress().words)
    words, _ = search.words(ended=True)
    assert seen[-1] == ("AB", "C", "AB") and text_of(words) == ["AB", "C", "AB"]
    assert [(word.start, word.end) for word in words] == [(0.02, 0.1), (0.14, 0.18), (0.2, 0.24)]
    assert all(0.9 < word.confidence <= 1 for word in words)
    assert len(cuts) < 3 or ("AB",) in {words[:1] for words in seen[:6]}


@pytest.mark.parametrize("size", [1, 7, 92])
def test_a_stream_is_segmented_in_pauses_on_request_and_times_go_on(export: Path, size: int) -> None:
    log_probs = emissions(f"_ABC{'-' * 85}C-")
    results = []
    for segments in (True, False):
        transcriber = Transcriber(Session(Prepared(log_probs)), lambda: new_search(export), segments)
        parts = [transcriber.feed(np.zeros(size, np.float32)) for _ in range(len(log_probs) // size)]
        results.append([words for part in (*parts, transcriber.finish()) for words in part])
    cut, whole = results
    assert [text_of(words) for words in cut] == [["AB", "C"], ["C"]]
    assert [text_of(words) for words in whole] == [["AB", "C", "C"]]
    assert (cut[1][0].start, cut[1][0].end) == (whole[0][2].start, whole[0][2].end) == (1.78, 1.8)


def test_silence_has_no_utterances(export: Path) -> None:
    transcriber = Transcriber(Session(Prepared(emissions("-" * 200))), lambda: new_search(export), segments=True)
    assert transcriber.feed(np.zeros(150, np.float32)) == [] and transcriber.finish() == []


def test_the_export_folder_must_fit_the_model(export: Path) -> None:
    with pytest.raises(ValueError, match="other outputs than the model's 2"):
        open_exported(export, ["<blk>", "A"], FRAME)
    with pytest.raises(FileNotFoundError, match=r"absent\.fst; run stage 12"):
        open_exported(export, ["<blk>", "SIL", "A", "B", "C"], FRAME, export / "absent.fst")


def test_greedy_search_joins_pieces_to_words() -> None:
    search = GreedySearch(["<blk>", "▁HE", "LLO", "▁YOU"], FRAME)
    for piece in ([1, 1, 0], [0, 2], [2, 3]):
        search.feed(frames(piece))
    assert search.progress().words == ("HELLO", "YOU")
    confidence = np.exp(-0.01)
    assert search.words()[0] == [
        Word("HELLO", 0.0, 0.12, round(confidence**2, 4)), Word("YOU", 0.12, 0.14, round(confidence, 4)),
    ]  # fmt: skip
    search.restart()
    search.feed(frames([0, 3]))
    assert search.words()[0] == [Word("YOU", 0.16, 0.18, round(confidence, 4))]
    phones = GreedySearch(["<blk>", "HH", "AH", "L"], FRAME)
    phones.feed(frames([1, 0, 1, 2, 2, 3]))
    assert phones.progress().words == ("HH", "HH", "AH", "L") and not phones.progress().ended
    phones.feed(frames([0] * 60))
    assert phones.progress().ended


def with_ctc(streams: bool = True) -> Recogniser:
    model = build(WAVE, streams)
    torch.manual_seed(3)
    twin = Recogniser(model.settings.model_copy(update={"ctc_output": True}), len(OUTPUTS)).eval()
    twin.load_state_dict({**twin.state_dict(), **model.state_dict()})
    return twin


def test_a_ctc_output_does_not_change_the_main_one_and_streams_and_exports() -> None:
    model, wave = with_ctc(), speech(6000)
    np.testing.assert_array_equal(forward(model, wave), forward(build(WAVE, True), wave))
    with torch.no_grad():
        output = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        second = output.ctc_logits[0].log_softmax(-1)
        exported = WholeGraph(model, "ctc")((torch.from_numpy(wave) * 3)[None, :, None])[0]
    info = info_of(model, OUTPUTS, "two")
    assert info.selectable == ("main", "ctc")
    streamed = Session(torch_runner(model.select_output("ctc"), info, True)).whole(wave)
    torch.testing.assert_close(torch.from_numpy(streamed), second, rtol=0, atol=1e-4)
    torch.testing.assert_close(exported, second, rtol=0, atol=1e-4)
    assert np.abs(streamed - forward(model, wave)).max() > 0.1
    with pytest.raises(ValueError, match="expected main, ctc or transducer"):
        model.select_output("third")


def test_ctc_of_one_transcript_is_torchs_plus_the_weight_of_its_path() -> None:
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 9, 4, requires_grad=True), torch.tensor([9, 5])
    graphs = [topology.ctc(linear_graph([1, 2])), topology.ctc(linear_graph([3]))]
    term = Ctc(NativeEngine()).loss(logits, lengths, graphs).terms["ctc"]
    theirs = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.tensor([1, 2, 3]), lengths, torch.tensor([2, 1]), reduction="sum"
    )
    weights = -(3 + 2) * float(torch.tensor(0.25).log())  # an arc per unit and the end, 1/4 each
    assert float(term.total.detach()) == pytest.approx(float(theirs) + weights, rel=1e-5)
    assert int(term.count) == 14
    ours = torch.autograd.grad(term.total, logits, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, logits)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "output"), [(0.5, False), (0.0, True)])
def test_a_ctc_output_and_its_scale_need_each_other(scale: float, output: bool) -> None:
    values = {
        "stage": 6, "optim": {"updates": 1}, "model": {"ctc_output": output},
        "objective": {"alpha": 1, "beta": 1, "ctc_scale": scale},
    }  # fmt: skip
    fault = "needs it" if scale else "is 0"
    with pytest.raises(ValueError, match=rf"ctc_output is {str(output).lower()}, but objective.ctc_scale .* {fault}"):
        Experiment.parse(values, "here")


def test_the_main_output_needs_its_graph(tmp_path) -> None:
    model = with_ctc()
    session = Session(torch_runner(model, info_of(model, OUTPUTS, "two"), True))
    with pytest.raises(FileNotFoundError, match="--output ctc"):
        open_search(tmp_path, session.runner)
    ctc = torch_runner(model.select_output("ctc"), session.info, True)
    assert isinstance(open_search(tmp_path, ctc)(), GreedySearch)


def test_a_published_model_has_neither_exported_graphs_nor_a_lang_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"hf:a/b is a published model, without graphs for --runtime onnx; use .* torch"
    ):
        open_session("hf:a/b", "onnx")
    (tmp_path / "config.json").write_text("{}")
    assert place_of(str(tmp_path)) == f"hf:{tmp_path}" and place_of("hf:a/b") == "hf:a/b"
    assert place_of(str(tmp_path / "exp")) == tmp_path / "exp"
    runner: Any = SimpleNamespace(info=SimpleNamespace(hop=320, outputs=("<blk>", "A")), output="main")
    with pytest.raises(
        ValueError, match=r"--graph HLG\.fst needs the lang folder of an export; hf:a/b is decoded greedily"
    ):
        open_search("hf:a/b", runner, Path("HLG.fst"))
    assert isinstance(open_search("hf:a/b", runner)(), GreedySearch)
