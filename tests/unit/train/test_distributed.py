"""Two processes give the gradient of one that sees both halves of the batch, whatever their sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from distill.batch import Batch
from distill.train.distributed import Ranks, join
from tests.unit.train.test_loop import tone_batches, trainer

UNEQUAL = (1600, 400)  # samples of the two utterances: the halves count different numbers of frames


def half(which: int | None):
    def batches(epoch: int, skip: int = 0):
        for batch in tone_batches(epoch, skip):
            samples = torch.tensor(UNEQUAL)
            if which is None:
                yield Batch(batch.ids, batch.wave, samples, batch.graphs)
            else:
                size = UNEQUAL[which]
                one = slice(which, which + 1)
                yield Batch(batch.ids[one], batch.wave[one, :size], samples[one], batch.graphs[one])

    return batches


def train(folder: Path, ranks: Ranks, which: int | None) -> dict[str, torch.Tensor]:
    ours = trainer(folder, half(which), optim={"updates": 3, "lr": 0.01, "clip": 0.5})
    ours.ranks = ranks
    ours.parallel = ranks.wrap(ours.step, torch.device("cpu"))
    ours.model.encoder.dropout.p = 0.0
    for block in ours.model.encoder.blocks:
        block.dropout.p = 0.0
    ours.run()
    return ours.model.state_dict()


def process(rank: int, folder: Path, port: int) -> None:
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks, _ = join("cpu")
    state = train(folder / "two", ranks, rank)
    torch.save(state, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "two").mkdir()
    mp.spawn(process, (tmp_path, port), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = train(tmp_path / "one", Ranks(), None)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="--device cuda: torch sees no GPU"):
        join("cuda")
