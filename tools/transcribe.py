"""Transcribe files, a pipe or the microphone with a trained experiment.

    transcribe.py --experiment egs/librispeech/exp-mini/ss a.wav b.flac      one line of text per file
    arecord -f S16_LE -r 16000 | transcribe.py --experiment DIR -            raw 16-bit audio or WAV from a pipe
    transcribe.py --experiment DIR --microphone                              until Ctrl-C
    transcribe.py --experiment DIR --segments --format json talk.flac        an utterance a line, with times
    transcribe.py --experiment hf:facebook/wav2vec2-base-960h a.wav          a published model, or a folder of one

Streaming models run chunk by chunk (--partial shows the text as it grows), others over whole utterances. A pipe and
the microphone are cut into utterances in pauses, files with --segments. Published models of CTC are decoded greedily,
a transducer by the beam of its experiment.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from distill.decode.online import ONLINE
from distill.decode.word_files import ctm_lines
from distill.recipe.script import run_script
from distill.runtime import audio
from distill.runtime.open import open_session, place_of
from distill.runtime.pipe import read_pipe
from distill.runtime.transcriber import Transcriber, open_search
from distill.text import Word


def main() -> None:
    args = parser().parse_args()
    if bool(args.audio) == args.microphone:
        raise ValueError("give audio files, or - for a pipe, or --microphone")
    place = place_of(args.experiment)
    session = open_session(place, args.runtime, args.mode, args.output, args.threads)
    search = open_search(place, session.runner, args.graph, args.beam, args.data_dir)
    for name, blocks in streams(args):
        transcriber = Transcriber(session, search, args.segments or name in ("-", "microphone"))
        empty = True
        for number, words in enumerate(transcribe(transcriber, blocks, args.partial)):
            empty = False
            for line in lines(args, name, number, words):
                print(line, flush=True)
        if empty and args.format == "text":
            print("" if len(args.audio) < 2 else f"{name}\t", flush=True)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("audio", nargs="*", help="files; - reads raw s16le 16 kHz mono, WAV or FLAC from stdin")
    options.add_argument(
        "--experiment", required=True, help="experiment folder, its export folder, or hf:NAME, FOLDER, fairseq:FILE"
    )
    options.add_argument("--runtime", default="", help="onnx, int8 (both after stage 12) or torch")
    options.add_argument("--mode", default="", help="streaming or offline; default: streaming where the model can")
    options.add_argument(
        "--output", default="",
        help="main (over the graph), ctc (greedy) or transducer (a beam); default: the first that was trained",
    )  # fmt: skip
    options.add_argument("--data-dir", type=Path, help="its lang folder, graphs and n-gram, not those of the export")
    options.add_argument("--graph", type=Path, help="HLG.fst; default: the one in the export folder")
    options.add_argument("--beam", type=float, help=f"of the search over a graph (default: {ONLINE.beam:g})")
    options.add_argument("--piece", type=float, default=0.1, help="seconds of audio fed at a time")
    options.add_argument("--resample", action="store_true", help="accept other sample rates than 16 kHz")
    options.add_argument("--channel", type=int, help="which channel of audio that has several, from 0")
    options.add_argument("--partial", action="store_true", help="show the text as it grows (stderr)")
    options.add_argument("--real-time", action="store_true", help="feed files as fast as they were spoken")
    options.add_argument("--segments", action="store_true", help="one line per utterance of a file, not one for all")
    options.add_argument(
        "--format", choices=("text", "ctm", "json"), default="text",
        help="ctm: NAME CHANNEL BEGIN DURATION WORD CONFIDENCE; json: an object per utterance",
    )  # fmt: skip
    options.add_argument("--microphone", action="store_true")
    options.add_argument("--threads", type=int, default=1)
    return options


def streams(args: argparse.Namespace) -> Iterator[tuple[str, Iterable[np.ndarray]]]:
    """Name and blocks of audio of each input."""
    size = max(1, int(args.piece * audio.SAMPLE_RATE))
    if args.microphone:
        yield "microphone", audio.microphone(args.piece)
    for name in args.audio:
        if name == "-":
            yield name, read_pipe(sys.stdin.buffer, size, args.resample, args.channel)
        else:
            wave = audio.read_audio(Path(name), args.resample, args.channel)
            blocks = (wave[start : start + size] for start in range(0, len(wave), size))
            yield name, paced(blocks) if args.real_time else blocks


def paced(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Each block when its last sample would have been recorded."""
    due = time.monotonic()
    for block in blocks:
        due += len(block) / audio.SAMPLE_RATE
        time.sleep(max(0.0, due - time.monotonic()))
        yield block


def transcribe(transcriber: Transcriber, blocks: Iterable[np.ndarray], partial: bool) -> Iterator[tuple[Word, ...]]:
    """Utterances of one stream, ended by Ctrl-C too; partial: print partial results to stderr."""
    shown: tuple[str, ...] = ()
    try:
        for block in blocks:
            yield from transcriber.feed(block)
            if partial and (words := transcriber.partial()) != shown:
                begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
                print(begin + " ".join(words), end=end, file=sys.stderr, flush=True)
                shown = words
    except KeyboardInterrupt:
        pass
    if shown and sys.stderr.isatty():  # on a terminal the final text takes the partial one's line
        print("\r\x1b[K", end="" if sys.stdout.isatty() else "\n", file=sys.stderr, flush=True)
    yield from transcriber.finish()


def lines(args: argparse.Namespace, name: str, number: int, words: Sequence[Word]) -> Iterable[str]:
    """An utterance in the chosen format."""
    text = " ".join(word.text for word in words)
    if args.format == "ctm":
        return ctm_lines(Path(name).stem, words)
    if args.format == "json":
        content = {"name": name, "utterance": number, "text": text, "words": [asdict(word) for word in words]}
        return [json.dumps(content, ensure_ascii=False)]
    return [text if len(args.audio) < 2 else f"{name}\t{text}"]


if __name__ == "__main__":
    run_script(main)
