"""Error rates of test sets under conditions (`decoding.conditions`), beside those of the audio as it is."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.runs import Run, rate
from distill.report.table import Section, Table

TITLE = "Word error rate (%) under distortions, n-gram graph or a transducer's beam, with 95 % interval"
NOTES = "Every utterance is distorted in the same way for all models. clean: the audio as it is."


def table(runs: Sequence[Run]) -> Table:
    """One row per model and test set, in the main mode, and one column per condition; none where none was decoded."""
    conditions = sorted({d.condition or "" for run in runs for d in run.distorted})
    rows = []
    for run in runs:
        main = run.main_mode, run.main_method
        for test_set in sorted({d.test_set for d in run.distorted}):
            found = (run.decoding(test_set, *main, condition) for condition in ("", *conditions))
            rows.append((run.name, run.main_mode, test_set, *map(rate, found)))
    return Table(("model", "mode", "set", "clean", *conditions), tuple(rows), 3)


def sections(runs: Sequence[Run]) -> list[Section]:
    """Title and markdown lines; none without conditions."""
    found = table(runs)
    return [(TITLE, [*found.markdown(), "", NOTES])] if found.rows else []
