"""Corpora of SUPERB's tasks in their published layouts, from any speech, and an experiment to measure on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import soundfile
import torch

from distill.config.experiment import Experiment
from distill.models import checkpoint
from distill.models.recogniser import build_model

RATE = 16000
Speak = Callable[[str, int], np.ndarray]
"""Text and speaker -> samples (N,) in ±1."""
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bed")
PHONES = {"HELLO": "HH AH L OW", "WORLD": "W ER L D", "YES": "Y EH S"}
SETTINGS = {
    "name": "tiny", "stage": 6, "optim": {"updates": 1}, "objective": {"mmi": {}},
    "model": {
        "front_end": {"layers": [[8, 40, 20], [8, 8, 4], [8, 4, 4]], "norm": "frame", "causal": True},
        "encoder": {"dim": 16, "ffn_dim": 16, "layers": 2, "heads": 2, "position_kernel": 3, "position_groups": 2},
    },
}  # fmt: skip


def experiment(folder: Path, seed: int = 0) -> Path:
    """The folder of a model from random weights, as a training leaves it."""
    torch.manual_seed(seed)
    settings = Experiment.parse(SETTINGS, "test")
    content = {
        "experiment": settings.resolved(),
        "units": ["<blk>", "A"],
        "model": build_model(settings.model, 2).state_dict(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / "epoch-1.pt", content)
    return folder


def tones(text: str, speaker: int) -> np.ndarray:
    """A tone of 0.3 s for each word, its pitch the word's and a little the speaker's."""
    time = np.arange(round(0.3 * RATE)) / RATE
    pitches = [200 + sum(map(ord, word.lower())) % 97 * 20 + 3 * speaker for word in text.split()]
    return np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in pitches])


def write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="PCM_16")


def speech_commands(root: Path, speak: Speak = tones, speakers: int = 24) -> Path:
    """KS: training and validation are split by a hash of the file's name, as is a test part that is not used."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(3 * RATE)
    write(root / "speech_commands_v0.01/_background_noise_/white.wav", noise)
    write(root / "speech_commands_test_set_v0.01/_silence_/white.wav", noise[:RATE])
    for word in KEYWORDS:
        for speaker in range(speakers):
            write(root / "speech_commands_v0.01" / word / f"{speaker:08x}_nohash_0.wav", speak(word, speaker))
        heard = word if word != "bed" else "_unknown_"
        write(root / "speech_commands_test_set_v0.01" / heard / "ffff_nohash_0.wav", speak(word, speakers))
    return root


def librispeech(
    root: Path, speak: Speak = tones, texts: Sequence[str] = ("HELLO WORLD", "YES WORLD", "HELLO YES YES")
) -> Path:
    """PR and ASR: SPEAKERS.TXT and three parts of a speaker each."""
    rows = ["; made for tests", ";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for speaker, (part, count) in enumerate({"train-clean-100": 16, "dev-clean": 3, "test-clean": 3}.items(), 1):
        folder, lines = root / part / f"{speaker}" / "7", []
        for number, text in enumerate(islice(cycle(texts), count)):
            write(folder / f"{speaker}-7-{number:04}.flac", speak(text, speaker))
            lines.append(f"{speaker}-7-{number:04} {text}\n")
        (folder / f"{speaker}-7.trans.txt").write_text("".join(lines))
        rows.append(f"{speaker:<5}| F | {part:<17}| 1.00  | Tone")
    (root / "SPEAKERS.TXT").write_text("\n".join(rows) + "\n")
    return root


def fluent_commands(root: Path, speak: Speak = tones) -> Path:
    """IC: an intent is action, object and location."""
    intents = {"turn on the lights": ("activate", "lights", "none"), "volume up": ("increase", "volume", "none"),
               "heat down in the kitchen": ("decrease", "heat", "kitchen")}  # fmt: skip
    for part, speakers in {"train": range(12), "valid": (20,), "test": (30,)}.items():
        rows = []
        for speaker in speakers:
            for number, (text, intent) in enumerate(intents.items()):
                name = f"wavs/speakers/s{speaker}/{part}-{speaker}-{number}.wav"
                write(root / name, speak(text, speaker))
                rows.append([len(rows), name, f"s{speaker}", text, *intent])
        (root / "data").mkdir(exist_ok=True)
        with (root / "data" / f"{part}_data.csv").open("w", newline="") as file:
            head = ["", "path", "speakerId", "transcription", "action", "object", "location"]
            csv.writer(file).writerows([head, *rows])
    return root


SCORER = """#!/bin/bash
[[ -d $2 && $3 == -10 ]] || exit 1
echo "actTWV: 0.0100  maxTWV: 0.0$(grep -c YES "$1/benchmark.stdlist.xml")${1: -1}  Threshold: 2.0" >"$1/score.out"
"""


def quesst(root: Path, speak: Speak = tones) -> Path:
    """QbE: documents, queries of both kinds, and in place of the corpus' scorer one that counts detections."""
    spoken = {"utterances": KEYWORDS * 3, "dev": KEYWORDS[:2], "eval": KEYWORDS[2:4]}
    for kind, words in spoken.items():
        names = [f"Audio/{kind}_{number:03}.wav" for number in range(len(words))]
        for number, (name, word) in enumerate(zip(names, words)):
            write(root / name, speak(word, number // len(KEYWORDS)))
        (root / "scoring").mkdir(exist_ok=True)
        lines = (
            f"quesst14Database/{name} {language}\n"
            for name, language in [*zip(names, cycle(["nnenglish"])), ("x.wav", "czech")]
        )
        (root / f"scoring/language_key_{kind}.lst").write_text("".join(lines))
    for part in ("dev", "eval"):
        (root / f"scoring/groundtruth_quesst14_{part}").mkdir(exist_ok=True)
    (root / "scoring/score-TWV-Cnxe.sh").write_text(SCORER)
    (root / "scoring/score-TWV-Cnxe.sh").chmod(0o755)
    return root


def voxceleb(root: Path, splits: Path, speak: Speak = tones, speakers: int = 4) -> Path:
    """SID: the corpus, and iden_split.txt in the folder `splits`, where s3prl looks for it before it downloads it."""
    lines = []
    for speaker in range(speakers):
        for number, split in enumerate((1, 1, 1, 1, 2, 3)):
            name = f"id{10001 + speaker}/video/{number:05}.wav"
            write(root / ("test" if speaker == 0 else "dev") / "wav" / name, speak("hello world", 40 * speaker))
            lines.append(f"{split} {name}\n")
    splits.mkdir(parents=True, exist_ok=True)
    (splits / "iden_split.txt").write_text("".join(lines))
    return root


def audio_snips(root: Path, speak: Speak = tones) -> Path:
    """SF: tags of slots and the intent behind each transcript; a speaker of each of s3prl's lists."""
    sentences = {"PLAY HELLO": "O B-track", "PLAY HELLO WORLD": "O B-track I-track", "RATE IT": "O O"}
    lines = []
    for part, speaker in {"train": "Ivy", "valid": "Aditi", "test": "Brian"}.items():
        for number, (text, tags) in enumerate(sentences.items()):
            name = f"{speaker}-snips-{part}-{number}"
            write(root / part / speaker / f"{name}.wav", speak(text, number))
            lines.append(f"{name} BOS {text} EOS\tO {tags} Play\n")
    (root / "all.iob.snips.txt").write_text("".join(lines))
    return root


def iemocap(root: Path, splits: Path, speak: Speak = tones) -> Path:
    """ER: five sessions of four emotions, and lists of each fold in the folder `splits`, as for `voxceleb`."""
    paths: dict[int, list[dict[str, str]]] = {}
    for session in range(1, 6):
        scene, lines = f"Ses0{session}F_impro01", []
        paths[session] = []
        for number, emotion in enumerate(("neu", "hap", "ang", "sad", "exc", "fru")):
            name = f"{scene}_F00{number}"
            write(root / f"Session{session}/sentences/wav/{scene}/{name}.wav", speak(emotion, session))
            lines.append(f"[6.2 - 8.2]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n")
            paths[session].append({"path": f"Session{session}/{name}.wav"})
        labels = root / f"Session{session}/dialog/EmoEvaluation/{scene}.txt"
        labels.parent.mkdir(parents=True)
        labels.write_text("".join(lines))
    splits.mkdir(parents=True, exist_ok=True)
    for session, own in paths.items():
        others = [path for other, each in paths.items() if other != session for path in each]
        for part, content in (("train", others), ("test", own)):
            listed = json.dumps({"meta_data": content})
            (splits / f"test_session{session}_{part}_metadata.json").write_text(listed)
    return root
