"""RESULTS.md, the pages of committed results that it links to, and the figures of README.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from distill.config.experiment_set import ExperimentSet
from distill.files import write_text
from distill.report import benchmarks, plots, recognition, seeds
from distill.report.experiments import write_page
from distill.report.paper import steps
from distill.report.runs import GRAPH, Run, read_runs, test_sets
from distill.report.table import number

FIGURE = "docs/pipeline"
MAIN_JOB = "egs/librispeech/run.sh --mini true"
MARKS = ("<!-- {}: written by tools/report.py -->\n", "<!-- end of {} -->")  # around generated parts of README.md
CLAIMS = {  # by label, in the order of RESULTS.md
    "mini": "Two steps of distillation: size, streaming and speed against error rate",
    "mini-dynamic": "One model, many latencies (trained from an earlier SN)",
    "mini-objectives": "Objectives: hidden MSE, logit MSE and LF-MMI",
    "mini-biphones": "Units: biphones tied by their counts",
    "full": "Real speech of many speakers",
}
LINKED = ("mini-dynamic", "mini-biphones")  # labels whose tables RESULTS.md leaves to their pages
INTRODUCTION = """# Results

Word error rates in percent over an n-gram graph, with 95 % intervals over utterances; streaming is `Recogniser.step`.
T of librispeech/mini has 0.8 h of labelled speech, its students 2.4 h unlabelled as well. Where teachers are
pre-trained, a heading says so.
"""


def write(root: Path) -> list[Path]:
    """Write every page and figure of a repository from its result files; returns the pages."""
    folders = results(root)
    pages = [write_page(folder, "README.md", title_of(folder)) for folder in folders]
    for settings, folder in sets(root):
        pages.append(folder / "README.md")
        write_text(pages[-1], seeds.page(settings, folder))
    pages += [root / "benchmarks/results/README.md", root / "RESULTS.md", root / "README.md"]
    write_text(pages[-3], benchmarks.page(root))
    write_text(pages[-2], whole(root))
    write_text(pages[-1], readme(root))
    if folders and len(roles := steps(read_runs(folders[0]))) > 2:
        (root / FIGURE).parent.mkdir(exist_ok=True)
        pipeline(roles, root / FIGURE)
    return pages


def results(root: Path) -> list[Path]:
    """Folders of committed results, egs/<corpus>/results/<label>, in the order of their claims."""
    folders = {path.parents[1] for path in root.glob("egs/*/results/*/*/result.json")}
    order = list(CLAIMS)
    return sorted(folders, key=lambda f: (order.index(f.name) if f.name in order else len(order), f.as_posix()))


def sets(root: Path) -> list[tuple[ExperimentSet, Path]]:
    """Sets of experiments with committed results, and their folders, egs/<corpus>/results/<set>."""
    folders = sorted({path.parents[2] for path in root.glob("egs/*/results/*/seed-*/*/result.json")})
    return [(ExperimentSet.read(folder.parents[1] / "conf/sets" / f"{folder.name}.yaml"), folder) for folder in folders]


def title_of(folder: Path) -> str:
    corpus = folder.parents[1].name
    return f"{CLAIMS[folder.name]} ({corpus}, {folder.name})" if folder.name in CLAIMS else f"{corpus}, {folder.name}"


def whole(root: Path) -> str:
    """The text of RESULTS.md: a table per folder of results or set, links to others, and the goals of benchmarks."""
    parts, further = [INTRODUCTION], []
    for folder in results(root):
        link = f"[{title_of(folder)}]({(folder / 'README.md').relative_to(root).as_posix()})"
        if folder.name in LINKED:
            further.append(link)
        else:
            table = "\n".join(recognition.error_table(read_runs(folder), GRAPH, summary=True).markdown())
            parts.append(f"## {link}\n\n{table}\n")
    for settings, folder in sets(root):
        link = f"[{settings.title}]({(folder / 'README.md').relative_to(root).as_posix()})"
        if settings.tables and (short := settings.tables[0].short).rows:
            table = "\n".join(seeds.result_table(short, seeds.read_seeds(folder)).markdown())
            parts.append(f"## {link}\n\n{table}\n")
        else:
            further.append(link)
    if further:
        parts.append(f"Further results: {'; '.join(further)}.\n")
    goals = benchmarks.goal_table(root)
    if goals.rows:
        parts.append("## [Benchmarks](benchmarks/results/README.md)\n\n" + "\n".join(goals.markdown()) + "\n")
    return "\n".join(parts)


# README.md


def readme(root: Path) -> str:
    """README.md with its generated parts written again. Raises ValueError where their marks are missing."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    parts = {"results": [f"- {line}" for line in highlights(root)], "output": list(final_table(root))}
    for name, lines in parts.items():
        begin, end = (line.format(name) for line in MARKS)
        before, mark, rest = text.partition(begin)
        if not mark or end not in rest:
            raise ValueError(f"{path} has no lines {begin.strip()} and {end}; put them where its {name} belong")
        text = before + begin + "\n".join(["", *lines, "", end]) + rest.partition(end)[2]
    return text


def final_table(root: Path) -> Iterator[str]:
    """The error rates that the main job prints at its end, as a block of code."""
    for folder in results(root):
        if folder.name == "mini":
            runs = [run for run in read_runs(folder) if run.training.command == MAIN_JOB]
            yield f"    {recognition.TITLES[GRAPH]}"
            yield from (f"    {line}" for line in recognition.error_table(runs, GRAPH).terminal(100))


def highlights(root: Path) -> Iterator[str]:
    """Lines of README.md, each with a link to its source."""
    for folder in results(root):
        runs, corpus = read_runs(folder), folder.parents[1].name
        roles, link = steps(runs), f"[{corpus}](egs/{corpus}/results/{folder.name}/README.md)"
        if folder.name == "mini" and {"teacher", "second step"} <= set(roles):
            yield from _of_steps(roles, link)
        elif folder.name == "full" and (model := roles.get("second step") or roles.get("teacher")):
            rates = ", ".join(f"{_rate(model, name)} on {name}" for name in test_sets(runs))
            yield f"**Real speech** of many speakers: word error rates (%) of {model.name} are {rates} ({link})"
    yield from benchmarks.highlights(root)


def _of_steps(roles: Mapping[str, Run], link: str) -> Iterator[str]:
    teacher, student = roles["teacher"], roles["second step"]
    sets = test_sets([teacher, student])
    names = {"T": "teacher", "SN": "first step", "SS": "second step", "one step": "single step"}
    rates = {new: [_rate(roles[old], name) for name in sets] for new, old in names.items() if old in roles}
    shown = ", ".join(f"{name} {' / '.join(values)}" for name, values in rates.items())
    yield f"**Accuracy** on synthesised speech: word error rates (%) on {' / '.join(sets)} are {shown} ({link})"
    smaller = f"{teacher.size / student.size:.1f} times smaller than its teacher"
    speed = f"; RTF {row.rtf:.4f} ({row.runtime}) on one CPU thread" if (row := student.fastest) else ""
    yield (
        f"**Size and speed**: SS has {student.size / 1e6:.2f} M parameters, {smaller}; mean look-ahead"
        f" {number(student.lookahead_ms, 0)} ms{speed} ({link})"
    )


def _rate(run: Run, test_set: str) -> str:
    return number(run.error_rate(test_set), 2)


def pipeline(roles: Mapping[str, Run], path: Path) -> None:
    """The picture of README.md: T, SN and SS with their sizes and error rates."""
    titles = {
        "teacher": "T: teacher",
        "first step": "SN: student",
        "second step": "SS: streaming student",
    }
    boxes = []
    for role, title in titles.items():
        if (run := roles.get(role)) is not None:
            rates = "\n".join(f"{name}: {_rate(run, name)} % WER" for name in test_sets([run]))
            delay = run.lookahead_ms
            ahead = "whole utterance" if delay is None else f"mean look-ahead {delay:.0f} ms"
            boxes.append((title, f"{run.size / 1e6:.2f} M parameters\n{ahead}\n{rates}"))
    plots.pipeline(boxes, ("hidden MSE\nlogit MSE\nLF-MMI", "hidden MSE\nlogit MSE\nLF-MMI"), path)
