"""Losses of every target on disk: what comes back, how exactly, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from muse.host.files import sha256_of
from muse.records.losses import read_losses, write_losses
from muse.records.store import RecordError

DOCUMENTS = np.repeat([0, 1, 3], [200, 1, 299])
LOSSES = {seed: np.random.default_rng(seed).gamma(2.0, 1.5, 500) for seed in (0, 11)}


def test_losses_come_back_by_seed_to_the_accuracy_of_float16(tmp_path):
    artifact = write_losses(tmp_path, "stage1_memory", LOSSES, DOCUMENTS)
    path = tmp_path / artifact.path
    assert path == tmp_path / "losses" / "stage1_memory.npz"
    assert (artifact.kind, artifact.model, artifact.seed) == ("losses", "stage1_memory", None)
    assert (artifact.sha256, artifact.num_bytes) == (sha256_of(path), path.stat().st_size)
    assert [entry.name for entry in path.parent.iterdir()] == ["stage1_memory.npz"]
    found = read_losses(path)
    assert list(found.by_seed) == [0, 11]
    for seed, losses in LOSSES.items():
        assert found.by_seed[seed].dtype == np.float16
        np.testing.assert_allclose(found.by_seed[seed].astype(float), losses, rtol=2**-11, atol=2**-25)
    assert found.documents.dtype == np.int32
    np.testing.assert_array_equal(found.documents, DOCUMENTS)


def test_equal_losses_are_equal_files(tmp_path):
    first, again = (write_losses(tmp_path / name, "stage1", LOSSES, DOCUMENTS) for name in ("first", "again"))
    assert first == again


def test_a_loss_beyond_float16_is_refused_and_leaves_the_old_file(tmp_path):
    kept = write_losses(tmp_path, "stage1", LOSSES, DOCUMENTS)
    with pytest.raises(RecordError, match=r"stage1\.npz: seed_0: got a loss beyond float16, expected at most 65504"):
        write_losses(tmp_path, "stage1", {0: np.full(500, 7e4)}, DOCUMENTS)
    assert sha256_of(tmp_path / kept.path) == kept.sha256


def test_every_damage_is_named(tmp_path):
    path = tmp_path / write_losses(tmp_path, "stage1", LOSSES, DOCUMENTS).path
    whole = path.read_bytes()
    cut = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*cut, whole.replace(b"documents", b"DOCUMENTS", 1), b"text", b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=r"stage1\.npz: got no readable npz file .*, expected the losses"):
            read_losses(path)
    with pytest.raises(RecordError, match="got no such file, expected the losses"):
        read_losses(tmp_path / "missing.npz")


def test_a_flipped_byte_is_refused_or_changes_no_loss(tmp_path):
    """A zip file has bytes without meaning, such as times."""
    path = tmp_path / write_losses(tmp_path, "stage1", LOSSES, DOCUMENTS).path
    whole, kept, refused = path.read_bytes(), read_losses(path), 0
    places = range(0, len(whole), 3)
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = read_losses(path)
        except RecordError:
            refused += 1
            continue
        assert found.by_seed.keys() == kept.by_seed.keys()
        assert all(np.array_equal(found.by_seed[seed], losses) for seed, losses in kept.by_seed.items())
        assert np.array_equal(found.documents, kept.documents)
    assert refused > 0.8 * len(places)


HALF, WHOLE = np.ones(3, np.float16), np.zeros(3, np.int32)


@pytest.mark.parametrize(
    "arrays",
    [
        {"seed_0": HALF},
        {"documents": WHOLE},
        {"seed_0": HALF, "documents": WHOLE[:2]},
        {"seed_0": HALF.astype(np.float32), "documents": WHOLE},
        {"seed_0": HALF, "documents": WHOLE.astype(np.int64)},
        {"seed_0": HALF[None], "documents": WHOLE[None]},
        {"seed_0": HALF, "documents": WHOLE, "seed_x": HALF},
        {"seed_0": HALF * np.float16(np.inf), "documents": WHOLE},
        {"seed_0": HALF, "documents": WHOLE - np.arange(3, dtype=np.int32)},
    ],
)
def test_what_is_no_file_of_losses_is_refused(tmp_path, arrays):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **arrays)
    with pytest.raises(RecordError, match=r"x\.npz: got .*, expected "):
        read_losses(path)


def test_a_single_array_is_no_file_of_losses(tmp_path):
    stream = io.BytesIO()
    np.save(stream, HALF)
    (tmp_path / "x.npz").write_bytes(stream.getvalue())
    with pytest.raises(RecordError, match=r"x\.npz: got no readable npz file"):
        read_losses(tmp_path / "x.npz")
