"""Log-probabilities of a model's outputs, over whole utterances or chunk by chunk, and their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch

from distill.batch import Batch, Output
from distill.models.recogniser import Recogniser


@torch.no_grad()
def offline(model: Recogniser, batches: Iterable[Batch]) -> Iterator[tuple[str, np.ndarray]]:
    """Forward over whole utterances (masked, if the model has chunks): pairs of id and (T, V) float32.

    Of a model whose transducer is selected the frames (T, J) that its predictor's outputs are joined with.
    """
    for batch in batches:
        output = model(batch.wave, batch.samples)
        yield from _by_utterance(model, batch, selected(model, output), output.lengths)


def selected(model: Recogniser, output: Output) -> torch.Tensor:
    """Of a forward, what `Recogniser.step` returns: logits of the selected output, or a transducer's frames."""
    if model.selected == "transducer" and output.joint is not None:
        return output.joint.frames
    return output.ctc_logits if model.selected == "ctc" and output.ctc_logits is not None else output.logits


def normalised(model: Recogniser, selected: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of logits; a transducer's frames as they are."""
    return selected.float() if model.selected == "transducer" else selected.float().log_softmax(-1)


@torch.no_grad()
def streaming(model: Recogniser, batches: Iterable[Batch], step_samples: int) -> Iterator[tuple[str, np.ndarray]]:
    """`Recogniser.step` over blocks of `step_samples`, as audio streams: pairs as of `offline`."""
    for batch in batches:
        state = model.initial_state(len(batch.ids))
        pieces, lengths = [], torch.zeros(len(batch.ids), dtype=torch.int64, device=batch.wave.device)
        size = batch.wave.shape[1]
        for start in range(0, size, step_samples):
            end = min(size, start + step_samples)
            arrived = (batch.samples - start).clamp(0, end - start)
            logits, frames, state = model.step(batch.wave[:, start:end], state, arrived, final=end == size)
            pieces.append(logits)
            lengths += frames
        yield from _by_utterance(model, batch, torch.cat(pieces, 1), lengths)


@torch.no_grad()
def in_windows(model: Recogniser, pieces: Iterable[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """Masked forward over one utterance of any length in bounded memory: blocks (n,) of audio -> (T, V) a window.

    A window yields `frames` frames and begins `reach` frames before them. That is their receptive field, so the values
    are those of a forward over the whole utterance. Raises ValueError for a model with unbounded left context.
    """
    hop, ahead, chunk = model.front_end.hop, model.front_end.ahead + 2 * model.front_end.hop, reach(model)[1]
    frames, before = -(-frames // chunk) * chunk, reach(model)[0]
    audio, total, begins, given = np.zeros(0, np.float32), 0, 0, 0
    for piece in chain(pieces, [None]):
        if piece is not None:
            audio, total = np.concatenate([audio, piece]), total + len(piece)
        end = int(model.front_end.lengths(torch.tensor(total)))
        while end > given and (piece is None or total >= (given + frames) * hop + ahead):
            output = model(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
            until = end if piece is None else given + frames
            yield normalised(model, selected(model, output)[0, given - begins : until - begins]).numpy()
            given = until
            audio = audio[max(0, (given - before - begins) * hop) :]
            begins = max(begins, given - before)


def reach(model: Recogniser) -> tuple[int, int]:
    """Left context of a chunk through all blocks, in frames of whole chunks; and frames of a chunk."""
    streaming, encoder, front = model.settings.streaming, model.settings.encoder, model.front_end
    chunk = streaming.chunk_frames
    if not chunk or streaming.sink_frames:
        raise ValueError("the model has unbounded left context: windows need chunks, and no attention sinks")
    one_block = next(n for n in count() if not streaming.visible(chunk - 1, (n + 1) * chunk))
    one_block += -(-encoder.conv_span[0] // chunk)
    beginning = encoder.position_kernel + -(-front.context // front.hop) + 1
    return (encoder.layers * one_block + -(-beginning // chunk)) * chunk, chunk


def _by_utterance(
    model: Recogniser, batch: Batch, output: torch.Tensor, lengths: torch.Tensor
) -> Iterator[tuple[str, np.ndarray]]:
    values = normalised(model, output).cpu().numpy()
    for cut_id, frames, length in zip(batch.ids, values, lengths.tolist()):
        yield cut_id, frames[:length]


VALUES, FRAMES = "log_probs.npy", "frames.json"


def write(folder: Path, log_probs: Mapping[str, np.ndarray]) -> None:
    """Write utterances, (T, V) float32 by id, concatenated over time; their order is kept."""
    frames = {name: len(each) for name, each in log_probs.items()}
    outputs = max((each.shape[1] for each in log_probs.values()), default=0)
    (folder / FRAMES).write_text(json.dumps(frames) + "\n", encoding="utf-8")
    shape = (sum(frames.values()), outputs)
    if not all(shape):
        np.save(folder / VALUES, np.zeros(shape, np.float32))
        return
    values = np.lib.format.open_memmap(folder / VALUES, "w+", np.float32, shape)
    np.concatenate(list(log_probs.values()), out=values)
    values.flush()


def read(folder: Path) -> dict[str, np.ndarray]:
    """Read what `write` wrote: (T, V) float32 by id."""
    frames: dict[str, int] = json.loads((folder / FRAMES).read_text(encoding="utf-8"))
    ends = np.cumsum(list(frames.values()), dtype=np.int64)
    return dict(zip(frames, np.split(np.load(folder / VALUES), ends[:-1])))
