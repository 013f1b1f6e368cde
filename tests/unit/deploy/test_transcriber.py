"""Text from log-probabilities: words over a graph as they come, pieces without one; the CTC output beside LF-MMI."""

from __future__ import annotations

import kaldifst
import numpy as np
import pytest
import torch

from distill.config.experiment import Experiment
from distill.decode.live import LiveDecoder
from distill.deploy.graph import WholeGraph
from distill.deploy.session import Session
from distill.deploy.torch_runner import TorchRunner, facts_of
from distill.deploy.transcriber import OutputReader, open_reader
from distill.fsa import NativeEngine
from distill.graphs import topology
from distill.losses.mmi import Ctc
from distill.models.recogniser import Recogniser

from ..losses.test_objective import linear_graph
from .conftest import OUTPUTS, WAVE, build
from .test_session import forward, speech

WORDS = ["<eps>", "AB", "C"]


@pytest.fixture
def hlg(tmp_path):
    """CTC over A, B, C; "AB" is A B, "C" is C; labels are outputs plus 1."""
    arcs = [
        (0, 0, 1, 0),
        (0, 1, 2, 1),
        (1, 1, 2, 0),
        (1, 1, 1, 0),
        (1, 0, 3, 0),
        (0, 2, 4, 2),
        (2, 2, 4, 0),
        (2, 0, 1, 0),
    ]
    text = "".join(f"{s} {d} {i} {o} 0.1\n" for s, d, i, o in arcs) + "0 0\n2 0\n"
    graph = kaldifst.compile(text, acceptor=False)
    path = tmp_path / "HLG.fst"
    graph.write(str(path))
    return path


def frames(labels: list[int]) -> np.ndarray:
    log_probs = np.full((len(labels), 4), -8.0, np.float32)
    log_probs[np.arange(len(labels)), labels] = -0.01
    return log_probs


def test_words_come_as_they_are_spoken_however_frames_are_cut(hlg) -> None:
    decoder, said = LiveDecoder(hlg, WORDS), frames([0, 1, 1, 0, 2, 0, 3, 3, 0, 1, 2])
    for cuts in ([], [3], [1, 2, 5, 8], range(1, 11)):
        decoder.reset()
        assert decoder.words() == ()
        seen = []
        for piece in np.split(said, list(cuts)):
            decoder.advance(piece)
            decoder.advance(piece[:0])
            seen.append(decoder.words())
        assert seen[-1] == ("AB", "C", "AB") and decoder.words(final=True) == ("AB", "C", "AB")
    assert ("AB",) in {words[:1] for words in seen[:6]}


def test_columns_say_which_output_a_label_stands_for(hlg) -> None:
    said = frames([0, 1, 2, 3])[:, [3, 2, 1, 0]]
    decoder = LiveDecoder(hlg, WORDS, columns=[3, 2, 1, 0])
    decoder.advance(said)
    assert decoder.words(final=True) == ("AB", "C")
    with pytest.raises(FileNotFoundError, match="stage 4"):
        LiveDecoder(hlg.with_name("absent.fst"), WORDS)


def test_outputs_are_read_without_a_graph_and_pieces_become_words() -> None:
    reader = OutputReader(["<blk>", "▁HE", "LLO", "▁YOU"])
    for piece in ([1, 1, 0], [0, 2], [2, 3]):
        reader.advance(frames(piece))
    assert reader.words() == ["HELLO", "YOU"]
    phones = OutputReader(["<blk>", "HH", "AH", "L"])
    phones.advance(frames([1, 0, 1, 2, 2, 3]))
    assert phones.words() == ["HH", "HH", "AH", "L"]


def with_ctc(streams: bool = True) -> Recogniser:
    model = build(WAVE, streams)
    torch.manual_seed(3)
    twin = Recogniser(model.settings.model_copy(update={"ctc_output": True}), len(OUTPUTS)).eval()
    twin.load_state_dict({**twin.state_dict(), **model.state_dict()})
    return twin


def test_the_second_output_leaves_the_first_alone_and_streams_and_exports() -> None:
    model, wave = with_ctc(), speech(6000)
    np.testing.assert_array_equal(forward(model, wave), forward(build(WAVE, True), wave))
    with torch.no_grad():
        output = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        second = output.ctc[0].log_softmax(-1)
        exported = WholeGraph(model, "ctc")((torch.from_numpy(wave) * 3)[None, :, None])[0]
    facts = facts_of(model, OUTPUTS, "two")
    assert facts.predicts == ("main", "ctc")
    streamed = Session(TorchRunner(model.read("ctc"), facts, True)).whole(wave)
    torch.testing.assert_close(torch.from_numpy(streamed), second, rtol=0, atol=1e-4)
    torch.testing.assert_close(exported, second, rtol=0, atol=1e-4)
    assert np.abs(streamed - forward(model, wave)).max() > 0.1
    with pytest.raises(ValueError, match="expected main or ctc"):
        model.read("third")


def test_ctc_of_one_transcript_is_torchs_plus_the_weight_of_its_path() -> None:
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 9, 4, requires_grad=True), torch.tensor([9, 5])
    graphs = [topology.ctc(linear_graph([1, 2])), topology.ctc(linear_graph([3]))]
    term = Ctc(NativeEngine())(logits, lengths, graphs)
    theirs = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.tensor([1, 2, 3]), lengths, torch.tensor([2, 1]), reduction="sum"
    )
    weights = -(3 + 2) * float(torch.tensor(0.25).log())  # an arc per unit and the end, 1/4 each
    assert float(term.total.detach()) == pytest.approx(float(theirs) + weights, rel=1e-5)
    assert int(term.count) == 14
    ours = torch.autograd.grad(term.total, logits, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, logits)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "output"), [(0.5, False), (0.0, True)])
def test_a_second_output_and_its_scale_need_each_other(scale: float, output: bool) -> None:
    values = {
        "stage": 6, "optim": {"updates": 1}, "model": {"ctc_output": output},
        "objective": {"alpha": 1, "beta": 1, "ctc_scale": scale},
    }  # fmt: skip
    with pytest.raises(ValueError, match="do not go together"):
        Experiment.parse(values, "here")


def test_the_main_output_asks_for_its_graph(tmp_path) -> None:
    model = with_ctc()
    session = Session(TorchRunner(model, facts_of(model, OUTPUTS, "two"), True))
    with pytest.raises(FileNotFoundError, match="--output ctc"):
        open_reader(tmp_path, session, "main")
    assert isinstance(open_reader(tmp_path, session, "ctc"), OutputReader)
