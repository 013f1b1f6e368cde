"""Which implementation the native engine takes, and the C++ kernel in every width it can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.fsa.graph import Fsa, Hmm
from distill.graphs import topology
from distill.kernels import build
from distill.lfmmi import NativeEngine, TorchEngine, build_engine, cpu, factored
from distill.lfmmi.cpu import CpuEngine
from tests.support.random_graphs import random_fsa, random_log_probs, score_and_gradient

HMM = topology.ctc(random_fsa(3, 5))
LOG_PROBS, LENGTHS = random_log_probs(2, 6), torch.tensor([6, 4])


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    for cached in (build.load_kernel, cpu._library):
        cached.cache_clear()
    yield
    for cached in (build.load_kernel, cpu._library):
        cached.cache_clear()


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize("broken", [False, True])
def test_an_error_shows_what_the_compiler_lacks(broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo no such header >&2; exit 1; }\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler) if broken else "")
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    for compiled in (lambda: NativeEngine().score(LOG_PROBS, LENGTHS, HMM), lambda: build.load_kernel("search")):
        with pytest.raises(ValueError, match="no such header" if broken else r"no C\+\+ compiler .*install one"):
            compiled()


def test_on_a_cpu_the_kernel_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = TorchEngine().score(LOG_PROBS, LENGTHS, HMM).total
    monkeypatch.setattr(TorchEngine, "score", None)
    torch.testing.assert_close(NativeEngine().score(LOG_PROBS, LENGTHS, HMM).total, expected)


def test_engines_are_built_by_name() -> None:
    assert isinstance(build_engine("native", leaky=0.1), NativeEngine)
    engine = build_engine("torch", 0.1, "float64")
    assert isinstance(engine, TorchEngine) and (engine.leaky, engine.precision) == (0.1, "float64")
    with pytest.raises(ValueError, match="'nativ' is not built"):
        build_engine("nativ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9, 17])
@pytest.mark.parametrize("threads", [1, 3])
def test_groups_of_every_width_and_any_threads(dtype: torch.dtype, batch: int, threads: int) -> None:
    """Utterances share registers, threads share utterances; each must come out as alone."""
    graph = topology.ctc(random_fsa(12, 4, 0.2, units=9))
    log_probs = random_log_probs(batch, 11, 3.0, units=9)
    lengths = torch.randint(0, 12, (batch,), generator=torch.Generator().manual_seed(batch))
    lengths[0] = 11
    for shared in (True, False):
        graphs = graph if shared else [graph] * batch
        expected = score_and_gradient(TorchEngine(), log_probs, lengths, graphs)
        found = score_and_gradient(CpuEngine(threads=threads), log_probs.to(dtype), lengths, graphs)
        bound = 1e-5 if dtype == torch.float32 else 1e-11
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0].double(), expected[0], rtol=bound, atol=bound)
        torch.testing.assert_close(found[2].double(), expected[2], rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("needs_posterior", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_an_utterance_that_ends_first_leaves_its_group_alone(
    dtype: torch.dtype, needs_posterior: bool, width: int
) -> None:
    """Without the second pass that would make a wrong total good: every total is sound at once."""
    hmm = topology.ctc(random_fsa(60, 4, 0.1, units=9))
    log_probs, lengths = random_log_probs(3, 90, 3.0, units=9), torch.tensor([90, 71, 40])
    batch = cpu._Batch(log_probs.to(dtype), lengths, needs_posterior)
    batch.score_shared(cpu._Graph(hmm, 0.0), 0.0, 1, size=min(width, cpu._library().lfmmi_lanes(dtype.itemsize)))
    assert batch.status.tolist() == [0, 0, 0]
    expected = TorchEngine().score(log_probs, lengths, hmm).total
    torch.testing.assert_close(batch.total, expected, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=0)


SEGMENT = 4  # frames that a direction holds at once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leaky", [0.0, 0.01])
@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 15, 16, 17, 25, 40])
def test_frames_made_again_are_those_that_were(dtype: torch.dtype, leaky: float, frames: int) -> None:
    """To the last bit: segments of any size give what keeping every frame gives, and the reference agrees."""
    hmm = topology.ctc(random_fsa(12, 4, 0.2, units=9))
    log_probs = random_log_probs(5, frames, 3.0, units=9)
    lengths = torch.tensor([frames, 1, max(1, frames - SEGMENT), (frames + 1) // 2, 0])
    whole = _in_segments(hmm, log_probs.to(dtype), lengths, leaky, frames)
    for segment in (1, SEGMENT, 2 * SEGMENT + 1):
        total, posterior = _in_segments(hmm, log_probs.to(dtype), lengths, leaky, segment)
        assert torch.equal(posterior, whole[1])
        torch.testing.assert_close(total, whole[0], rtol=1e-14, atol=1e-14)  # added up in another order
    exact = score_and_gradient(TorchEngine(leaky), log_probs, lengths, hmm)
    bound = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(whole[0], exact[0], rtol=bound, atol=bound)
    torch.testing.assert_close(whole[1].double(), exact[2], rtol=0, atol=bound)


def _in_segments(hmm: Hmm, log_probs: torch.Tensor, lengths: torch.Tensor, leaky: float, segment: int) -> Any:
    batch = cpu._Batch(log_probs, lengths, True)
    batch.score_shared(cpu._Graph(hmm, leaky), leaky, 1, segment=segment)
    return batch.total, batch.posterior


def test_memory_grows_with_the_root_of_the_length_and_not_with_the_batch() -> None:
    """Sixteen times the frames take four times the checkpoints and frames held; groups come one after the other."""
    hmm = topology.ctc(random_fsa(60, 4, 0.05, units=9))

    def held(batch: int, frames: int) -> int:
        cpu._library().lfmmi_release()
        _in_segments(hmm, torch.zeros(batch, frames, 9), torch.full((batch,), frames), 0.0, 0)
        return cpu._library().lfmmi_held()

    short, long = held(16, 400), held(16, 6400)
    assert long < 4.5 * short
    everything = 6400 * hmm.num_states * cpu._library().lfmmi_lanes(4) * 4
    assert long < everything / 10
    assert held(64, 400) == short
    cpu._library().lfmmi_release()
    assert cpu._library().lfmmi_held() == 0


def test_going_backward_twice_gives_the_same() -> None:
    """The gradient takes the posterior's memory, so the second time it is computed again."""
    leaf = LOG_PROBS.clone().requires_grad_()
    total = CpuEngine().score(leaf, LENGTHS, HMM).total
    weights = torch.tensor([2.0, 0.0], dtype=leaf.dtype)
    first, second = (torch.autograd.grad(total, leaf, weights, retain_graph=True)[0] for _ in range(2))
    other = torch.autograd.grad(total, leaf, weights.flip(0))[0]
    assert torch.equal(first, second) and first[0].any() and not first[1].any()
    torch.testing.assert_close(other, 2 * score_and_gradient(CpuEngine(), LOG_PROBS, LENGTHS, HMM)[2] - first)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Hmm, torch.Tensor, torch.Tensor]:
    """A graph with any arcs, dead ends and parallel ones among them; outputs flat to peaky; lengths from 0."""
    states, units = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    state, weight = st.integers(0, states - 1), st.floats(-20, 3)
    arcs = draw(st.lists(st.tuples(state, state, st.integers(1, units - 1), weight), max_size=30))
    final = draw(st.dictionaries(state, weight, min_size=1))
    kind = draw(st.sampled_from(topology.KINDS))
    graph = topology.monophones(kind, units).compose(Fsa.from_arcs(arcs, final, states))
    batch, frames = draw(st.integers(1, 10)), draw(st.integers(1, 9))
    outputs = topology.monophones(kind, units).num_outputs
    scale, seed = draw(st.sampled_from([0.1, 1.0, 10.0, 200.0])), draw(st.integers(0, 99))
    lengths = draw(st.lists(st.integers(0, frames), min_size=batch, max_size=batch))
    return graph, random_log_probs(batch, frames, scale, seed, outputs), torch.tensor(lengths)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_kernel_and_reference_agree_on_any_graph(case: tuple[Hmm, torch.Tensor, torch.Tensor]) -> None:
    """1e-6 relative and 1e-5 absolute is what every implementation is held to."""
    graph, log_probs, lengths = case
    graphs = [graph] * len(lengths)
    exact = score_and_gradient(TorchEngine(), log_probs, lengths, graphs)
    runs = [(CpuEngine(), graphs)]
    if torch.isfinite(graph.final).any() and torch.isfinite(graph.initial).any():
        runs += [(CpuEngine(), graph), (TorchEngine(), graph)]
    for engine, how in runs:
        total, valid, gradient = score_and_gradient(engine, log_probs, lengths, how)
        assert torch.equal(valid, exact[1])
        torch.testing.assert_close(total, exact[0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(gradient, exact[2], rtol=0, atol=1e-5)


def test_factoring_a_graph_without_hubs_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each arc is looked at a few times, however many states share their targets in vain."""
    graph = topology.ctc(random_fsa(12, 0, 0.9, units=9))
    looked = []
    monkeypatch.setattr(factored, "_proportional", _counting(factored._proportional, looked))
    step = factored.factor(graph, np.arange(graph.num_states))
    assert sum(looked) <= factored.LOOKS * len(graph.src)
    dense = torch.zeros(graph.num_states, graph.num_states, dtype=torch.float64)
    dense.index_put_((graph.dst, graph.src), graph.weight.exp(), accumulate=True)
    product = _dense(step.outward) @ _dense(step.inward) + np.diag(step.own)
    np.testing.assert_allclose(product, dense.numpy(), rtol=1e-12)


def _counting(function: Callable[..., Any], looked: list[int]) -> Callable[..., Any]:
    def counted(dst: np.ndarray, *rest: Any) -> Any:
        looked.append(len(dst))
        return function(dst, *rest)

    return counted


def _dense(matrix: factored.Matrix) -> np.ndarray:
    dense = np.zeros((matrix.rows, matrix.columns))
    np.add.at(dense, (matrix.row, matrix.column), matrix.weight)
    return dense
