"""RESULTS.md and its pages are those of the committed files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from distill.report import overview

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A copy of the results with its pages written again."""
    root = tmp_path_factory.mktemp("repository")
    for folder in [*ROOT.glob("egs/*/results"), *ROOT.glob("egs/*/conf/sets"), ROOT / "benchmarks/results"]:
        shutil.copytree(folder, root / folder.relative_to(ROOT))
    shutil.copy(ROOT / "README.md", root)
    return root, overview.write(root)


def test_every_page_is_current(written: tuple[Path, list[Path]]) -> None:
    root, pages = written
    assert {page.name for page in pages} == {"README.md", "RESULTS.md"} and len(pages) > 3
    for page in pages:
        committed = ROOT / page.relative_to(root)
        assert page.read_text() == committed.read_text(), f"{committed} is stale; run tools/report.py"


def test_results_and_readme_are_short(written: tuple[Path, list[Path]]) -> None:
    assert len((ROOT / "RESULTS.md").read_text().splitlines()) <= 100  # one table for each of the papers
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_a_readme_without_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"README\.md has no lines <!-- results: written by tools/report\.py -->"):
        overview.readme(tmp_path)
