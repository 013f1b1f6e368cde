"""Checkpointed and compiled blocks train to the same weights, under the same names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from distill.batch import BEGIN
from distill.config.experiment import Experiment
from distill.models import checkpoint
from distill.train import compute
from tests.support.training import GATES, PLAIN, RANDOM, toy_trainer, write_letters, write_speech

CHECKPOINTED = {"checkpoint_activations": True}
CONFORMER = {**PLAIN, "block": "conformer", "conv_kernel": 4}


def trained(folder: Path, updates: int = 3, **changes) -> dict[str, torch.Tensor]:
    """Weights of a training of a few updates; they load strictly into a model that is not wrapped."""
    cuts, lang = write_speech(folder / "audio", 8), write_letters(folder / "lang")
    toy_trainer(folder / "exp", cuts, lang, optim={"updates": updates, "lr": 0.01}, **changes).run()
    return checkpoint.load_recogniser(folder / "exp")[0].state_dict()


@pytest.mark.parametrize(
    "changes",
    [{"noise": PLAIN}, {"noise": RANDOM}, {"noise": RANDOM, **GATES}, {"noise": {**CONFORMER, "dropout": 0.1}}],
    ids=["plain", "dropout and layer drop", "gates", "conformer"],
)
def test_checkpointed_blocks_have_the_same_gradients(tmp_path: Path, changes: dict) -> None:
    plain = trained(tmp_path / "plain", **changes)
    checkpointed = trained(tmp_path / "checkpointed", **changes, compute=CHECKPOINTED)
    assert plain.keys() == checkpointed.keys()
    assert [name for name in plain if not torch.equal(plain[name], checkpointed[name])] == []


def test_a_checkpointed_block_keeps_its_input_alone(tmp_path: Path) -> None:
    kept = []
    for settings in ({}, CHECKPOINTED):
        trainer = toy_trainer(
            tmp_path, write_speech(tmp_path / "audio", 8), write_letters(tmp_path / "lang"), compute=settings
        )
        batch, saved = next(trainer.plan.batches(0, BEGIN)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.nbytes) or x, lambda x: x):
            trainer.step.train()(batch, None)
        kept.append(sum(saved))
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize("noise", [PLAIN, CONFORMER], ids=["transformer", "conformer"])
def test_compiled_blocks_train_alike_and_load_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: dict
) -> None:
    plain = trained(tmp_path / "plain", noise=noise)
    calls = []

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))  # the compiler takes a minute
    compiled = trained(tmp_path / "compiled", noise=noise, compute={"compile": True, **CHECKPOINTED})
    assert 1 <= len(calls) <= 4  # graphs are shared by blocks and by lengths
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value)


def test_a_running_training_may_change_how_it_computes() -> None:
    values = {"name": "toy", "stage": 6, "objective": {"alpha": 1, "beta": 1}, "optim": {"updates": 1}}
    plain, other = (Experiment.parse({**values, **more}, "a test") for more in ({}, {"compute": CHECKPOINTED}))
    assert plain.identity() == other.identity() and other.compute.checkpoint_activations
    compute.wrap_blocks(plain.compute, [block := torch.nn.Linear(1, 1)])
    assert "forward" not in vars(block)


def test_a_cpu_computes_attention_step_by_step_in_half_precision() -> None:
    queries, keys, values = torch.randn(3, 2, 4, 50, 8).requires_grad_()

    def attention(precision: torch.dtype) -> torch.Tensor:
        with compute.computing_in(precision, torch.device("cpu")):
            return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)

    single, half = attention(torch.float32), attention(torch.bfloat16)
    assert "Flash" in single.grad_fn.name() and "Flash" not in half.grad_fn.name()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("precision", "able", "warned"),
    [("float32", {}, False), ("bfloat16", {"avx512_bf16": True}, False), ("bfloat16", {"avx512_f": True}, True),
     ("float16", {"avx512_bf16": True}, True), ("float16", {"avx512_fp16": True}, False)],
)  # fmt: skip
def test_a_precision_that_the_processor_lacks_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: str, able: dict, warned: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    compute.warn_of_slow_precision(getattr(torch, precision), torch.device("cpu"))
    assert [precision in record.message for record in caplog.records] == [True] * warned
