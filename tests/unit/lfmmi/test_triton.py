"""The Triton kernels against the torch engine: in Triton's interpreter on a CPU, or as they are on a GPU."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa, Hmm
from distill.graphs import topology
from distill.lfmmi import Engine, TorchEngine, triton_tables
from distill.lfmmi import triton as triton_engine
from distill.lfmmi.leaky import leak_weights
from distill.lfmmi.native import fastest
from distill.lfmmi.triton import TritonEngine
from tests.support.random_graphs import UNITS, random_fsa

pytest.importorskip("triton", reason="Triton is not on this platform")
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")  # log of 0, as on a GPU
ROOT = Path(__file__).resolve().parents[3]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-5)}  # values; posteriors, before their weights


def chain(units: Sequence[int]) -> Fsa:
    """One path; a last state that no arc reaches has a final weight too."""
    count = len(units) + 1
    return Fsa.from_arcs([(i, i + 1, u, -0.5) for i, u in enumerate(units)], {count - 1: 0.0, count: 0.0}, count + 1)


def log_probs_of(lengths: Sequence[int], scale: float = 2.0, outputs: int = UNITS, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(lengths), max(lengths), outputs, generator=generator, dtype=torch.float64)
    return (scale * noise).log_softmax(-1)


def scored(engine: Engine, log_probs: torch.Tensor, lengths: Sequence[int], graph: Hmm | Sequence[Hmm]) -> Any:
    """Score and gradient; utterances are weighed differently, as a loss may do."""
    leaf = log_probs.detach().requires_grad_()
    score = engine.score(leaf, torch.tensor(lengths), graph)
    (score.total * torch.arange(1, len(lengths) + 1, device=leaf.device)).sum().backward()
    return score, leaf.grad


def assert_same(
    log_probs: torch.Tensor, lengths: Sequence[int], graph: Hmm | Sequence[Hmm], dtype: torch.dtype = torch.float64
) -> Any:
    score, gradient = scored(TritonEngine(), log_probs.to(DEVICE, dtype), lengths, graph)
    expected, expected_gradient = scored(TorchEngine(), log_probs.double(), lengths, graph)
    values, gradients = CLOSE[dtype]
    assert score.total.dtype == dtype and score.valid.tolist() == expected.valid.tolist()
    torch.testing.assert_close(score.total.double().cpu(), expected.total, rtol=values, atol=values)
    torch.testing.assert_close(gradient.double().cpu(), expected_gradient, rtol=0, atol=gradients * len(lengths))
    return score


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_shared_graph(dtype: torch.dtype, seed: int) -> None:
    lengths = [5, 1, 3]
    graph = topology.ctc(random_fsa(4 + seed, seed))
    assert assert_same(log_probs_of(lengths, seed=seed), lengths, graph, dtype).valid.all()


def test_shared_graph_of_two_pdf_biphones() -> None:
    graph = topology.Topology("two_pdf", np.array([[-1, 0, 1], [-1, 2, 3], [-1, 4, 5]])).compose(
        Fsa.from_arcs([(0, 0, 1, -0.7), (0, 1, 2, -1.2), (1, 0, 1, -0.1), (1, 1, 2, -2.0)], {0: 0.0, 1: -0.3}, 2)
    )
    lengths = [4, 2]
    assert assert_same(log_probs_of(lengths, outputs=12), lengths, graph).valid.all()


def test_shared_graph_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tables, "CHUNK", 64)
    monkeypatch.setattr(triton_tables, "MOST_THIN", 0)
    graph = topology.ctc(random_fsa(6, 3, density=0.9))
    tables = triton_tables.SharedTables(graph, 0.0, torch.device("cpu"), torch.float64)
    assert min(tables.ahead_sizes[2], tables.ahead_sizes[6]) >= 2 and max(tables.ahead_sizes[3], tables.ahead_sizes[7])
    assert_same(log_probs_of([3]), [3], graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_of_each_utterance(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lattice, a transcript of one unit, one that needs more frames than there are, none at all."""
    monkeypatch.setattr(triton_tables, "BLOCK", 8)  # the first graph takes several blocks, the kernel's own size is 512
    nothing = Hmm(*(torch.zeros(0, dtype=d) for d in [torch.int64, *[torch.float64] * 2, *[torch.int64] * 2]),
                  torch.zeros(0, dtype=torch.float64))  # fmt: skip
    graphs = [topology.ctc(random_fsa(5, 7)), topology.ctc(chain([2])), topology.ctc(chain([1, 1])), nothing]
    assert graphs[0].num_states > 8 and int(torch.bincount(graphs[0].dst).max()) > 4
    lengths = [4, 3, 2, 1]
    score = assert_same(log_probs_of(lengths, scale=4.0), lengths, graphs, dtype)
    assert score.valid.tolist() == [True, True, False, False]


@pytest.mark.parametrize("shared", [True, False])
def test_utterances_without_path_or_frames_are_masked(shared: bool) -> None:
    graph = topology.ctc(chain([1, 1]))
    lengths = [2, 3, 0]
    score = assert_same(log_probs_of(lengths), lengths, graph if shared else [graph] * 3)
    assert score.valid.tolist() == [False, True, False]


@pytest.mark.parametrize("shared", [True, False])
def test_log_probs_far_below_zero(shared: bool) -> None:
    """Float32 loses a path at 1e-4000 of the likeliest output; such utterances run again in the log semiring."""
    graph = topology.ctc(chain([1]))
    log_probs = torch.full((3, 3, UNITS), -1e4)
    log_probs[0, :, 2] = 0.0  # an output that the graph does not have
    log_probs[1, :, 1] = 0.0
    log_probs[2, 0, 2] = 0.0
    score = assert_same(log_probs, [3, 3, 2], graph if shared else [graph] * 3, torch.float32)
    assert score.valid.all() and score.recomputed == 2 * shared


def leaking(graph: Hmm, coefficient: float) -> Hmm:
    """The same leaky HMM with an arc for each leak: (1 + c 1 q') before every arc and every end."""
    states = graph.num_states
    step = torch.zeros(states, states, dtype=torch.float64)
    step.index_put_((graph.src, graph.dst), graph.weight.exp(), accumulate=True)
    leak = torch.eye(states, dtype=torch.float64) + coefficient * leak_weights(graph)[None]
    src, dst = (grid.flatten() for grid in torch.meshgrid(torch.arange(states), torch.arange(states), indexing="ij"))
    final = (leak @ graph.final.exp()).log()
    return Hmm(graph.label, graph.initial, final, src, dst, (leak @ step).flatten().log())


def test_leaky_hmm() -> None:
    graph, lengths = topology.ctc(random_fsa(4, 5, density=0.3)), [4, 1]
    log_probs = log_probs_of(lengths)
    score, gradient = scored(TritonEngine(leaky=0.1), log_probs.to(DEVICE), lengths, graph)
    expected, expected_gradient = scored(TorchEngine(), log_probs, lengths, leaking(graph, 0.1))
    torch.testing.assert_close(score.total.cpu(), expected.total)
    torch.testing.assert_close(gradient.cpu(), expected_gradient)
    without, _ = scored(TorchEngine(), log_probs, lengths, graph)
    assert (score.total.cpu() > without.total + 0.01).all()


def test_batches_without_frames_or_gradient() -> None:
    graph = topology.ctc(chain([1]))
    empty = torch.zeros(2, 0, UNITS, device=DEVICE, requires_grad=True)
    score = TritonEngine().score(empty, torch.tensor([0, 0]), graph)
    score.total.sum().backward()
    assert score.valid.tolist() == [False, False] and score.total.tolist() == [0, 0]
    log_probs, lengths = log_probs_of([2]).to(DEVICE), torch.tensor([2])
    for form in (graph, [graph]):
        score = TritonEngine().score(log_probs, lengths, form)
        expected = TorchEngine().score(log_probs.cpu(), lengths, form)
        assert not score.total.requires_grad
        torch.testing.assert_close(score.total.cpu(), expected.total)


@pytest.mark.parametrize("reason", ["too many states", "too much shared memory"])
def test_what_does_not_fit_runs_in_torch(reason: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    kernels = triton_engine._kernels()

    class Crowded:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            raise error

    engine, graph, lengths = TritonEngine(), topology.ctc(chain([1])), [3]
    if reason == "too many states":
        monkeypatch.setattr(triton_tables, "MOST_STATES", 2)
        said = f"a graph of {graph.num_states} states is too large for Triton and runs in torch"
    else:
        error = kernels.OutOfResources(300_000, 232_448, "shared memory")
        monkeypatch.setattr(kernels, "shared_kernel", Crowded())
        said = f"a graph of {graph.num_states} states runs in torch: {error}"
    log_probs = log_probs_of(lengths).to(DEVICE)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            score, gradient = scored(engine, log_probs, lengths, graph)
    expected, expected_gradient = scored(TorchEngine(), log_probs, lengths, graph)
    torch.testing.assert_close((score.total, gradient), (expected.total, expected_gradient))
    assert [record.getMessage() for record in caplog.records] == [said]  # once


def test_wrong_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, log_probs, lengths = topology.ctc(chain([1])), log_probs_of([2]), torch.tensor([2])
    with pytest.raises(ValueError, match="NaN"):
        TritonEngine().score(log_probs * torch.nan, lengths, graph)
    monkeypatch.setattr(triton_engine._kernels(), "INTERPRETED", False)
    with pytest.raises(ValueError, match="needs log_probs on a GPU, got cpu"):
        TritonEngine().score(log_probs, lengths, graph)


@pytest.mark.parametrize("lacking", ["", "Triton is not installed", "older than 3.4", "no C compiler", "no headers"])
def test_gpus_get_triton_where_it_can_run(
    lacking: str, monkeypatch: pytest.MonkeyPatch, caplog: Any, tmp_path: Path
) -> None:
    module = SimpleNamespace(__version__="3.1.0" if lacking.startswith("older") else "3.10.1+git")
    monkeypatch.setitem(sys.modules, "triton", None if lacking.startswith("Triton") else module)  # None: no such module
    monkeypatch.setattr(shutil, "which", lambda name: None if lacking == "no C compiler" else f"/usr/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path))
    if lacking != "no headers":
        (tmp_path / "Python.h").touch()
    with caplog.at_level(logging.WARNING):
        assert fastest("cuda") is (TorchEngine if lacking else TritonEngine)
    assert lacking in caplog.text and bool(caplog.records) == bool(lacking)


COMPILE = """
import pathlib, sys
from types import SimpleNamespace
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from distill.fsa.graph import Hmm
from distill.lfmmi import triton as engine, triton_kernels as kernels, triton_tables

class Elsewhere:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

class Compile:
    def __init__(self, name):
        self.kernel = getattr(kernels, name)
        self.name = name
    def __getitem__(self, grid):
        def call(*arguments, **options):
            made = self.kernel.warmup(*arguments, grid=grid, **options)
            ptx = made.asm["ptx"]
            print(self.name, made.metadata.shared, ptx.count("bar.sync"), ptx.count("atom.") + ptx.count("red.global"))
        return call

driver.set_active(Elsewhere())
names = ("shared_kernel", "packed_kernel", "posterior_kernel")
engine._kernels = lambda: SimpleNamespace(**{name: Compile(name) for name in names})
far = torch.arange(40)  # each state goes on to the next, and to the first, which thus has many arcs
src, dst = torch.cat([far, far]), torch.cat([(far + 1) % 40, 0 * far])
graph = Hmm(far % 4, -far.double(), -far.double(), src, dst, -torch.arange(80).double())
tables = triton_tables.SharedTables(graph, 0.1, torch.device("cpu"), torch.float32)
assert all(sizes[i] for sizes, i in ((tables.ahead_sizes, 5), (tables.ahead_sizes, 6), (tables.back_sizes, 1)))
log_probs, lengths = torch.zeros(2, 3, 4), torch.tensor([3, 2], dtype=torch.int32)
engine._run_shared(log_probs, lengths, tables, True)
packed = triton_tables.pack([graph], torch.device("cpu"), torch.float64)
engine._run_packed(log_probs.double(), lengths, packed, torch.zeros(2, dtype=torch.int64), True)
"""


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """For compute capability 9.0, down to machine code: within 48 KB of shared memory, with barriers, no atomics."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in kernels] == ["shared_kernel", "posterior_kernel", "packed_kernel", "posterior_kernel"]
    for name, shared, barriers, atomics in kernels:
        assert int(shared) < 48 * 1024 and int(atomics) == 0
        assert int(barriers) >= {"shared_kernel": 8, "packed_kernel": 2}.get(name, 0)


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_kernels_at_full_size_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trigram and transcripts, float32 against torch in float64; the same bits again; the same inside a batch."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import graphs

    lengths = [300, 299, 200, 1, 17, 300, 64, 250]
    log_probs = log_probs_of(lengths, scale=3.0, outputs=graphs.OUTPUTS)
    for form in (graphs.denominator("trigram"), graphs.numerators(len(lengths), units=12)):
        assert assert_same(log_probs, lengths, form, torch.float32).valid.sum() >= 6
        values = log_probs.to(DEVICE, torch.float32)
        once, gradient = scored(TritonEngine(), values, lengths, form)
        for _ in range(5):
            again, gradient_again = scored(TritonEngine(), values, lengths, form)
            assert torch.equal(once.total, again.total) and torch.equal(gradient, gradient_again)
        alone = TritonEngine().score(values[:1], torch.tensor(lengths[:1]), form if isinstance(form, Hmm) else form[:1])
        torch.testing.assert_close(alone.total, once.total[:1], rtol=1e-6, atol=1e-6)
