"""Stage 0 on a few synthesised sentences in the layout of each corpus."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from lhotse import CutSet

from distill.corpora import Options, open_corpus
from distill.corpora.gigaspeech import GigaSpeech, read_audios
from distill.corpora.manifests import write_cut_sets, write_manifests

ROOT = Path(__file__).resolve().parents[3]


def stage_0(name: str, root: Path, out: Path, *unlabelled: str) -> dict[str, CutSet]:
    """The cut sets of a rehearsal."""
    options = Options(ROOT / "egs" / name, out / "audio", embedded=True, rehearse=True, unlabelled=unlabelled)
    corpus = open_corpus(name, root, options)
    if corpus.renders:
        (out / "audio").mkdir(parents=True)
        corpus.render(out / "audio")
    write_manifests(corpus, out / "manifests", name)
    corpus.write_notes(out / "manifests")
    write_cut_sets(out / "manifests", name, corpus.roles, out / "cuts")
    return {path.name.removesuffix(".jsonl.gz"): CutSet.from_file(path) for path in (out / "cuts").glob("*.gz")}


def skipped(out: Path) -> Counter[str]:
    with (out / "manifests/skipped.tsv").open(newline="") as file:
        return Counter(row["reason"].split(" (")[0] for row in csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the synthesised sentences, which each test arranges in another way."""
    pytest.importorskip("espeakng_loader")
    root = tmp_path_factory.mktemp("layouts")
    open_corpus("mini_librispeech", root, Options(ROOT / "egs/mini_librispeech", embedded=True, rehearse=True))
    return root


@pytest.fixture
def root(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded / "embedded", tmp_path / "corpus/embedded")
    return tmp_path / "corpus"


def test_mini_librispeech(root: Path, tmp_path: Path) -> None:
    cuts = stage_0("mini_librispeech", root, tmp_path)
    assert set(cuts) == {"labelled", "unlabelled", "dev", "test-clean-2"}
    assert sorted(path.name for path in (root / "LibriSpeech").iterdir()) == ["dev-clean-2", "train-clean-5"]
    assert {int(cut.supervisions[0].speaker) % 2 for cut in cuts["dev"]} == {0}
    assert {int(cut.supervisions[0].speaker) % 2 for cut in cuts["test-clean-2"]} == {1}
    assert len(cuts["labelled"]) == len(cuts["unlabelled"]) == 24  # the same audio, its text hidden
    assert all(cut.supervisions[0].text is None for cut in cuts["unlabelled"])


def test_gigaspeech(root: Path, tmp_path: Path) -> None:
    cuts = stage_0("gigaspeech", root, tmp_path)
    assert {name: len(each) for name, each in cuts.items()} == {
        "labelled": 24, "unlabelled": 40, "dev": 6, "test-giga": 8,
    }  # fmt: skip
    texts = [cut.supervisions[0].text for cut in cuts["labelled"]]
    assert all(text and text.replace(" ", "").isalpha() and "COMMA" not in text for text in texts)
    assert skipped(tmp_path) == {"no speech: <NOISE>": 26}  # one in each recording
    assert not {cut.id for cut in cuts["labelled"]} & {cut.id.removesuffix("-unlabelled") for cut in cuts["unlabelled"]}
    cut = cuts["labelled"][0]
    assert str(cut.recording.sources[0].source).endswith(".opus") and cut.supervisions[0].speaker is None
    assert cut.load_audio().shape == (1, cut.num_samples)


def test_gigaspeech_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no GigaSpeech.json in .*password.*--corpus-dir"):
        open_corpus("gigaspeech", tmp_path, Options(download=True))


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_the_table_of_gigaspeech_is_read_in_pieces(tmp_path: Path, block: int, monkeypatch) -> None:
    monkeypatch.setattr("distill.corpora.gigaspeech.BLOCK", block)
    audios = [{"aid": f"A{n}", "text": 'a "quoted" ] , {brace}'} for n in range(20)]
    path = tmp_path / "GigaSpeech.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"dataset": "GigaSpeech", "audios": audios}, indent=indent))
        assert list(read_audios(path)) == audios
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="is cut short after"):
        list(read_audios(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match='has no list "audios"'):
        list(read_audios(path))


def test_an_odd_table_of_gigaspeech_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "GigaSpeech.json").write_text(json.dumps({"audios": [{"aid": "A1", "subsets": ["{S}"]}]}))
    with pytest.raises(ValueError, match=r"audio A1: no 'path'; is it GigaSpeech's own file"):
        GigaSpeech(tmp_path).listing("S")


def test_libri_light_is_cut_where_there_is_speech(embedded: Path, tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    root = tmp_path / "corpus"
    shutil.copytree(embedded / "embedded", root)
    cuts = stage_0("librispeech", root, tmp_path, "small")["unlabelled"]
    truth = {path.stem: json.loads(path.read_text())["voice_activity"] for path in (root / "small").rglob("*.json")}
    assert truth and all(0.5 < cut.duration <= 20.0 for cut in cuts)
    found = [json.loads(line) for line in (tmp_path / "audio/small.jsonl").read_text().splitlines()]
    assert len(found) == len(truth)
    for row in found:  # espeak's voices are not always taken for speech, but silence never is
        spoken = truth[row["recording"].rpartition("-")[2]]
        inside = sum(
            max(0.0, min(end, e) - max(begin, b)) for begin, end in row["speech"] for b, e in spoken
        )  # fmt: skip
        assert inside > 0.5 * sum(e - b for b, e in spoken)
        assert inside > 0.75 * sum(end - begin for begin, end in row["speech"])


def test_custom(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    cuts = stage_0("custom", root, tmp_path)
    assert set(cuts) == {"labelled", "unlabelled", "dev", "test-split"}
    speakers = {name: {cut.supervisions[0].speaker for cut in cuts[name]} for name in ("labelled", "dev", "test-split")}
    assert not (speakers["labelled"] & speakers["dev"] or speakers["dev"] & speakers["test-split"])
    rows = dict(line.split("\t") for line in (tmp_path / "manifests/split.tsv").read_text().splitlines())
    assert rows.pop("utterance") == "part" and Counter(rows.values())["dev"] >= len(rows) / 10
    assert {cut.recording_id for cut in cuts["unlabelled"]} == {"meeting-0", "meeting-1"}
    assert len(cuts["unlabelled"]) > 4 and all(cut.duration <= 20.0 for cut in cuts["unlabelled"])


@pytest.mark.parametrize("name", ["librispeech", "mini_librispeech", "gigaspeech", "custom"])
def test_an_unknown_unlabelled_part_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"--unlabelled smal: no such part of {name}; there are: \w+"):
        open_corpus(name, tmp_path, Options(unlabelled=("smal",)))


def test_a_second_call_arranges_nothing(root: Path, tmp_path: Path) -> None:
    options = Options(ROOT / "egs/gigaspeech", embedded=True, rehearse=True)
    open_corpus("gigaspeech", root, options)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    open_corpus("gigaspeech", root, options)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
