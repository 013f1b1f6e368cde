"""Graphemic units: characters, BPE pieces trained on text by sentencepiece, letters of a fine-tuned model.

The first two mark the beginning of a word with "▁", so units read as text without a lexicon; the last its end.
A lang folder of pieces has icefall's order: blank, "<sos/eos>", "<unk>", then the pieces, and `bpe.model` beside them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import sentencepiece

from distill.graphs.lexicon import BLANK, Lexicon

log = logging.getLogger(__name__)

SPECIAL = (BLANK, "<sos/eos>", "<unk>")
BOUNDARY, PAUSE = "▁", "<sil>"
MOST_SENTENCES = 2_000_000  # for training, drawn from all: bounds the memory
LONGEST = 4000  # bytes of a sentence in training


def train_bpe(sentences: Iterable[str], pieces: int, seed: int = 0) -> bytes:
    """A sentencepiece unigram model, as icefall trains it, of at most `pieces` units; fewer for little text.

    The same sentences, pieces and seed give the same bytes. Raises ValueError for text without a word.
    """
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_not_empty(sentences), model_writer=model, vocab_size=pieces, model_type="unigram",
            character_coverage=1.0, user_defined_symbols=list(SPECIAL[:2]), unk_id=2, bos_id=-1, eos_id=-1,
            hard_vocab_limit=False, input_sentence_size=MOST_SENTENCES, shuffle_input_sentence=True,
            max_sentence_length=LONGEST, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(
            f"sentencepiece cannot learn {pieces} pieces from this text ({error}); set graphs.bpe_pieces"
        ) from None
    return model.getvalue()


def _not_empty(sentences: Iterable[str]) -> Iterator[str]:
    found = (piece for line in sentences for piece in _short(line.split()))
    first = next(found, None)
    if first is None:
        raise ValueError("no sentences to learn pieces from: the text corpus is empty")
    return chain([first], found)


def _short(words: list[str]) -> Iterator[str]:
    """A line, in parts of at most LONGEST bytes, as sentencepiece silently skips longer ones."""
    part: list[str] = []
    size = 0
    for word in words:
        bytes_of_word = len(word.encode()) + 1
        if size + bytes_of_word > LONGEST and part:
            yield " ".join(part)
            part, size = [], 0
        part.append(word)
        size += bytes_of_word
    if part:
        yield " ".join(part)


class Bpe:
    """Words to pieces with a trained model."""

    def __init__(self, model: bytes) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path) -> Bpe:
        """Read `bpe.model`; raises FileNotFoundError naming the stage that writes it."""
        if not path.is_file():
            raise FileNotFoundError(f"no BPE model at {path}; stage 2 writes it (run.sh --units bpe --stage 2)")
        return cls(path.read_bytes())

    @property
    def pieces(self) -> list[str]:
        """All units in the order of their ids, the special ones first."""
        return [self._model.id_to_piece(i) for i in range(self._model.get_piece_size())]

    def of(self, word: str) -> tuple[str, ...]:
        """Pieces of a word, "<unk>" for unknown characters."""
        return tuple(self._model.id_to_piece(i) for i in self._model.encode(word))


def bpe_lexicon(lexicon: Lexicon, model: Bpe) -> Lexicon:
    """The words of a lexicon, each written in pieces."""
    written = {word: (model.of(word),) for word in lexicon.pronunciations}
    unknown = [word for word, (pieces,) in written.items() if SPECIAL[2] in pieces]
    if unknown:
        log.warning("%d words hold characters that the text corpus lacks, such as %s", len(unknown), unknown[:5])
    return Lexicon(written)


def char_lexicon(lexicon: Lexicon) -> Lexicon:
    """The words of a lexicon, each written in characters after a word boundary."""
    return Lexicon({word: ((BOUNDARY, *word),) for word in lexicon.pronunciations})


def letter_lexicon(lexicon: Lexicon, letters: Sequence[str]) -> Lexicon:
    """The words of a lexicon in the units of a fine-tuned model and its case, a word boundary after each.

    So its transcripts were written ("H E L L O |"). Characters that it lacks become "<unk>", with a warning. Raises
    ValueError for units that are no letters, or where there is no "<unk>" for characters that they lack.
    """
    known = {unit for unit in letters if len(unit) == 1}
    if BOUNDARY not in known:
        raise ValueError(f"expected letters and a word delimiter ('|') as units of the model, got {list(letters[:40])}")
    cases = {case for case in ("isupper", "islower") if any(getattr(unit, case)() for unit in known)}
    in_case = str.upper if cases == {"isupper"} else str.lower if cases == {"islower"} else str
    unknown = {word: lacking for word in lexicon.pronunciations if (lacking := {*in_case(word)} - known)}
    if unknown and SPECIAL[2] not in letters:
        raise ValueError(
            f"{len(unknown)} words, such as {[*unknown][:5]}, have characters that are not among {sorted(known)}"
        )
    if unknown:
        log.warning("%d words hold characters that the model lacks, such as %s", len(unknown), [*unknown][:5])
    return Lexicon(
        {
            word: ((*(c if c in known else SPECIAL[2] for c in in_case(word)), BOUNDARY),)
            for word in lexicon.pronunciations
        }
    )


def char_symbols(lexicon: Lexicon) -> list[str]:
    """Units of a lexicon of characters, the special ones first."""
    return [*SPECIAL, *lexicon.phones]
