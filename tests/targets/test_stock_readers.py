"""A cache is readable without softcache: stock zarr, h5py and numpy in a process that imports nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.targets.tiny import FLOATS, LAYOUT_NAMES, Tiny, chunk_extents, files_of

TOLERANCE = {"float16": 1e-3, "float32": 1e-6}

READ = """
import sys
import numpy as np
folder, layout, dtype, tolerance = sys.argv[1:]
if layout == "zarr":
    import zarr
    store = zarr.open(folder + "/targets.zarr", mode="r")
else:
    import h5py
    store = h5py.File(folder + "/targets.h5", "r")
assert float(store.attrs["temperature"]) == 4.0
assert list(store.attrs["class_names"]) == ["class 0", "class 1", "class 2", "class 3"]
assert sorted(store) == ["label", "sample_digest", "soft_targets", "view"]
found = {name: (store[name].shape, str(store[name].dtype)) for name in store}
assert found == {
    "sample_digest": ((23, 16), "uint8"),
    "view": ((23,), "int32"),
    "label": ((23,), "int64"),
    "soft_targets": ((23, 4), dtype),
}
soft_targets = store["soft_targets"][:]
assert abs(store["soft_targets"][7].astype("float64").sum() - 1) <= float(tolerance)
assert np.abs(soft_targets.astype("float64").sum(axis=1) - 1).max() <= float(tolerance)
assert store["label"][:8].tolist() == [0, 1, 2, 3, 0, 1, -1, 3]
assert store["view"][:7].tolist() == [0, 0, 0, 0, 0, 2, 0]
sys.stdout.buffer.write(soft_targets.tobytes())
"""

READ_TABLE = """
import hashlib, sys
import google_crc32c
import numpy as np
folder, layout = sys.argv[1:]
table = np.load(folder + "/blocks.npy")
assert table.dtype == np.dtype([("size", "<u8"), ("offset", "<u8"), ("crc32c", "<u4"), ("sha256", "V32")])
chunks = ["sample_digest/c.0.0", "view/c.0", "label/c.0", *(f"soft_targets/c.{block}.0" for block in range(5))]
if layout == "zarr":
    arrays = ("sample_digest", "view", "label", "soft_targets")
    names = ["zarr.json", *(f"{array}/zarr.json" for array in arrays), *chunks]
    assert len(table) == len(names)
    for name, entry in zip(names, table):
        content = open(f"{folder}/targets.zarr/{name}", "rb").read()
        assert entry["size"] == len(content)
        assert entry["offset"] == 0
        assert entry["sha256"].tobytes() == hashlib.sha256(content).digest()
        data = content if name.endswith("json") else content[:-4]
        assert entry["crc32c"] == google_crc32c.value(data)
        if name not in names[:5]:
            assert content[-4:] == int(entry["crc32c"]).to_bytes(4, "little")
else:
    import h5py
    content = open(folder + "/targets.h5", "rb").read()
    assert len(table) == 1 + len(chunks)
    inside = np.zeros(len(content), dtype=bool)
    for name, entry in zip(chunks, table[1:]):
        start, end = int(entry["offset"]), int(entry["offset"] + entry["size"])
        inside[start:end] = True
        assert entry["sha256"].tobytes() == hashlib.sha256(content[start:end]).digest()
        assert entry["crc32c"] == google_crc32c.value(content[start:end])
        array, _, place = name.partition("/c.")
        with h5py.File(folder + "/targets.h5", "r") as file:
            info = file[array].id.get_chunk_info(int(place.split(".")[0]))
        assert (info.byte_offset, info.size) == (start, end - start)
    outside = np.frombuffer(content, np.uint8)[~inside].tobytes()
    assert table[0]["size"] == len(outside)
    assert table[0]["offset"] == 0
    assert table[0]["sha256"].tobytes() == hashlib.sha256(outside).digest()
    assert table[0]["crc32c"] == google_crc32c.value(outside)
"""

NOTHING_OF_OURS = """
import sys
ours = [name for name in sys.modules if name.split(".")[0] in ("pipeline", "stages", "data", "tests")]
assert ours == [], ours
"""


def run_alone(script: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """A script in a process without our folder on its path."""
    command = [sys.executable, "-I", "-c", script + NOTHING_OF_OURS, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, check=False, cwd="/")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_stock_readers_see_plain_arrays_with_attributes(layout: str, dtype: str, tmp_path: Path) -> None:
    folder = Tiny(layout, dtype).make(tmp_path).folder
    done = run_alone(READ, folder, layout, dtype, TOLERANCE[dtype])
    assert done.returncode == 0, done.stderr.decode()
    chunks = chunk_extents(folder, Tiny(layout, dtype))
    first = chunks["soft_targets/c.0.0"]
    stored = files_of(folder)[first.file][first.offset : first.offset + first.data_bytes]
    assert done.stdout[: len(stored)] == stored


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_the_block_table_is_a_plain_numpy_file_of_sizes_places_and_checksums(layout: str, tmp_path: Path) -> None:
    folder = Tiny(layout).make(tmp_path).folder
    done = run_alone(READ_TABLE, folder, layout)
    assert done.returncode == 0, done.stderr.decode()


READ_LOGS = """
import sys
import numpy as np
folder, layout, dtype = sys.argv[1:]
if layout == "zarr":
    import zarr
    store = zarr.open(folder + "/targets.zarr", mode="r")
else:
    import h5py
    store = h5py.File(folder + "/targets.h5", "r")
codes, step = store["log_codes"][:], store["log_step"][:]
assert (codes.shape, codes.dtype, step.shape, step.dtype) == ((23, 4), dtype, (23, 1), "float32")
logs = np.where(codes == np.iinfo(dtype).max, -np.inf, codes * -step.astype("float64"))
probabilities = np.exp(logs)
sys.stdout.buffer.write((probabilities / probabilities.sum(axis=1, keepdims=True)).tobytes())
"""


@pytest.mark.parametrize("dtype", ["log-uint8", "log-uint16"])
@pytest.mark.parametrize("compression", ["none", "zstd", "blosc-lz4"])
def test_stock_zarr_decodes_quantised_logarithms_as_the_format_says(
    dtype: str, compression: str, tmp_path: Path
) -> None:
    tiny = Tiny("zarr", dtype, compression=compression)
    done = run_alone(READ_LOGS, tiny.make(tmp_path).folder, "zarr", dtype.removeprefix("log-"))
    assert done.returncode == 0, done.stderr.decode()
    found = np.frombuffer(done.stdout).reshape(23, 4)
    np.testing.assert_allclose(found, tiny.exact(), rtol=0, atol=1e-2 if dtype == "log-uint8" else 5e-5)


def test_stock_zarr_notices_a_flipped_bit_and_a_missing_chunk_is_no_probability(tmp_path: Path) -> None:
    folder = Tiny("zarr").make(tmp_path).folder
    chunk = folder / "targets.zarr/soft_targets/c.0.0"
    content = bytearray(chunk.read_bytes())
    content[9] ^= 16
    chunk.write_bytes(content)
    (folder / "targets.zarr/soft_targets/c.1.0").unlink()
    script = """
import sys
import numpy as np
import zarr
soft_targets = zarr.open(sys.argv[1], mode="r")["soft_targets"]
assert np.isnan(soft_targets[5:10]).all()
soft_targets[10:15]
try:
    soft_targets[0]
except ValueError as problem:
    assert "checksum" in str(problem), problem
else:
    raise AssertionError("the flipped bit passed")
"""
    done = run_alone(script, folder / "targets.zarr")
    assert done.returncode == 0, done.stderr.decode()
