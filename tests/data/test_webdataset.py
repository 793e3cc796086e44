"""WebDataset's .tar files: the same samples as everywhere, read where they lie; nothing is extracted, odd members are refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.digests import array_digests
from data.errors import DatasetError
from data.looks import Looks
from data.shaping import shaped
from data.shards.tar_index import index_of
from data.webdataset import WebDatasetSource
from pipeline.dataset import refuse_malformed
from tests.data.pictures import as_sample, colour, grey, settings
from tests.data.test_parquet import encoded, kept

ROWS = 40

Members = Sequence[tuple[str, bytes]]


def source_of(path: Path, **options: Any) -> WebDatasetSource:
    return WebDatasetSource(path, validation=0.2, test=0.2, split_seed=0, **options)


def load(path: Path, **options: Any) -> Mapping[str, Any]:
    return source_of(path, **options).load()


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DatasetError) as refused:
        load(path, **options)
    return str(refused.value)


def as_npy(values: Any) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def images(count: int = ROWS, first: int = 0) -> Members:
    """Grey images in two classes; every tenth has no label."""
    members = []
    for number in range(count):
        members.append((f"{first + number:04}.png", encoded(grey(first + number))))
        if number % 10:
            members.append((f"{first + number:04}.cls", str(number % 2).encode()))
    return members


def written(path: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> Path:
    """Write a .tar file, as Python's tarfile does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def assert_are_the_images(parts: Mapping[str, Any]) -> None:
    """`images()`, split."""
    assert sorted(position for part in parts.values() for position in part.positions.tolist()) == list(range(ROWS))
    for part in shaped(parts, settings()).values():
        refuse_malformed(part, "tar")
        expected = np.stack([as_sample(grey(position)) for position in part.positions])
        np.testing.assert_array_equal(part.samples(np.arange(len(part))), expected)
        np.testing.assert_array_equal(part.sample_digests(), array_digests(expected))
        labels = [position % 2 if position % 10 else -1 for position in part.positions]
        assert part.labels().tolist() == labels


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_images_are_split_by_content_and_join_with_the_arrays(tmp_path: Path, form: int) -> None:
    parts = load(written(tmp_path / "a.tar", images(), form))
    assert list(parts) == ["training", "validation", "test"]
    assert_are_the_images(parts)
    assert parts["test"].names[0] == f"a.tar, sample {parts['test'].positions[0]:04}"


def test_what_the_webdataset_library_writes_is_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "set-%04d.tar"), maxcount=15, verbose=0) as writer:
        for number in range(ROWS):
            label = {"cls": number % 2} if number % 10 else {}
            writer.write({"__key__": f"sample{number:04}", "png": encoded(grey(number)), **label})
    assert len(list(tmp_path.iterdir())) == 3
    assert_are_the_images(load(tmp_path))
    assert_are_the_images(load(tmp_path / "set-{0000..0002}.tar"))
    values = np.random.default_rng(0).normal(size=(ROWS, 3, 2)).astype(np.float32)
    (tmp_path / "arrays").mkdir()
    with webdataset.TarWriter(str(tmp_path / "arrays" / "a.tar")) as writer:
        for number in range(ROWS):
            meta = {"label": number % 2, "source": "x"}
            writer.write({"__key__": f"deep/{number}", "values.npy": values[number], "json": meta})
    part = load(tmp_path / "arrays", input_ending="values.npy")["training"]
    np.testing.assert_array_equal(part.samples(np.arange(len(part))), values[part.positions])
    assert part.labels().tolist() == [position % 2 for position in part.positions]


@pytest.mark.parametrize("memory_mb", [0, 10])
def test_arrays_are_read_in_any_order(tmp_path: Path, memory_mb: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, (ROWS, 2, 3)).astype(">i2")
    members = [
        member
        for number in range(ROWS)
        for member in (
            (f"{number}.npy", as_npy(np.asfortranarray(values[number]))),
            (f"{number}.cls", b"%d" % (number % 2)),
        )
    ]
    path = written(tmp_path / "a.tar", members)
    for part in load(path, input_ending="npy", memory_mb=memory_mb).values():
        order = np.random.default_rng(1).permutation(len(part))
        assert part.batches_ahead == (0 if memory_mb else 2)
        assert part.samples(order).dtype == np.int16
        np.testing.assert_array_equal(part.samples(order), values[part.positions[order]])
        np.testing.assert_array_equal(part.sample_digests(), array_digests(values)[part.positions])


def test_the_splits_of_the_files_are_kept(tmp_path: Path) -> None:
    for place, name in enumerate(("train-0.tar", "train-1.tar", "val/0.tar", "test/0.tar")):
        written(tmp_path / name, images(20, 100 * place))
    parts = load(tmp_path)
    assert {split: len(part) for split, part in parts.items()} == {"training": 40, "validation": 20, "test": 20}
    assert parts["training"].place(25) == f"{tmp_path}/train-1.tar, sample 0105"
    np.testing.assert_array_equal(parts["training"].sample(25), as_sample(grey(105)))
    assert set(source_of(tmp_path).files()) == {"train-0.tar", "train-1.tar", "val/0.tar", "test/0.tar"}


def test_a_field_of_json_is_the_label_if_data_label_names_it(tmp_path: Path) -> None:
    members = []
    for number in range(ROWS):
        members += [(f"{number}.png", encoded(grey(number))), (f"{number}.cls", b"0")]
        members.append((f"{number}.json", json.dumps({"fine": number % 2 if number % 5 else None}).encode()))
    path = written(tmp_path / "a.tar", members)
    part = load(path, label_field="fine")["training"]
    assert part.labels().tolist() == [position % 2 if position % 5 else -1 for position in part.positions]
    assert (load(path, class_names=("a", "b"))["training"].labels() == 0).all()


def test_one_of_several_images_is_the_sample_if_data_input_names_its_ending(tmp_path: Path) -> None:
    members = []
    for number in range(ROWS):
        members += [(f"{number}.seg.png", encoded(grey(number))), (f"{number}.JPG", encoded(colour(number), "JPEG"))]
        members.append((f"{number}.cls", str(number % 2).encode()))
    path = written(tmp_path / "a.tar", members)
    assert "sample 0 has several images: .seg.png, .jpg. Name the ending of the samples with data.input" in refusal(
        path
    )
    part = load(path, input_ending="seg.png")["training"]
    np.testing.assert_array_equal(part.sample(0), as_sample(grey(int(part.positions[0]))))
    assert load(path, input_ending=".jpg")["training"].sample_shape == (3, 8, 6)
    assert "sample 0 has no member .bmp; it has .seg.png, .jpg, .cls" in refusal(path, input_ending="bmp")


@pytest.mark.parametrize(
    ("member", "mentions"),
    [
        (("x.cls", b"two"), "x.cls: b'two' is no label; the number of a class is needed"),
        (("x.cls", b"1.0"), "x.cls: b'1.0' is no label"),
        (("x.cls", b"9" * 100), "x.cls: 100 bytes are too many for a .cls; at most 64 are read"),
        (("x.cls", b"-2"), "sample x has label -2; 0 to 1 are allowed, and -1 for none"),
        (("x.json", b"{"), "x.json: this is no JSON ("),
        (("x.json", b"[" * 10**6), "x.json: this is no JSON ("),
        (("x.json", b'{"label": "cat"}'), "x.json: field 'label' is 'cat'; the number of a class is needed"),
        (("x.json", b'{"label": true}'), "x.json: field 'label' is True; the number of a class is needed"),
        (("x.png", b"again"), "sample x has two members that end in .png"),
        (("x.jpg", b"two"), "sample x has several images: .png, .jpg"),
        (("y.txt", b"text"), "sample y has no image; it has .txt. Name the ending of the samples with data.input"),
        (("0003.png", b"again"), "sample 0003 is there twice, with others between"),
        (("README", b"text"), "the member 'README' has no place in a WebDataset"),
        (("a.b/c", b"text"), "the member 'a.b/c' has no place in a WebDataset"),
        (("a\x1b[2Jb.png", b"text"), "the member 'a\\x1b[2Jb.png' has no place in a WebDataset"),
        (("y.png", b"no image"), "sample y: this image cannot be decoded"),
    ],
)
def test_members_that_break_the_rules_are_refused_by_name(
    tmp_path: Path, member: tuple[str, bytes], mentions: str
) -> None:
    path = written(tmp_path / "a.tar", [*images(), ("x.png", encoded(grey(999))), member])
    said = refusal(path, class_names=("a", "b"))
    assert said.startswith(f"{path}")
    assert mentions in said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.FIFOTYPE, "device"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, said: str) -> None:
    path = written(tmp_path / "a.tar", images())
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("x.png")
        member.type, member.linkname = kind, "0000.png"
        tar.addfile(member)
    assert refusal(path) == f"{path}: the member 'x.png' is a {said}; only plain files are read. Leave it out."


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.REGTYPE, "the member 'x.png' does not lie behind the one before"),
        (tarfile.GNUTYPE_LONGNAME, "this is no whole .tar file ("),
        (tarfile.XHDTYPE, "this is no whole .tar file ("),
        (tarfile.GNUTYPE_SPARSE, "the member 'x.png' is a file of another kind"),
    ],
)
def test_a_negative_size_leads_nowhere(tmp_path: Path, kind: bytes, said: str) -> None:
    header = bytearray(tarfile.TarInfo("x.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = (
        b"\xff" + (-1024).to_bytes(11, "big", signed=True),
        kind,
        b" " * 8,
    )
    header[148:156] = b"%06o\0 " % sum(header)
    path = written(tmp_path / "a.tar", [("0.png", b""), ("1.png", b"")])
    path.write_bytes(path.read_bytes()[:1024] + header + bytes(10240))
    assert refusal(path).startswith(f"{path}: {said}")


def test_names_that_lead_elsewhere_are_mere_names(tmp_path: Path) -> None:
    members = [(f"{prefix}{name}", content) for name, content in images() for prefix in ("../../", "/etc/")]
    members = sorted(members)
    path = written(tmp_path / "inside" / "a.tar", [(name, content) for name, content in members if name[0] == "."])
    assert_are_the_images(load(path))
    assert load(path)["training"].names[0].startswith("a.tar, sample ../../")
    assert_are_the_images(load(written(path, [(name, content) for name, content in members if name[0] == "/"])))
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "inside", path]


def test_folders_hidden_files_and_notes_of_the_library_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in [("deep/._0000.png", b""), ("__dataset__.json__", b""), *images()]:
            member = tarfile.TarInfo(name if name.startswith(("deep", "__")) else f"deep/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert_are_the_images(load(path))


def test_a_compressed_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", images())
    (tmp_path / "set" / "more").mkdir(parents=True)
    (tmp_path / "set" / "more" / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    written(tmp_path / "set" / "a.tar", images())
    assert refusal(tmp_path / "set").startswith(f"{tmp_path}/set/more/b.tar.gz: this file is compressed")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert refusal(path).startswith(f"{path}: this file is compressed (gzip)")


def test_a_file_that_was_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", images(3))
    whole = path.read_bytes()
    end = max(place for place in range(0, len(whole), 512) if any(whole[place : place + 512])) + 512
    for length in (
        0,
        9,
        512,
        700,
        1024,
        end - 512,
        end - 100,
        end,
    ):  # `end`: all members are there, the end's mark is not
        path.write_bytes(whole[:length])
        assert refusal(path).startswith(f"{path}: "), length
    path.write_bytes(whole[: end + 512])
    assert "samples leave the" in refusal(path)


def test_a_damaged_header_is_refused_where_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", images())
    content = bytearray(path.read_bytes())
    content[1024 * 8] ^= 1
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: no member and no end of the archive is at byte {1024 * 8}.")


def test_files_without_samples_are_refused(tmp_path: Path) -> None:
    assert "there are no samples in it" in refusal(written(tmp_path / "a.tar", []), class_names=("a", "b"))
    (tmp_path / "b.tar").write_bytes(b"nonsense" * 1000)
    assert "this is no whole .tar file (" in refusal(tmp_path / "b.tar")
    (tmp_path / "none").mkdir()
    assert "no .tar file is in this folder" in refusal(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (
            as_npy(np.zeros((2, 4), np.float32)),
            "shape (2, 4) and dtype float32, but a.tar, sample 0 has (2, 3) and float32",
        ),
        (
            as_npy(np.zeros((2, 3), np.float64)),
            "shape (2, 3) and dtype float64, but a.tar, sample 0 has (2, 3) and float32",
        ),
        (as_npy(np.full((2, 3), np.nan, np.float32)), "the sample holds NaN or infinity"),
        (as_npy(np.zeros((2, 3), np.float32))[:-1], "the array should hold 24 bytes, but 23 are there"),
        (as_npy(np.array([{}, 1], object)), "the array should hold Python objects. Only plain numbers are read"),
        (b"nonsense", "this is no .npy file ("),
    ],
)
def test_arrays_that_break_the_rules_are_refused_by_key(tmp_path: Path, content: bytes, mentions: str) -> None:
    members = [(f"{number}.npy", as_npy(np.zeros((2, 3), np.float32) + number)) for number in range(ROWS)]
    path = written(tmp_path / "a.tar", [*members, ("x.npy", content)])
    assert refusal(path, input_ending="npy", class_names=("a", "b")).startswith(f"{path}, sample x: {mentions}")


def test_the_index_and_the_digests_are_remembered_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("webdataset", "shards.shard_looks"):
        monkeypatch.setattr(f"data.{module}.FEW_SAMPLES", 0)
    for number in range(2):
        written(tmp_path / "set" / f"{number}.tar", images(20, 100 * number))
    looks = Looks(tmp_path / "memory")
    first = load(tmp_path / "set", looks=looks)
    before = {kind: kept(tmp_path / "memory", kind) for kind in ("tar", "looks")}
    assert [len(found) for found in before.values()] == [2, 2]
    again = load(tmp_path / "set", looks=looks)
    for split, part in first.items():
        np.testing.assert_array_equal(part.sample_digests(), again[split].sample_digests())
        np.testing.assert_array_equal(part.labels(), again[split].labels())
        np.testing.assert_array_equal(part.sample(2), again[split].sample(2))
        assert part.names == again[split].names
    assert {kind: kept(tmp_path / "memory", kind) for kind in before} == before
    written(tmp_path / "set" / "1.tar", images(20, 300))
    changed = load(tmp_path / "set", looks=looks)
    assert sum(part.names.count("1.tar, sample 0300") for part in changed.values()) == 1
    for kind, known in before.items():
        now = kept(tmp_path / "memory", kind)
        assert (len(now), len(now.items() & known.items())) == (2, 1)


def test_several_processes_index_files_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        written(tmp_path / f"{number}.tar", images(20, 100 * number))
    alone = load(tmp_path, workers=2)
    monkeypatch.setattr("data.webdataset.BYTES_WORTH_PROCESSES", 0)
    together = load(tmp_path, workers=2)
    for split, part in alone.items():
        assert part.names == together[split].names
        np.testing.assert_array_equal(part.sample_digests(), together[split].sample_digests())
        np.testing.assert_array_equal(part.labels(), together[split].labels())
    (tmp_path / "3.tar").write_bytes((tmp_path / "3.tar").read_bytes()[:3000])
    assert refusal(tmp_path, workers=2).startswith(f"{tmp_path}/3.tar: ")


def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", images())
    part = load(path, memory_mb=0)["training"]
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DatasetError, match="and did not when the run began"):
        part.sample(len(part) - 1)


def test_an_index_takes_few_bytes_a_sample(tmp_path: Path) -> None:
    index = index_of(written(tmp_path / "a.tar", images()), "image", "label")
    assert index.labels.tolist() == [number % 2 if number % 10 else -1 for number in range(ROWS)]
    assert sum(array.nbytes for array in index.arrays().values()) == ROWS * (len("0000") + 1 + 3 * 8)
