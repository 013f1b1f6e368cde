"""Units of the rows of a Hugging Face model's prediction layer, from vocab.json and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.models.pretrained.files import read_object

BLANK, BOUNDARY = "<blk>", "▁"
DELIMITER = "|"
"""The word separator where tokenizer_config.json does not state it."""


def units_of_folder(folder: Path, config: Mapping[str, Any], rows: int) -> tuple[str, ...] | None:
    """Units of `rows` rows, blank and word boundary by our names, `<row_N>` where no token is listed.

    None without a vocabulary. Raises ValueError where its files contradict each other, config.json or the tensors.
    """
    settings = read_object(folder / "tokenizer_config.json") or {}
    tokens = _tokens(folder, settings)
    if tokens is None:
        return None
    wrong = {token: row for token, row in tokens.items() if not _is_row(row, rows)}
    if wrong:
        raise ValueError(f"{folder}: tokens {wrong} of its vocabulary are not among the {rows} rows of its lm_head")
    named: dict[int, str] = {}
    for token, row in tokens.items():
        if row in named:
            raise ValueError(f"{folder}: row {row} is both '{named[row]}' and '{token}' in its vocabulary")
        named[row] = token
    blank, padding = config.get("pad_token_id", 0), _text(settings.get("pad_token"))
    if not _is_row(blank, rows):
        raise ValueError(f"{folder}: pad_token_id {blank} in its config.json, the blank, is not one of {rows} rows")
    if padding in tokens and tokens[padding] != blank:
        raise ValueError(
            f"{folder}: the blank is row {blank} (pad_token_id) in its config.json, but row {tokens[padding]}"
            f" (pad_token '{padding}') in its tokenizer_config.json; make both the one that it was trained with"
        )
    delimiter = _text(settings.get("word_delimiter_token", DELIMITER))
    units = [named.get(row, f"<row_{row}>") for row in range(rows)]
    return tuple(BLANK if row == blank else BOUNDARY if u == delimiter else u for row, u in enumerate(units))


def _tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """{token: row} of all files that list some, where there is a vocabulary."""
    listed = read_object(folder / "vocab.json")
    whole = read_object(folder / "tokenizer.json") or {}
    if listed is None and isinstance(whole.get("model"), dict):
        listed = whole["model"].get("vocab")
    if not isinstance(listed, dict):
        return None
    decoder = settings.get("added_tokens_decoder") or {}
    if any(isinstance(tokens, dict) for tokens in listed.values()):  # one vocabulary a language
        language = settings.get("target_lang")
        if language not in listed:
            raise ValueError(
                f"{folder}: vocab.json holds several vocabularies ({', '.join(listed)}), but target_lang in"
                f" tokenizer_config.json is {language!r}; set it to the one of the prediction layer"
            )
        listed = listed[language]
    tokens = dict(listed)
    added = [
        *(read_object(folder / "added_tokens.json") or {}).items(),
        *((item.get("content"), item.get("id")) for item in whole.get("added_tokens") or []),
        *((_text(token), int(row)) for row, token in decoder.items() if str(row).isdecimal()),
    ]
    for token, row in added:
        if tokens.setdefault(token, row) != row:
            raise ValueError(f"{folder}: '{token}' is row {tokens[token]} in vocab.json, but {row} in another file")
    return tokens


def _is_row(value: Any, rows: int) -> bool:
    return type(value) is int and 0 <= value < rows


def _text(token: Any) -> Any:
    """A token that is written with its properties, or as it is."""
    return token.get("content") if isinstance(token, dict) else token
