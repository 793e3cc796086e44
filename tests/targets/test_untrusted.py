"""Caches from elsewhere: what a manifest, a block table or a store must not ask for is refused before it is decoded.

The attacker here knows the format: whatever is edited, every checksum above it is made right again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import TargetCache
from pipeline.canonical import canonical_json, digest_of
from pipeline.errors import CorruptCacheError, FormatVersionError, UntrustedCacheError, VerificationError
from pipeline.keys import cache_key
from pipeline.targets.manifest import read_manifest
from pipeline.targets.shelf import Shelf
from pipeline.targets.verification import verify
from tests.targets.tiny import LAYOUT_NAMES, Tiny, files_of

Fields = dict[str, Any]


@pytest.fixture(params=LAYOUT_NAMES)
def cache(request: pytest.FixtureRequest, fast_folder: Path) -> Path:
    """A whole cache to tamper with, of 23 rows in 5 blocks."""
    return Tiny(request.param).make(fast_folder / "caches").folder


@pytest.fixture
def zarr_cache(fast_folder: Path) -> Path:
    return Tiny("zarr").make(fast_folder / "caches").folder


@pytest.fixture
def hdf5_cache(fast_folder: Path) -> Path:
    return Tiny("hdf5").make(fast_folder / "caches").folder


def fields_of(cache: Path) -> Fields:
    fields: Fields = json.loads((cache / "manifest.json").read_bytes())
    return fields


def reseal(cache: Path, edit: Callable[[Fields], object]) -> None:
    """Edit the manifest and make self_sha256 right again."""
    fields = fields_of(cache)
    edit(fields)
    fields.pop("self_sha256", None)
    fields["self_sha256"] = digest_of(fields)
    (cache / "manifest.json").write_bytes(canonical_json(fields))


def reseal_with_keys(cache: Path, edit: Callable[[Fields], object]) -> None:
    """The same, with row_key and key made right as well."""

    def edit_and_rekey(fields: Fields) -> None:
        edit(fields)
        fields["row_key"] = digest_of(fields["row_made_from"])
        fields["key"] = cache_key(fields["row_key"], fields["rows_sha256"])

    reseal(cache, edit_and_rekey)


def reseal_table(cache: Path, content: bytes) -> None:
    """Replace the block table by any bytes, and make the manifest state their sha256."""
    (cache / "blocks.npy").write_bytes(content)
    reseal(cache, lambda fields: fields["block_table"].update(sha256=hashlib.sha256(content).hexdigest()))


def edit_table(cache: Path, edit: Callable[[NDArray[Any]], object]) -> None:
    table = np.load(cache / "blocks.npy")
    edit(table)
    file = io.BytesIO()
    np.save(file, table)
    reseal_table(cache, file.getvalue())


def replace_metadata(cache: Path, number: int, name: str, content: bytes) -> None:
    """Replace a metadata object of a Zarr store, and state its size and checksums in the block table."""
    (cache / "targets.zarr" / name).write_bytes(content)

    def state(table: NDArray[Any]) -> None:
        table[number]["size"] = len(content)
        table[number]["sha256"] = np.void(hashlib.sha256(content).digest())

    edit_table(cache, state)


def assert_refused(cache: Path, saying: str = "", error: type[VerificationError] = VerificationError) -> None:
    """Opening and verifying both refuse the cache, and leave everything around it as it was."""
    around = files_of(cache.parent.parent)
    for use in (TargetCache, verify):
        with pytest.raises(error) as refused:
            use(cache)
        assert saying in str(refused.value)
        assert refused.value.exit_code == 3
    assert files_of(cache.parent.parent) == around


def test_resealing_nothing_leaves_a_whole_cache(cache: Path) -> None:
    before = files_of(cache)
    reseal_with_keys(cache, lambda fields: None)
    edit_table(cache, lambda table: None)
    assert files_of(cache) == before
    verify(cache)


@pytest.mark.parametrize(
    "name", ["../x", "..", "/etc/passwd", "a/b", "a\\b", "", ".", "a\0b", "A", "x" * 65, "soft_targets\n"]
)
def test_an_array_name_that_could_leave_the_folder_is_refused(name: str, cache: Path) -> None:
    reseal(cache, lambda fields: fields["arrays"][3].update(name=name))
    assert_refused(cache, "arrays.3.name", UntrustedCacheError)


@pytest.mark.parametrize("target", ["manifest.json", "blocks.npy", "store", "chunk folder", "chunk"])
def test_a_symbolic_link_is_refused(target: str, zarr_cache: Path) -> None:
    place = {"store": "targets.zarr", "chunk folder": "targets.zarr/view", "chunk": "targets.zarr/view/c.0"}
    path = zarr_cache / place.get(target, target)
    moved = zarr_cache.parent / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    assert_refused(zarr_cache, "symbolic link", UntrustedCacheError)


def test_a_symbolic_link_to_an_hdf5_file_is_refused(hdf5_cache: Path) -> None:
    moved = hdf5_cache.parent / "elsewhere"
    (hdf5_cache / "targets.h5").rename(moved)
    (hdf5_cache / "targets.h5").symlink_to(moved)
    assert_refused(hdf5_cache, "symbolic link", UntrustedCacheError)


@pytest.mark.parametrize("name", ["manifest.json", "blocks.npy", "targets.zarr/zarr.json", "targets.zarr/view/c.0"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, zarr_cache: Path) -> None:
    (zarr_cache / name).unlink()
    os.mkfifo(zarr_cache / name)
    for use in (TargetCache, verify):
        with pytest.raises(VerificationError, match="no plain file"):
            use(zarr_cache)


@pytest.mark.parametrize("version", [0, 4, 999, -1, "1", None, [1], 1.5])
def test_an_unknown_format_version_is_named_with_the_known_ones(version: Any, cache: Path) -> None:
    reseal(cache, lambda fields: fields.update(format_version=version))
    assert_refused(cache, f"format version {version!r}; this softcache reads 1, 2, 3.", FormatVersionError)


@pytest.mark.parametrize(
    ("edit", "saying"),
    [
        (lambda fields: fields.update(layout="tar"), "unknown layout 'tar'; known are zarr, hdf5"),
        (lambda fields: fields.update(format="a tarball"), "'a tarball'"),
        (lambda fields: fields.update(rows=24), "has 23 rows, the manifest 24"),
        (lambda fields: fields["arrays"][3].update(shape=[22, 4]), "array soft_targets has 22 rows"),
        (lambda fields: fields["arrays"][3].update(shape=[]), "arrays.3.shape"),
        (lambda fields: fields["arrays"][3].update(shape=[23, 0]), "arrays.3.shape.1"),
        (lambda fields: fields["arrays"][3].update(shape=[23, -4]), "arrays.3.shape.1"),
        (lambda fields: fields["arrays"][3].update(shape=[23, 4.0]), "arrays.3.shape.1"),
        (lambda fields: fields["arrays"][3].update(shape=[23, 3]), "soft_targets"),
        (lambda fields: fields["arrays"][3].update(shape=[23, 4, 1]), "soft_targets"),
        (lambda fields: fields["arrays"][3].update(rows_per_chunk=0), "arrays.3.rows_per_chunk"),
        (lambda fields: fields["arrays"][3].update(rows_per_chunk=10**9), "at most 16 MB"),
        (lambda fields: fields["arrays"][3].update(rows_per_chunk=6), "block table"),
        (lambda fields: fields["arrays"][0].update(rows_per_chunk=5), "sample_digest"),
        (lambda fields: fields["arrays"][3].update(dtype="object"), "dtype 'object'; none but numbers are read"),
        (lambda fields: fields["arrays"][3].update(dtype="|O"), "none but numbers"),
        (lambda fields: fields["arrays"][3].update(dtype=">f2"), "none but numbers"),
        (lambda fields: fields["arrays"][3].update(dtype="int64"), "soft_targets"),
        (lambda fields: fields["arrays"][2].update(name="view"), "view"),
        (lambda fields: fields["arrays"].pop(), ""),
        (lambda fields: fields["arrays"].append(fields["arrays"][3]), "5 arrays"),
        (lambda fields: fields.update(arrays=[]), "arrays"),
        (lambda fields: fields.update(arrays=fields["arrays"][:3]), ""),
        (lambda fields: fields.update(block_table={"entries": 0, "sha256": "0" * 64}), "block_table.entries"),
        (lambda fields: fields["block_table"].update(entries=10**12), "block table"),
        (lambda fields: fields["block_table"].update(sha256="../../etc/passwd"), "block_table.sha256"),
        (lambda fields: fields["block_table"].update(path="../blocks.npy"), "block_table.path"),
        (lambda fields: fields.update(codec="lz77"), "codec"),
        (lambda fields: fields["arrays"][3].update(codecs=["blosc"]), "arrays.3.codecs"),
        (lambda fields: fields.pop("certificate"), "certificate"),
        (lambda fields: fields.update(certificate={}), "certificate"),
        (lambda fields: fields["certificate"]["temperatures"].update({"warm": {}}), "certificate"),
        (lambda fields: fields["certificate"]["temperatures"].update({"4.0": {}}), "certificate"),
        (lambda fields: fields["certificate"]["temperatures"]["4.0"].update(kl_mean="0"), "certificate"),
        (lambda fields: fields["certificate"]["temperatures"].update({".": {}}), "certificate"),
        (lambda fields: fields["provenance"].update(seconds="<img src=x>"), "provenance"),
        (lambda fields: fields["provenance"].update(versions=["torch"]), "provenance"),
        (lambda fields: fields["teacher"].pop("digest"), "teacher"),
        (lambda fields: fields["teacher"].update(digest="f" * 64), "teacher"),
        (lambda fields: fields.update(class_names="abcd"), "class_names"),
        (lambda fields: fields.update(temperature=2.0), "temperature"),
        (lambda fields: fields.update(encoding={"name": "dense", "dtype": "float32"}), "encoding"),
    ],
)
def test_a_resealed_manifest_with_a_field_that_does_not_fit_is_refused(
    edit: Callable[[Fields], object], saying: str, cache: Path
) -> None:
    reseal(cache, edit)
    assert_refused(cache, saying)


@pytest.mark.parametrize(
    "encoding",
    [
        {"name": "zip bomb", "dtype": "float16"},
        {"name": ["dense"], "dtype": "float16"},
        {"name": {}, "dtype": "float16"},
        {"dtype": "float16"},
        {},
        {"name": "dense"},
        {"name": "dense", "dtype": "object"},
        {"name": "dense", "dtype": "int64"},
        {"name": "dense", "dtype": None},
        {"name": "dense", "dtype": ["f2", "O"]},
        {"name": "dense", "dtype": "float16", "codec": "pickle"},
    ],
)
def test_an_unknown_encoding_is_refused(encoding: Fields, cache: Path) -> None:
    def edit(fields: Fields) -> None:
        fields["encoding"] = fields["row_made_from"]["encoding"] = encoding
        if encoding.get("dtype") == "int64":
            fields["arrays"][3]["dtype"] = "int64"

    reseal_with_keys(cache, edit)
    assert_refused(cache, "encoding")


@pytest.mark.parametrize("rows", [10**15, 2**63, 10**30, 10**4000])
def test_a_huge_declared_shape_is_refused_before_anything_is_read(rows: int, cache: Path) -> None:
    def edit(fields: Fields) -> None:
        fields["rows"] = rows
        for array in fields["arrays"]:
            array["shape"][0] = rows

    reseal(cache, edit)
    assert_refused(cache)


def test_a_huge_number_of_rows_and_all_that_follows_from_it_is_refused_from_the_manifest(cache: Path) -> None:
    def edit(fields: Fields) -> None:
        rows = fields["rows"] = 10**14
        for array in fields["arrays"]:
            array["shape"][0] = rows
        for array, rows_per_chunk in zip(fields["arrays"], (10**6, 4 * 10**6, 2 * 10**6, 4096), strict=True):
            array["rows_per_chunk"] = rows_per_chunk
        chunks = sum(-(-rows // array["rows_per_chunk"]) for array in fields["arrays"])
        fields["block_table"]["entries"] = chunks + (5 if fields["layout"] == "zarr" else 1)

    reseal(cache, edit)
    assert_refused(cache, "objects; at most", UntrustedCacheError)


def test_keys_that_do_not_follow_from_their_parts_are_refused(cache: Path) -> None:
    whole = fields_of(cache)
    for field in ("row_key", "key"):
        reseal(cache, lambda fields, field=field: fields.update({field: "0" * 64}))  # type: ignore[misc]
        assert_refused(cache, field, CorruptCacheError)
        reseal(cache, lambda fields: fields.update(whole))
    reseal(cache, lambda fields: fields["row_made_from"].update(temperature=2.0))
    assert_refused(cache, "row_key", CorruptCacheError)


def test_rows_that_do_not_give_the_stated_hash_are_refused_by_verify(cache: Path) -> None:
    reseal_with_keys(cache, lambda fields: fields.update(rows_sha256="0" * 64))
    with pytest.raises(CorruptCacheError, match="rows_sha256"):
        verify(cache)


def test_a_manifest_that_is_not_canonical_or_no_object_is_refused(cache: Path) -> None:
    fields = fields_of(cache)
    for content in (
        json.dumps(fields, indent=1).encode(),
        canonical_json(fields) + b"\n",
        canonical_json(fields).replace(b'"rows":23', b'"rows":23,"rows":23'),
        canonical_json([fields]),
        b"null",
        b"\xff\xfe" + canonical_json(fields),
        canonical_json(fields).replace(b'"rows":23', b'"rows":Infinity'),
        canonical_json(fields).replace(b'"rows":23', b'"rows":' + b"9" * 5000),
        canonical_json(fields).replace(b'"tiny"', b'"\\ud800"'),
        pickle.dumps(fields),
    ):
        (cache / "manifest.json").write_bytes(content)
        assert_refused(cache, "manifest.json", CorruptCacheError)


@pytest.mark.parametrize("depth", [100, 300, 900, 1000, 5000, 1_000_000])
def test_deeply_nested_json_is_refused(depth: int, cache: Path) -> None:
    """Or read, where it is not deep: never a crash."""
    fields = canonical_json({name: value for name, value in fields_of(cache).items() if name != "self_sha256"})
    nested = b"[" * depth + b"]" * depth
    unsealed = fields.replace(b'"provenance":{', b'"provenance":{"a":' + nested + b",")
    sha256 = hashlib.sha256(unsealed).hexdigest()
    content = unsealed.replace(b',"split":', b',"self_sha256":"' + sha256.encode() + b'","split":')
    (cache / "manifest.json").write_bytes(content)
    if depth > 200:
        assert_refused(cache, "manifest.json")
    else:
        TargetCache(cache)


def test_a_manifest_of_more_than_64_mb_is_not_even_read(cache: Path) -> None:
    with (cache / "manifest.json").open("ab") as file:
        file.truncate(10**12)
    with pytest.raises(UntrustedCacheError, match="1000000000000 bytes"):
        read_manifest(cache)


class Bomb:
    """Would write a file when it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.place, "executed"))


def test_a_pickle_in_place_of_the_block_table_is_refused_and_not_run(cache: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    size = (cache / "blocks.npy").stat().st_size
    as_array = io.BytesIO()
    np.save(as_array, np.array([Bomb(proof)], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, blocks=np.array([Bomb(proof)], dtype=object))
    pickled = pickle.dumps(Bomb(proof))
    for content in (as_array.getvalue(), zipped.getvalue(), pickled):
        for length in (len(content), size):
            reseal_table(cache, content.ljust(length, b"\0"))
            assert_refused(cache, "blocks.npy")
    assert not proof.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (SHAPE,)}",
        "{'descr': DESCR, 'fortran_order': False, 'shape': (1000000000000000,)}",
        "{'descr': DESCR, 'fortran_order': False, 'shape': (SHAPE, 10000000)}",
        "{'descr': DESCR, 'fortran_order': True, 'shape': (SHAPE, 1)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (SHAPE,)}",
        "{'descr': DESCR, 'fortran_order': False, 'shape': (-1,)}",
        "__import__('os').system('touch /tmp/softcache-executed')",
        "{" * 300,
        "",
    ],
)
def test_a_block_table_with_another_header_is_refused(header: str, cache: Path) -> None:
    content = (cache / "blocks.npy").read_bytes()
    table = np.load(cache / "blocks.npy")
    start = len(content) - table.nbytes
    filled = header.replace("DESCR", repr(table.dtype.descr)).replace("SHAPE", str(len(table)))
    head = b"\x93NUMPY\x02\x00" + (start - 12 + 384).to_bytes(4, "little")
    reseal_table(cache, head + filled.encode().ljust(start - 12 + 384) + table.tobytes())
    assert_refused(cache, "blocks.npy", CorruptCacheError)


@pytest.mark.parametrize(
    ("offsets", "saying"),
    [
        ([0, 0], "overlaps"),
        ([5000, 5001], "overlaps"),
        ([0, 2**40], "beyond the end"),
        ([0, 2**64 - 1], "beyond the end"),
        ([0, 69632 - 39], "beyond the end"),
    ],
)
def test_hdf5_chunks_that_overlap_or_leave_the_file_are_refused(
    offsets: list[int], saying: str, hdf5_cache: Path
) -> None:
    def edit(table: NDArray[Any]) -> None:
        table["offset"][-2:] = offsets

    assert (hdf5_cache / "targets.h5").stat().st_size == 69632
    edit_table(hdf5_cache, edit)
    assert_refused(hdf5_cache, saying, UntrustedCacheError)


def test_hdf5_offsets_other_than_the_files_own_are_refused_by_verify(hdf5_cache: Path) -> None:
    """Two equal checksummed blocks exchanged in the table alone: stock h5py and this reader would disagree."""

    def edit(table: NDArray[Any]) -> None:
        for field in ("offset", "crc32c", "sha256"):
            table[field][-2:] = table[field][-2:][::-1].copy()

    edit_table(hdf5_cache, edit)
    with pytest.raises(CorruptCacheError, match=r"soft_targets/c\.3\.0"):
        verify(hdf5_cache)


@pytest.mark.parametrize("field", ["size", "offset"])
def test_zarr_sizes_and_offsets_that_do_not_fit_are_refused(field: str, zarr_cache: Path) -> None:
    def edit(table: NDArray[Any]) -> None:
        table[field][-1] += 1

    edit_table(zarr_cache, edit)
    assert_refused(zarr_cache, "soft_targets/c.4.0", UntrustedCacheError)


def test_metadata_of_a_huge_stated_size_is_refused_unread(zarr_cache: Path) -> None:
    with (zarr_cache / "targets.zarr/zarr.json").open("ab") as file:
        file.truncate(10**12)  # sparse: nothing on disk, 1 TB when it is read
    edit_table(zarr_cache, lambda table: table["size"].__setitem__(0, 10**12))
    with pytest.raises(UntrustedCacheError, match=r"zarr\.json"):
        TargetCache(zarr_cache)


ZARR_EDITS: list[Callable[[Fields], object]] = [
    lambda metadata: metadata["codecs"].__setitem__(1, {"name": "evil", "configuration": {}}),
    lambda metadata: metadata["codecs"].append({"name": "zstd", "configuration": {"level": 0, "checksum": False}}),
    lambda metadata: metadata["codecs"].__setitem__(0, {"name": "bytes", "configuration": {"endian": "big"}}),
    lambda metadata: metadata.update(data_type="int16"),
    lambda metadata: metadata.update(data_type="evil"),
    lambda metadata: metadata.update(shape=[10**15, 4]),
    lambda metadata: metadata.update(shape=[24, 4]),
    lambda metadata: metadata["chunk_grid"]["configuration"].update(chunk_shape=[10**9, 4]),
    lambda metadata: metadata.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}}),
    lambda metadata: metadata.update(zarr_format=2),
    lambda metadata: metadata.update(node_type="group"),
    lambda metadata: metadata.clear(),
]


@pytest.mark.parametrize("edit", ZARR_EDITS)
def test_zarr_metadata_that_stock_zarr_reads_otherwise_is_refused_by_verify(
    edit: Callable[[Fields], object], zarr_cache: Path
) -> None:
    metadata = json.loads((zarr_cache / "targets.zarr/soft_targets/zarr.json").read_bytes())
    edit(metadata)
    replace_metadata(zarr_cache, 4, "soft_targets/zarr.json", json.dumps(metadata).encode())
    around = files_of(zarr_cache.parent)
    with pytest.raises(VerificationError, match="soft_targets"):
        verify(zarr_cache)
    assert files_of(zarr_cache.parent) == around


def test_the_store_of_another_file_format_is_refused_by_verify(hdf5_cache: Path) -> None:
    """Every byte outside the chunks replaced by the attacker's: h5py cannot open it, or finds other datasets."""
    whole = (hdf5_cache / "targets.h5").read_bytes()
    other = hdf5_cache.parent / "other.h5"
    with h5py.File(other, "w") as file:
        file["sample_digest"] = h5py.ExternalLink("/etc/passwd", "/")
    for header in (bytes(2048), other.read_bytes()[:2048].ljust(2048, b"\0")):
        content = header + whole[2048:]
        (hdf5_cache / "targets.h5").write_bytes(content)
        table = np.load(hdf5_cache / "blocks.npy")
        outside, position = hashlib.sha256(), 0
        for entry in np.sort(table[1:], order="offset"):
            outside.update(content[position : entry["offset"]])
            position = int(entry["offset"] + entry["size"])
        outside.update(content[position:])
        edit_table(hdf5_cache, lambda table: table["sha256"].__setitem__(0, np.void(outside.digest())))  # noqa: B023
        TargetCache(hdf5_cache)
        with pytest.raises(VerificationError):
            verify(hdf5_cache)


def test_looking_through_a_shelf_warns_of_a_bad_cache_and_finds_the_good_one(fast_folder: Path) -> None:
    good, bad = Tiny().make(fast_folder), Tiny(seed=1).make(fast_folder)
    reseal(bad.folder, lambda fields: fields.update(encoding={"name": ["dense"]}))
    warnings: list[str] = []
    assert [folder for folder, _ in Shelf(fast_folder, warnings.append).sealed()] == [good.folder]
    assert len(warnings) == 1
    assert "encoding" in warnings[0]


def test_a_cache_in_the_folder_of_another_key_does_not_serve_it(fast_folder: Path) -> None:
    wanted, other = Tiny(), Tiny(temperature=2.0)
    folder = other.make(fast_folder).folder
    shutil.move(folder, fast_folder / wanted.plan().key)
    plan = wanted.plan()
    with pytest.raises(VerificationError, match=other.plan().key[:12]):
        Shelf(fast_folder).serving(plan.row_key, plan.key, wanted.digests)
    with pytest.raises(VerificationError, match=other.plan().key[:12]):
        wanted.make(fast_folder)


def test_an_hdf5_file_of_huge_size_outside_its_chunks_is_refused_unread(hdf5_cache: Path) -> None:
    store = hdf5_cache / "targets.h5"
    extra = 10**12
    with store.open("ab") as file:
        file.truncate(store.stat().st_size + extra)  # sparse: nothing on disk, 1 TB when it is read
    edit_table(hdf5_cache, lambda table: table["size"].__setitem__(0, table["size"][0] + extra))
    with pytest.raises(UntrustedCacheError, match="bytes lie outside all chunks; at most 64000000"):
        TargetCache(hdf5_cache)
