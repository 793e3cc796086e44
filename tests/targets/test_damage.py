"""Damage anywhere in a cache is named by `caches verify`, and a student never uses a row that it touched."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import TargetCache
from pipeline.errors import CorruptCacheError, VerificationError
from pipeline.targets.verification import verify
from tests.targets.tiny import LAYOUT_NAMES, Tiny, chunk_extents, files_of, overwrite


class Sealed:
    """A sealed tiny cache to damage, and what it holds: its truth is read once, before any damage."""

    def __init__(self, tiny: Tiny, folder: Path):
        self.tiny = tiny
        self.folder = tiny.make(folder).folder
        self.files = files_of(self.folder)
        whole = TargetCache(self.folder)
        self._soft_targets = whole.soft_targets(np.arange(tiny.rows))
        self._index = [whole.sample_digests().copy(), whole.labels().copy(), whole.views().copy()]
        self._extents = chunk_extents(self.folder, tiny)

    @contextmanager
    def damaged(self, file: str, content: bytes | None) -> Iterator[None]:
        """The cache with other content in one file, or without it."""
        path = self.folder / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        try:
            yield
        finally:
            path.write_bytes(self.files[file])

    def name_of(self, file: str, offset: int) -> str:
        """How a message names the object that holds a byte of a file."""
        if self.tiny.layout == "zarr":
            return file.removeprefix("targets.zarr/")
        for extent in self._extents.values():
            if extent.file == file and extent.offset <= offset < extent.offset + extent.data_bytes:
                return extent.name
        return "outside" if file == "targets.h5" else file

    def assert_verify_names(self, name: str) -> None:
        with pytest.raises(VerificationError) as refused:
            verify(self.folder)
        assert name in str(refused.value)

    def assert_a_student_gets_the_truth_or_an_error(self) -> None:
        """Every row is asked for alone, so that what is not damaged is compared as well."""
        try:
            cache = TargetCache(self.folder)
        except VerificationError:
            return
        for read, true in zip((cache.sample_digests, cache.labels, cache.views), self._index, strict=True):
            try:
                np.testing.assert_array_equal(read(), true)
            except CorruptCacheError:
                continue
        for block in range(0, self.tiny.rows, self.tiny.rows_per_block):
            rows = np.arange(block, min(block + self.tiny.rows_per_block, self.tiny.rows))
            try:
                found = cache.soft_targets(rows)
            except CorruptCacheError:
                continue
            assert torch.equal(found, self._soft_targets[rows])

    def assert_flips_are_noticed(self, file: str, offsets: range | list[int], chosen: random.Random) -> None:
        """One bit of each byte at `offsets`, one at a time."""
        content = bytearray(self.files[file])
        for offset in offsets:
            bit = 1 << chosen.randrange(8)
            content[offset] ^= bit
            with self.damaged(file, bytes(content)):
                self.assert_verify_names(self.name_of(file, offset))
                self.assert_a_student_gets_the_truth_or_an_error()
            content[offset] ^= bit


@pytest.fixture(params=LAYOUT_NAMES)
def sealed(request: pytest.FixtureRequest, fast_folder: Path) -> Sealed:
    return Sealed(Tiny(request.param, rows=13), fast_folder)


@pytest.mark.parametrize(
    "tiny",
    [
        Tiny("zarr", rows=13, k=2),
        Tiny("hdf5", "log-uint8", rows=13),
        Tiny("zarr", rows=13, compression="zstd"),
        Tiny("zarr", "log-uint16", rows=13, compression="blosc-lz4"),
    ],
    ids=["top-k", "log-uint8", "zstd", "blosc-lz4"],
)
def test_a_flipped_bit_in_any_encoding_or_compression_is_named_and_never_used(tiny: Tiny, fast_folder: Path) -> None:
    sealed = Sealed(tiny, fast_folder)
    chosen = random.Random(5)
    for file, content in sealed.files.items():
        offsets = sorted(chosen.sample(range(len(content)), min(len(content), 40)))
        sealed.assert_flips_are_noticed(file, offsets, chosen)
    verify(sealed.folder)


def test_a_flipped_bit_in_any_byte_is_named_and_never_used(sealed: Sealed) -> None:
    chosen = random.Random(2)
    for file, content in sealed.files.items():
        dense = [offset for offset in range(len(content)) if file != "targets.h5" or content[offset]]
        empty = sorted(set(range(len(content))) - set(dense))  # nearly all of an HDF5 file is zeros between its parts
        sealed.assert_flips_are_noticed(file, dense[:: 1 if len(content) < 500 else 3], chosen)
        sealed.assert_flips_are_noticed(file, chosen.sample(empty, min(len(empty), 200)), chosen)
    verify(sealed.folder)


@pytest.mark.slow
def test_every_bit_of_every_byte_is_named_and_never_used(sealed: Sealed) -> None:
    for file, content in sealed.files.items():
        dense = [offset for offset in range(len(content)) if file != "targets.h5" or content[offset] or offset < 4096]
        for seed in range(8):
            sealed.assert_flips_are_noticed(file, dense, random.Random(seed))
    verify(sealed.folder)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_flipped_bit_in_a_cache_of_aligned_blocks_is_named_and_never_used(layout: str, fast_folder: Path) -> None:
    sealed = Sealed(Tiny(layout, "float32", rows=50, classes=300, rows_per_block=20), fast_folder)  # blocks of 24 kB
    chosen = random.Random(3)
    for file, content in sealed.files.items():
        sealed.assert_flips_are_noticed(file, sorted(chosen.sample(range(len(content)), min(len(content), 25))), chosen)
    for extent in chunk_extents(sealed.folder, sealed.tiny).values():
        ends = [extent.offset, extent.offset + extent.data_bytes - 1]
        sealed.assert_flips_are_noticed(extent.file, ends, chosen)


def test_a_missing_truncated_or_extended_file_is_named_and_never_used(sealed: Sealed) -> None:
    for file, content in sealed.files.items():
        name = "targets.h5" if file == "targets.h5" else sealed.name_of(file, 0)
        for other in (None, b"", content[:-1], content[: len(content) // 2], content + b"\0", content + content):
            with sealed.damaged(file, other):
                sealed.assert_verify_names(name)
                with pytest.raises(VerificationError) as refused:
                    TargetCache(sealed.folder)
                assert name in str(refused.value)
    verify(sealed.folder)


def test_a_file_replaced_by_a_folder_is_named_and_never_used(sealed: Sealed) -> None:
    for file, content in sealed.files.items():
        path = sealed.folder / file
        path.unlink()
        path.mkdir()
        sealed.assert_verify_names("targets.h5" if file == "targets.h5" else sealed.name_of(file, 0))
        sealed.assert_a_student_gets_the_truth_or_an_error()
        path.rmdir()
        path.write_bytes(content)


def test_swapped_zarr_objects_of_equal_size_are_named_and_never_used(fast_folder: Path) -> None:
    sealed = Sealed(Tiny("zarr", rows=23), fast_folder)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(sealed.files, 2)
        if len(sealed.files[one]) == len(sealed.files[other])
    ]
    assert len(pairs) >= 10  # all pairs of the five blocks
    for one, other in pairs:
        with sealed.damaged(one, sealed.files[other]), sealed.damaged(other, sealed.files[one]):
            with pytest.raises(CorruptCacheError) as refused:
                verify(sealed.folder)
            assert sealed.name_of(one, 0) in str(refused.value) or sealed.name_of(other, 0) in str(refused.value)
            sealed.assert_a_student_gets_the_truth_or_an_error()


def test_swapped_hdf5_blocks_are_named_and_never_used(fast_folder: Path) -> None:
    sealed = Sealed(Tiny("hdf5", rows=23), fast_folder)
    whole = sealed.files["targets.h5"]
    extents = [extent for name, extent in chunk_extents(sealed.folder, sealed.tiny).items() if "soft" in name]
    for one, other in itertools.combinations(extents, 2):
        with sealed.damaged("targets.h5", whole):
            for place, source in ((one, other), (other, one)):
                overwrite(
                    sealed.folder / place.file, place.offset, whole[source.offset : source.offset + source.data_bytes]
                )
            sealed.assert_verify_names(one.name)
            sealed.assert_a_student_gets_the_truth_or_an_error()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_files_of_another_cache_are_named_and_never_used(layout: str, fast_folder: Path) -> None:
    sealed = Sealed(Tiny(layout), fast_folder / "one")
    other = files_of(Tiny(layout, seed=1).make(fast_folder / "other").folder)
    differing = [file for file in sealed.files if sealed.files[file] != other[file]]
    assert {"manifest.json", "blocks.npy"} < set(differing)
    for file in differing:
        with sealed.damaged(file, other[file]):
            with pytest.raises(VerificationError):
                verify(sealed.folder)
            sealed.assert_a_student_gets_the_truth_or_an_error()


def test_a_damaged_block_is_noticed_at_its_first_use_and_the_others_serve(fast_folder: Path) -> None:
    sealed = Sealed(Tiny("zarr"), fast_folder)
    file = "targets.zarr/soft_targets/c.2.0"
    with sealed.damaged(file, bytes(len(sealed.files[file]))):
        cache = TargetCache(sealed.folder)
        cache.soft_targets(np.arange(10))
        for _ in range(2):  # asking again does not help
            with pytest.raises(CorruptCacheError, match=r"object soft_targets/c\.2\.0 has crc32c"):
                cache.soft_targets(np.array([0, 11]))
        cache.soft_targets(np.arange(15, 23))


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_caches_verify_names_the_damage_and_exits_with_3(layout: str, tmp_path: Path) -> None:
    sealed = Sealed(Tiny(layout, rows=13), tmp_path / "caches")
    blocks = "targets.zarr/soft_targets/c.1.0" if layout == "zarr" else "targets.h5"
    extent = chunk_extents(sealed.folder, sealed.tiny)["soft_targets/c.1.0"]
    flipped = bytearray(sealed.files[blocks])
    flipped[extent.offset + 2] ^= 4

    def said() -> tuple[int, str, str]:
        command = [sys.executable, "-m", "stages.cli", "caches", "verify", "--workspace", str(tmp_path)]
        done = subprocess.run([*command, sealed.tiny.plan().key], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, stdout, stderr = said()
    assert (code, stderr) == (0, "")
    assert stdout.startswith(sealed.tiny.plan().key[:12])
    damages: list[tuple[str, bytes | None, str]] = [
        (blocks, bytes(flipped), "soft_targets/c.1.0"),
        ("blocks.npy", None, "blocks.npy"),
        ("manifest.json", None, "manifest.json"),
        ("manifest.json", sealed.files["manifest.json"].replace(b'"rows":13', b'"rows":12'), "manifest.json"),
    ]
    for file, content, name in damages:
        with sealed.damaged(file, content):
            code, stdout, stderr = said()
            assert (code, stdout) == (3, ""), stderr
            assert name in stderr
            assert stderr.startswith("softcache: ")
            assert "Traceback" not in stderr


def test_a_cache_may_be_copied_moved_and_renamed(tmp_path: Path) -> None:
    tiny = Tiny()
    folder = tiny.make(tmp_path / "caches").folder
    shutil.copytree(folder, tmp_path / "another name")
    folder.rename(tmp_path / "moved")
    for place in ("another name", "moved"):
        verify(tmp_path / place)
