"""Two systems on one test set: the difference of their error rates and its significance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.files import write_lines
from distill.scoring.bootstrap import FEWEST, grouped, interval, resampled
from distill.scoring.wer import Scored, alignment, counts, read_results

SPEAKERS = "utt2spk"  # in a decode folder, as Kaldi has it
NORMAL_FROM = 50  # segments, from which Gillick and Cox take the normal distribution


@dataclass(frozen=True)
class Difference:
    """Error rates in percent, ours - theirs (below 0: ours is better), with the 95 % interval of paired draws.

    better, worse: share of the draws in which ours has fewer or more errors, the probability of improvement of
    Bisani and Ney (2004), section 3.2; by: what was drawn, utterance or speaker; units: how many of them there are.
    """

    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    better: float
    worse: float
    by: str
    units: int
    samples: int
    seed: int


@dataclass(frozen=True)
class MatchedPairs:
    """Matched-pairs test over segments with errors: z and the two-sided p that both systems err equally often.

    z and p are None where all segments differ by the same count other than 0, so that there is no variance.
    """

    segments: int
    z: float | None
    p: float | None


def paired_bootstrap(
    ours: Sequence[Scored],
    theirs: Sequence[Scored],
    speakers: Mapping[str, str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Resample the same utterances (with `speakers`: the same speakers) for both systems.

    speakers: utterance -> speaker. Raises ValueError if the utterances differ, lack a speaker, have one speaker only,
    or no words.
    """
    pairs = matched(ours, theirs)
    table = np.hstack([counts([a for a, _ in pairs]), counts([b for _, b in pairs])])
    if not table[:, 1].sum() or not table[:, 3].sum():
        raise ValueError("no reference words: the test set is empty or has no transcripts")
    if speakers is not None:
        table = grouped(table, _speakers_of([a for a, _ in pairs], speakers))
        if len(table) == 1:
            raise ValueError("there is one speaker only, so speakers cannot be resampled; draw by utterance instead")
    whole, drawn = _rates(table.sum(0)[None])[0], _rates(resampled(table, samples, seed))
    differences = drawn[:, 0] - drawn[:, 1]
    low, high = interval(differences)
    better, worse = (round(float(share.mean()), 4) for share in (differences < 0, differences > 0))
    first, second, between = (round(float(rate), 3) for rate in (*whole, whole[0] - whole[1]))
    by = "utterance" if speakers is None else "speaker"
    return Difference(first, second, between, low, high, better, worse, by, len(table), samples, seed)


def _rates(sums: np.ndarray) -> np.ndarray:
    """(draws, 4): errors and words of both -> (draws, 2): rates in percent."""
    return 100 * sums[:, 0::2] / np.maximum(1, sums[:, 1::2])


def matched(ours: Sequence[Scored], theirs: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """The utterances of both systems by name; raises ValueError if one has others than the other."""
    mine, yours = ({s.name: s for s in system} for system in (ours, theirs))
    if set(mine) != set(yours):
        only = [f"{len(names)} only in the {which}{_some(names)}" for which, names in (
            ("first", set(mine) - set(yours)), ("second", set(yours) - set(mine)))]  # fmt: skip
        raise ValueError(f"the two systems were scored on different utterances: {', '.join(only)}; decode one set")
    return [(mine[name], yours[name]) for name in sorted(mine)]


def _some(names: Iterable[str], count: int = 3) -> str:
    shown = sorted(names)
    return f" ({', '.join(shown[:count])}{', …' if len(shown) > count else ''})" if shown else ""


def _speakers_of(scored: Sequence[Scored], speakers: Mapping[str, str]) -> list[str]:
    unknown = [s.name for s in scored if s.name not in speakers]
    if unknown:
        raise ValueError(f"{len(unknown)} utterances have no speaker{_some(unknown)}; draw by utterance instead")
    return [speakers[s.name] for s in scored]


# Matched pairs


def matched_pairs(ours: Sequence[Scored], theirs: Sequence[Scored]) -> MatchedPairs | None:
    """MAPSSWE: paired differences of errors over segments that two words right in both systems keep apart.

    Gillick and Cox (1989). None where the references differ, as those of units do, which follow the hypothesis.
    """
    pairs = matched(ours, theirs)
    if any(a.reference != b.reference for a, b in pairs):
        return None
    differences = np.array([a - b for pair in pairs for a, b in segments(*pair)], dtype=float)
    if not differences.any():
        return MatchedPairs(len(differences), 0.0, 1.0)
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    if spread == 0:
        return MatchedPairs(len(differences), None, None)
    z = float(differences.mean() * math.sqrt(len(differences)) / spread)
    p = math.erfc(abs(z) / math.sqrt(2))
    return MatchedPairs(len(differences), round(z, 3), float(f"{p:.3g}"))


def segments(ours: Scored, theirs: Scored) -> list[tuple[int, int]]:
    """Errors of both systems in every stretch of one utterance that two words right in both bound."""
    errors = np.stack([_errors_by_place(ours), _errors_by_place(theirs)], axis=1)
    places = np.flatnonzero(errors.any(1))
    if not len(places):
        return []
    words_between = places[1:] // 2 - (places[:-1] + 1) // 2  # words have odd places
    parts = np.split(places, np.flatnonzero(words_between >= 2) + 1)
    return [(int(a), int(b)) for a, b in (errors[part].sum(0) for part in parts)]


def _errors_by_place(scored: Scored) -> np.ndarray:
    """Insertions before the first word, error of the first word, insertions after it, ...: (2 words + 1,)."""
    errors, place = np.zeros(2 * len(scored.reference) + 1, dtype=np.int64), 0
    for reference, hypothesis in alignment(scored):
        if reference is None:
            errors[place] += 1
        else:
            errors[place + 1] = reference != hypothesis
            place += 2
    return errors


# Decode folders


def compare_folders(ours: Path, theirs: Path, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All tests of the difference between two decode folders, by utterance and by speaker.

    The latter is None where speakers are not known or fewer than FEWEST. Raises FileNotFoundError or ValueError for
    folders without results or on different utterances.
    """
    first, second = read_results(ours), read_results(theirs)
    speakers = next((read_speakers(folder) for folder in (ours, theirs) if (folder / SPEAKERS).exists()), None)
    enough = speakers is not None and len(set(speakers.values())) >= FEWEST
    tested = matched_pairs(first, second)
    return {
        "utterance": asdict(paired_bootstrap(first, second, None, samples, seed)),
        "speaker": asdict(paired_bootstrap(first, second, speakers, samples, seed)) if enough else None,
        "matched_pairs": asdict(tested) if tested else None,
    }


def read_speakers(folder: Path) -> dict[str, str]:
    """Utterance -> speaker; raises FileNotFoundError, ValueError for a line of other than two fields."""
    path = folder / SPEAKERS
    if not path.is_file():
        raise FileNotFoundError(f"no {SPEAKERS} in {folder}, so speakers are not known; stage 10 writes it")
    speakers = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t") if "\t" in line else line.split(maxsplit=1)
        if len(fields) != 2:
            raise ValueError(f"{path}, line {number}: expected UTTERANCE SPEAKER, got {line!r}")
        speakers[fields[0]] = fields[1]
    return speakers


def write_speakers(folder: Path, speakers: Mapping[str, str]) -> None:
    """Write utt2spk, sorted; with tabs, since names of other corpora may have blanks."""
    write_lines(folder / SPEAKERS, (f"{name}\t{speakers[name]}" for name in sorted(speakers)))
