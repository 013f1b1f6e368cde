"""Units: features against torchaudio and Kaldi, k-means against scikit-learn, and inventories that are no good."""

from __future__ import annotations

from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import torch
import torchaudio
from lhotse import CutSet
from lhotse.testing.dummies import DummyManifest
from sklearn.cluster import KMeans, MiniBatchKMeans

from distill.batch import Batch
from distill.config.model import FrontEnd
from distill.data.audio import Unreadable
from distill.data.shards import missing, shard_path
from distill.data.units import (
    CENTROIDS,
    CONVENTIONS,
    INVENTORY,
    LABELS,
    PART,
    Inventory,
    Origin,
    Summary,
    UnitLabels,
    UnitShard,
    features,
    find_units,
    write_shard,
)
from distill.fbank import fbank

SAMPLES = (400, 719, 720, 1599, 16037)


def noise(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def origin(**values) -> Origin:
    return Origin(**{"parts": ("labelled",), "convention": CONVENTIONS["mfcc"], "clusters": 4, **values})


def clouds(count: int = 4, size: int = 50) -> np.ndarray:
    """Frames (count * size, 3) near the corners of a cube, in random order."""
    rng = np.random.default_rng(0)
    corners = 10 * rng.permutation([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])[:count]
    return rng.permutation(np.repeat(corners, size, 0) + 0.1 * rng.standard_normal((count * size, 3))).astype("f")


# Features


@pytest.mark.parametrize("samples", SAMPLES)
def test_mfcc_are_kaldis_at_every_second_frame(samples: int) -> None:
    options = kaldi_native_fbank.MfccOptions()
    options.frame_opts.dither, options.use_energy, options.mel_opts.num_bins = 0.0, False, 23
    online = kaldi_native_fbank.OnlineMfcc(options)
    online.accept_waveform(16000, noise(samples).numpy())
    online.input_finished()
    expected = np.stack([online.get_frame(n) for n in range(0, online.num_frames_ready, 2)])
    np.testing.assert_allclose(features("mfcc", noise(samples))[:, :13], expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("samples", SAMPLES)
def test_mfcc_and_differences_are_torchaudios(samples: int) -> None:
    cepstra = torchaudio.compliance.kaldi.mfcc(noise(samples)[None], sample_frequency=16000.0, use_energy=False)
    padded = torch.cat([cepstra[:1]] * 2 + [cepstra] + [cepstra[-1:]] * 2)
    weights = torch.tensor([-2.0, -1, 0, 1, 2]) / 10
    first = sum(w * padded[n : n + len(cepstra)] for n, w in enumerate(weights))  # Eq. of HTK and Kaldi
    found = features("mfcc", noise(samples))
    torch.testing.assert_close(found[:, :13], cepstra[::2])
    torch.testing.assert_close(found[:, 13:26], first[::2], rtol=1e-4, atol=1e-4)
    second = torchaudio.functional.compute_deltas(torchaudio.functional.compute_deltas(cepstra.T)).T
    torch.testing.assert_close(found[:, 26:], second[::2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mfcc", "fbank"])
def test_frames_are_those_of_a_front_end_without_padding(kind: str) -> None:
    for samples in (0, 1, 399, *SAMPLES, *range(3000, 3400, 7)):
        assert len(features(kind, noise(samples))) == FrontEnd().frames(samples)
    changed = noise(8000)
    changed[320 * 4 + 400 : 320 * 6] = 0.5  # behind frame 4, before frame 6
    differ = (features(kind, changed) != features(kind, noise(8000)))[:, :13].any(1)
    assert differ.nonzero()[:, 0].tolist() == [5]


def test_fbank_is_that_of_the_models() -> None:
    wave = noise(16037)
    frames = fbank(wave[None, 120:], torch.tensor([16037 - 120]))[0]  # frame j of these is of samples 160 j on
    torch.testing.assert_close(features("fbank", wave)[2:40], frames[4:80:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mfcc", "fbank"])
def test_silence_has_finite_features(kind: str) -> None:
    assert features(kind, torch.zeros(16000)).isfinite().all()


# K-means


def test_units_are_scikit_learns() -> None:
    frames = clouds()
    inventory = find_units([frames[:70], frames[70:]], origin(seed=3))
    theirs = MiniBatchKMeans(4, random_state=3, init_size=PART, reassignment_ratio=0).partial_fit(frames)
    np.testing.assert_array_equal(inventory.centroids, theirs.cluster_centers_)
    np.testing.assert_array_equal(inventory.labels(frames), theirs.predict(frames))
    whole = KMeans(4, n_init=5, random_state=0).fit(frames)
    pairs = set(zip(inventory.labels(frames).tolist(), whole.labels_.tolist()))
    assert len(pairs) == 4, "the same partition"
    assert inventory.labels(frames).dtype == np.int16


def test_labels_are_those_of_the_nearest_centroid() -> None:
    rng = np.random.default_rng(1)
    inventory = Inventory(rng.standard_normal((7, 5)).astype("f"), origin(clusters=7))
    frames = rng.standard_normal((200, 5)).astype("f")
    distances = ((frames[:, None] - inventory.centroids) ** 2).sum(2)
    np.testing.assert_array_equal(inventory.labels(frames), distances.argmin(1))


def test_frames_are_streamed_in_parts() -> None:
    rng, most = np.random.default_rng(2), 0
    made: list[np.ndarray] = []

    def utterances():
        nonlocal most
        for _ in range(50):
            made.append(rng.standard_normal((1500, 2)).astype("f"))
            yield made[-1]

    inventory = find_units(utterances(), origin(clusters=2, seed=1))
    theirs = MiniBatchKMeans(2, random_state=1, init_size=PART, reassignment_ratio=0)
    for start in range(0, 50, 7):  # 10,500 frames are the first part of PART or more
        theirs.partial_fit(np.concatenate(made[start : start + 7]))
    np.testing.assert_array_equal(inventory.centroids, theirs.cluster_centers_)


@pytest.mark.parametrize("frames", [np.zeros((5000, 39), "f"), clouds()[:3]])
def test_more_clusters_than_different_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"4 clusters cannot be found in [13] different frames; set fewer units\.clus"):
        find_units([frames], origin())
    with pytest.raises(ValueError, match="no frame in any audio of labelled"):
        find_units([frames[:0]], origin())


# Inventories


@pytest.fixture
def path(tmp_path: Path) -> Path:
    find_units([clouds()], origin()).write(tmp_path / INVENTORY)
    return tmp_path / INVENTORY


def test_an_inventory_comes_back(path: Path, tmp_path: Path) -> None:
    found = Inventory.load(path, origin())
    np.testing.assert_array_equal(found.centroids, find_units([clouds()], origin()).centroids)
    assert found.origin == origin() and Inventory.load(path).origin == origin()
    found.write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again.npz", INVENTORY]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"seed": 1}, "seed: expected 1, got 0"),
        ({"of": "teacher", "layer": 6, "weights": "ab"}, "layer: expected 6, got None; weights: expected 'ab', got ''"),
        ({"parts": ("unlabelled",)}, r"parts: expected \['unlabelled'\], got \['labelled'\]"),
        ({"convention": "before residual"}, "convention: expected 'before residual', got"),
    ],
)
def test_a_foreign_inventory_is_refused(path: Path, expected: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"units of another origin \(.*{message}.*move the folder .* away"):
        Inventory.load(path, origin(**expected))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_inventory_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"inventory\.npz: cut short or no inventory of centroids .*; remove it, and"):
        Inventory.load(path)


def test_an_empty_or_wrong_inventory_is_refused(path: Path) -> None:
    right = find_units([clouds()], origin())
    for centroids in (right.centroids[:0], right.centroids[:3], right.centroids[0], right.centroids * np.nan):
        Inventory(centroids, right.origin).write(path)
        with pytest.raises(ValueError, match=r"centroids \(.*\), expected 4 rows of finite numbers"):
            Inventory.load(path)
    CENTROIDS.write(path, {"centroids": right.centroids, "origin": np.array('{"of": "mfcc"}')})
    with pytest.raises(ValueError, match=r"inventory\.npz: .*origin: parts: Field required; convention: Field"):
        Inventory.load(path)
    CENTROIDS.write(path, {"centroids": np.array([{}], dtype=object), "origin": np.array("{}")})
    with pytest.raises(ValueError, match=r"inventory\.npz: .*allow_pickle"):
        Inventory.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"the inventory of centroids .* is missing"):
        Inventory.load(path)


# Labels

ROWS: dict[str, np.ndarray | str] = {
    "b": np.array([3, 3, 0], np.int16),
    "a": np.array([1], np.int16),
    "short": "cut short is shorter than a frame",
    "c": np.arange(24, dtype=np.int16),
}


def part_of(folder: Path, *shards: dict[str, np.ndarray | str]) -> Path:
    """A part of these shards."""
    for number in missing(folder, len(shards)):
        write_shard(shard_path(folder, number), shards[number])
    LABELS.finish(folder, len(shards))
    return folder


def cut(name: str, block: str | None = None):
    made = DummyManifest(CutSet, begin_id=0, end_id=1)[0].with_id(name)
    made.custom = {"block": block} if block else None
    return made


def test_labels_come_back(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.npz", ROWS)
    write_shard(tmp_path / "y.npz", dict(reversed(ROWS.items())))
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    shard = UnitShard(tmp_path / "x.npz")
    assert list(shard) == ["a", "b", "c"] and shard.reasons == {"short": ROWS["short"]}
    for name, row in shard.items():
        assert row.dtype == np.int16 and np.array_equal(row, ROWS[name])
    write_shard(tmp_path / "none.npz", {})
    assert UnitShard(tmp_path / "none.npz") == {}


def test_a_killed_writer_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, front = tmp_path / "labelled", FrontEnd()
    write_shard(shard_path(part_of(folder), 0), ROWS)
    (folder / "shards.json").unlink()
    (folder / "00001.npz.tmp").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match=r"no units at .*labelled; the training's stage writes them"):
        UnitLabels([folder], front)
    assert missing(folder, 2) == [1]
    part_of(folder, ROWS, {"d": ROWS["a"]})
    assert UnitLabels([folder], front).find("d") == {"d": [1]}
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00001\.npz: cut short or no shard of units .*training's stage again"):
        UnitLabels([folder], front)


def test_labels_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    arrays = {"ids": np.array(["a"]), "reasons": np.array([""]), "frames": np.array([3]), "labels": np.zeros(2)}
    LABELS.write(tmp_path / "x.npz", arrays)
    with pytest.raises(ValueError, match=r"x\.npz: .*\(2 labels of 1 cuts, expected 3 of 1\)"):
        UnitShard(tmp_path / "x.npz")


def test_labels_are_found_by_part_and_block(tmp_path: Path) -> None:
    labels = UnitLabels([part_of(tmp_path / "labelled", {"a": ROWS["a"]}, {"b": ROWS["b"]})], FrontEnd())
    assert labels.find("b") == labels.find("b", "labelled/1") and labels.find("b", "labelled/0") is None
    assert labels.of(cut("b"), 1040).tolist() == labels.of(cut("b", "labelled/1"), 1040).tolist() == [3, 3, 0]


@pytest.mark.parametrize("frames", range(20, 29))
def test_labels_are_fitted_to_the_frames_of_the_model(tmp_path: Path, frames: int) -> None:
    labels = UnitLabels([part_of(tmp_path / "labelled", ROWS)], FrontEnd())
    samples = 400 + 320 * (frames - 1)
    if 22 <= frames <= 26:
        assert labels.of(cut("c"), samples).tolist() == [*range(24), 23, 23][:frames]
        return
    with pytest.raises(
        Unreadable, match=rf"cut c has 24 units and {frames} frames of the model: .* another frame rate"
    ):
        labels.of(cut("c"), samples)


def test_cuts_without_labels_are_named(tmp_path: Path) -> None:
    labels = UnitLabels([part_of(tmp_path / "labelled", ROWS)], FrontEnd())
    for name in ("short", "other"):
        with pytest.raises(Unreadable, match=f"cut {name} has no units; "):
            labels.of(cut(name), 1040)


def test_labels_of_a_batch_are_padded(tmp_path: Path) -> None:
    labels = UnitLabels([part_of(tmp_path / "labelled", ROWS)], FrontEnd())
    found = labels.padded([np.array([3, 3, 0]), np.array([1])], 1040)
    assert found.dtype == torch.int64 and found.tolist() == [[3, 3, 0], [1, -1, -1]]
    assert labels.padded([], 720).tolist() == [[-1, -1]], "of a stand-in"
    batch = Batch(("b", "a"), torch.zeros(2, 1040), torch.tensor([1040, 400]), [None, None], units=found)
    row = batch.to("cpu").row(1).units
    assert row is not None and row.tolist() == [[1]]


def test_a_summary_counts_labels_and_reasons(tmp_path: Path) -> None:
    summary = Summary(24)
    assert summary.figures()["perplexity"] == 1 and summary.figures()["counts"] == [0] * 24
    for shard in (ROWS, {"d": ROWS["b"]}):
        write_shard(tmp_path / "x.npz", shard)
        summary.add(UnitShard(tmp_path / "x.npz"))
    figures, counts = summary.figures(), np.array([3, 2, 1, 5, *[1] * 20])
    assert (figures["utterances"], figures["without_labels"], figures["frames"]) == (5, 1, 31)
    assert figures["counts"] == counts.tolist() and summary.without_labels == [("short", ROWS["short"])]
    entropy = torch.distributions.Categorical(torch.tensor(counts / 31)).entropy()
    assert figures["perplexity"] == pytest.approx(entropy.exp().item(), abs=0.01)
