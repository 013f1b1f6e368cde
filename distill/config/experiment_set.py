"""A set of experiments: those of a paper's tables, trained with several seeds, and the tables of their results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.bounds import EachOnce, Flag, Name, Seed
from distill.config.decoding import Method
from distill.config.loading import Settings
from distill.config.names import NAME, NAME_RULE, hint

SUPERB_TASKS = ("PR", "ASR", "KS", "QbE", "SID", "ASV", "SD", "IC", "SF", "ER")
OWN = ("name", "seed")  # of experiments: settings that a set gives
VARIABLE = re.compile(r"\{(\w+)\}")
ROW = "row"
Values = Mapping[str, tuple[str, Any]]  # of a combination: key -> what stands for it in names, and in settings


class ResultTable(Settings):
    """Results by rows and columns, as a mean over seeds with its interval.

    rows: label -> an experiment, or what takes the place of {row} in `columns`: label -> an experiment. sets: test
    sets, whose error rates are shown, or "SET CONDITION" (`decoding.conditions`); empty: all sets. figures: of the last
    validation, shown in place of error rates. tasks: of SUPERB, or "TASK CONDITION", likewise. methods: label of a
    column -> the decoding method of its error rates; one without shows each experiment's main method
    (`Run.main_method`). plot: error rates are drawn against parameters too. paper: label of a row -> a paper's figures,
    a text. overview: labels of the rows that RESULTS.md shows of a set's first table; None: all.
    """

    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str] = {"": "{row}"}
    sets: Annotated[tuple[str, ...], EachOnce] = ()
    figures: Annotated[tuple[str, ...], EachOnce] = ()
    tasks: Annotated[tuple[str, ...], EachOnce] = ()
    methods: Mapping[str, Literal[Method, "transformer-lm"]] = {}
    plot: Flag = False
    paper: Mapping[str, str] = {}
    overview: tuple[str, ...] | None = None
    note: str = ""

    @property
    def short(self) -> ResultTable:
        """The table with the rows of the overview."""
        shown = self.rows if self.overview is None else {label: self.rows[label] for label in self.overview}
        return self.model_copy(update={"rows": shown})

    def experiment(self, row: str, column: str) -> str:
        """Name of the experiment of a cell, by the labels of its row and column."""
        return self.columns[column].replace(f"{{{ROW}}}", self.rows[row])

    @model_validator(mode="after")
    def _check_rows(self) -> ResultTable:
        for key, labels in {"paper": self.paper, "overview": self.overview or ()}.items():
            for label in labels:
                if label not in self.rows:
                    raise ValueError(f"{key}: no row {label!r}{hint(label, self.rows)}")
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> ResultTable:
        for task in (name.partition(" ")[0] for name in self.tasks):
            if task not in SUPERB_TASKS:
                raise ValueError(f"tasks: {task!r} is not a task of SUPERB{hint(task, SUPERB_TASKS)}")
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        """Those of its columns, in order."""
        return tuple(dict.fromkeys(filter(None, (name.partition(" ")[2] for name in (*self.sets, *self.tasks)))))

    @model_validator(mode="after")
    def _check_methods(self) -> ResultTable:
        for label in self.methods:
            if label not in self.columns:
                raise ValueError(f"methods: no column {label!r}{hint(label, self.columns)}")
        given = [key for key in ("methods", "figures", "tasks") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(
                "methods are of error rates, and figures and tasks stand in place of those; give one of them"
                f" (got {', '.join(given)})"
            )
        if self.plot and (self.figures or self.tasks):
            raise ValueError("plot: error rates are drawn, and figures and tasks stand in place of those; leave it out")
        return self


class ExperimentSet(Settings):
    """Experiments of one recipe, each trained once per seed.

    experiments: name -> what differs from the recipe's YAML of that name, or of `base`. With `for: {key: values}` there
    is one for each combination of values, which take the place of {key} in name and settings; of values given as a
    mapping, its keys in the name. shared: trained with the first seed alone, for all seeds to start and learn from;
    what they build on themselves must be shared too. once: trained with the first seed alone, whose figures are shown;
    what others build on cannot be among them. options: of run.sh, without --. settings: KEY=VALUE of its --set. stages:
    those after training. compared: pairs of experiments, first - second, by each one's main method (`Run.main_method`),
    or by a method that is given as third.
    """

    name: Name = ""
    title: str
    corpus: Name
    seeds: Annotated[tuple[Seed, ...], EachOnce, Field(min_length=1)] = (0, 1, 2)
    shared: Annotated[tuple[str, ...], EachOnce] = ()
    once: Annotated[tuple[str, ...], EachOnce] = ()
    options: Mapping[str, str] = {}
    settings: tuple[str, ...] = ()
    stages: tuple[Literal[10, 11, 12], ...] = (10,)
    experiments: Mapping[str, Mapping[str, Any]]
    tables: tuple[ResultTable, ...] = ()
    compared: tuple[tuple[str, str] | tuple[str, str, Method], ...] = ()

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds that an experiment is trained with."""
        return self.seeds[:1] if name in self.shared or name in self.once else self.seeds

    def each(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and settings of every experiment, in the order of the file."""
        for name, settings in self.experiments.items():
            own = {key: value for key, value in settings.items() if key != "for"}
            for values in _combinations(settings.get("for", {})):
                shown = {key: (text, text) for key, (text, _) in values.items()}
                yield _filled(name, shown), _filled(own, values)

    @model_validator(mode="after")
    def _check(self) -> ExperimentSet:
        if not self.experiments:
            raise ValueError("experiments: there are none; give a name with what differs from the recipe's YAML")
        for key, settings in self.experiments.items():
            _check_settings(key, settings)
        for setting in self.settings:
            if (key := setting.partition("=")[0].strip()) in OWN:
                raise ValueError(f"settings: {key} is given by the set, to each experiment its own; leave it out")
        names = [name for name, _ in self.each()]
        for name in names:
            if not NAME.fullmatch(name) or names.count(name) > 1:
                raise ValueError(f"experiments: {name!r} must be a name, given once: {NAME_RULE}")
        for key, chosen in {"shared": self.shared, "once": self.once}.items():
            for name in chosen:
                if name not in names:
                    raise ValueError(f"{key}: no experiment {name!r}{hint(name, names)}")
        if both := sorted({*self.shared} & {*self.once}):
            raise ValueError(f"once: {', '.join(both)} is shared already, which is trained once too; leave it out here")
        of_tables = [
            table.experiment(row, column) for table in self.tables for row in table.rows for column in table.columns
        ]
        for name in [*of_tables, *(name for pair in self.compared for name in pair[:2])]:
            if name not in names:
                raise ValueError(f"tables, compared: no experiment {name!r}{hint(name, names)}")
        return self


def _check_settings(key: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for what a set gives its experiments itself, and for values that make no combinations."""
    if given := sorted({*OWN} & settings.keys()):
        raise ValueError(f"experiments: {key}: {given[0]} is given by the set; leave it out")
    choices = settings.get("for", {})
    if not isinstance(choices, Mapping):
        raise ValueError(f"experiments: {key}: for: expected KEY: values (got {choices!r})")
    for variable, values in choices.items():
        if not (isinstance(values, (Mapping, list, tuple)) and values):
            raise ValueError(f"experiments: {key}: for: {variable}: expected some values, as [a, b] (got {values!r})")


def _combinations(choices: Mapping[str, Any]) -> Iterator[Values]:
    named = {key: values.items() if isinstance(values, Mapping) else [(value, value) for value in values]
             for key, values in choices.items()}  # fmt: skip
    for combination in product(*named.values()):
        yield {key: (str(text), value) for key, (text, value) in zip(named, combination)}


def _filled(value: Any, values: Values) -> Any:
    """The value with {key} replaced by what it stands for: by itself where a text is {key} alone."""
    if isinstance(value, Mapping):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(item, values) for item in value]
    if not isinstance(value, str):
        return value
    alone = VARIABLE.fullmatch(value)
    if alone and alone[1] in values:
        return values[alone[1]][1]
    return VARIABLE.sub(lambda found: str(values[found[1]][1]) if found[1] in values else found[0], value)
