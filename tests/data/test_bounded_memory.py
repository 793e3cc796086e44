"""Datasets several times larger than what may stay in memory are digested and read in any order within a bound."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_parquet import encoded
from tests.data.test_webdataset import as_npy
from tests.data.test_webdataset import written as write_tar
from tests.stages.toy import ENVIRONMENT

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SAMPLES, SIDE = 4000, 128
AT_ONCE = 100  # rows of a group, as the datasets library writes them
WIDTH = 3 * SIDE * SIDE // 4  # floats of an array, which takes what an image takes
SET_MB = SAMPLES * 3 * SIDE * SIDE / 1e6
MOST_MB = SET_MB / 2  # above what the imports take

PROGRAM = """
import sys
from pathlib import Path
import numpy as np, pyarrow.parquet, PIL.Image
from data import Looks, source_of
import data.huggingface, data.parquet, data.webdataset
import data.shards.arrow_columns, data.shards.arrow_copies, data.shards.stored, data.shards.tar_samples
from pipeline.dataset import fingerprint
from pipeline.recipe import Data

if sys.argv[1] == "huggingface":
    import datasets
print("ready", flush=True)
sys.stdin.readline()
settings = Data(kind=sys.argv[1], path=sys.argv[2], input=sys.argv[3], memory_mb=1, workers=2)
parts = source_of(settings, Path("."), Looks(Path("memory"))).load()
samples = 0
for part in parts.values():
    fingerprint(part)
    order = np.random.default_rng(0).permutation(len(part))
    for start in range(0, len(order), 256):
        samples += len(part.samples(order[start : start + 256]))
print(samples)
"""


def pixels(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One colour each, so that they are quick to make and no two are equal."""
    colour = np.array([number % 256, number // 256, 7], np.uint8)
    return np.broadcast_to(colour, (SIDE, SIDE, 3))


def parquet_of_images(folder: Path) -> tuple[str, str, str]:
    with pq.ParquetWriter(folder / "a.parquet", pa.schema([("image", pa.binary()), ("label", pa.int64())])) as writer:
        for start in range(0, SAMPLES, AT_ONCE):
            rows = [encoded(pixels(number), "PPM") for number in range(start, start + AT_ONCE)]
            writer.write_table(pa.table({"image": rows, "label": [0, 1] * (AT_ONCE // 2)}))
    return "parquet", "a.parquet", "image"


def arrays_of(start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(start).random((AT_ONCE, WIDTH), np.float32)


def arrays_column(start: int) -> object:
    return pa.FixedSizeListArray.from_arrays(pa.array(arrays_of(start).reshape(-1)), WIDTH)


def parquet_of_arrays(folder: Path) -> tuple[str, str, str]:
    schema = pa.schema([("x", pa.list_(pa.float32(), WIDTH)), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "a.parquet", schema) as writer:
        for start in range(0, SAMPLES, AT_ONCE):
            writer.write_table(pa.table({"x": arrays_column(start), "label": [0, 1] * (AT_ONCE // 2)}))
    return "parquet", "a.parquet", "x"


def hugging_face_arrays(folder: Path) -> tuple[str, str, str]:
    datasets = pytest.importorskip("datasets")

    tables = [
        pa.table({"x": arrays_column(start), "label": [0, 1] * (AT_ONCE // 2)}) for start in range(0, SAMPLES, AT_ONCE)
    ]
    datasets.Dataset(pa.concat_tables(tables)).save_to_disk(str(folder / "saved"))
    return "huggingface", "saved", "x"


def tar_of_images(folder: Path) -> tuple[str, str, str]:
    members = []
    for number in range(SAMPLES):
        members += [(f"{number}.ppm", encoded(pixels(number), "PPM")), (f"{number}.cls", b"%d" % (number % 2))]
    write_tar(folder / "a.tar", members)
    return "webdataset", "a.tar", "image"


def tar_of_arrays(folder: Path) -> tuple[str, str, str]:
    members = []
    for start in range(0, SAMPLES, AT_ONCE):
        for number, values in enumerate(arrays_of(start), start):
            members += [(f"{number}.npy", as_npy(values)), (f"{number}.cls", b"%d" % (number % 2))]
    write_tar(folder / "a.tar", members)
    return "webdataset", "a.tar", "npy"


def anonymous_mb(process: int) -> float:
    """Memory of a process that is no mapped file."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0  # it has just ended


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
@pytest.mark.parametrize(
    "make", [parquet_of_images, parquet_of_arrays, hugging_face_arrays, tar_of_images, tar_of_arrays]
)
def test_a_set_twice_the_bound_is_read_within_it(tmp_path: Path, make: Callable[[Path], tuple[str, str, str]]) -> None:
    arguments = make(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    before = highest = anonymous_mb(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    while process.poll() is None:
        highest = max(highest, anonymous_mb(process.pid))
        time.sleep(0.002)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, f"{SAMPLES}\n"), err
    assert highest - before < MOST_MB, f"{highest - before:.0f} MB for a set of {SET_MB:.0f} MB"
    print(f"{make.__name__}: {highest - before:.1f} MB above {before:.0f} MB for a set of {SET_MB:.0f} MB")
