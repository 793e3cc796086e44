"""The first look at many images: each once, remembered by the identity of its file, never a wrong answer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data.digests import Digests, array_digests
from data.errors import DatasetError
from data.folder import FEW_IMAGES, FolderSource
from data.image_files.first_look import IMAGES_IN_A_PIECE
from data.image_files.image_memory import memory_of
from data.looks import Looks
from tests.data.pictures import Pixels, grey, png, write
from tests.stages.toy import ENVIRONMENT

MANY = FEW_IMAGES + 400
EACH = 12


class Watched:
    """A progress bar that notes how many images were looked at, and raises KeyboardInterrupt after `at_most`."""

    def __init__(self, at_most: int = 10**9):
        self.totals: list[int] = []
        self.looked_at, self._at_most = 0, at_most

    @contextmanager
    def __call__(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        assert (what, unit) == ("looking at images", "images")
        self.totals.append(total)

        def advance(amount: int) -> None:
            self.looked_at += amount
            if self.looked_at > self._at_most:
                raise KeyboardInterrupt

        yield advance


def write_many(root: Path, classes: int, each: int) -> None:
    """Class folders of tiny images, all different."""
    for label in range(classes):
        (root / f"class_{label}").mkdir(parents=True)
        for number in range(each):
            rows = [bytes([label, number // 256, number % 256])]
            (root / f"class_{label}" / f"{number:05}.png").write_bytes(png(0, 8, 3, rows))


def content(root: Path, memory: Path | None, watched: Watched | None = None, workers: int = 2) -> str:
    """The content of a folder as one process sees it, which then remembers what it saw."""
    source = source_of(root, memory, watched or Watched(), workers)
    found = source.content()
    source.remember()
    return found


def source_of(root: Path, memory: Path | None, watched: Watched, workers: int = 2) -> FolderSource:
    looks = Looks(memory, watched, seconds_between_saves=0)
    return FolderSource(root, validation=0.2, test=0.2, split_seed=0, workers=workers, looks=looks)


def looked_at_again(root: Path, memory: Path) -> int:
    """How many images are looked at where `memory` is; the content is that of a first look."""
    watched = Watched()
    assert content(root, memory, watched) == content(root, None)
    assert watched.totals == ([watched.looked_at] if watched.looked_at else [])
    return watched.looked_at


def digests_of(source: FolderSource) -> dict[str, Digests]:
    return {split: dataset.sample_digests() for split, dataset in source.load().items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A few images of two classes, which were looked at and remembered."""
    for name, first in (("cat", 0), ("ant", 100)):
        for number in range(EACH):
            write(tmp_path / "images" / name / f"{number:02}.png", grey(first + number))
    assert looked_at_again(tmp_path / "images", tmp_path / "memory") == 2 * EACH
    return tmp_path / "images"


@pytest.fixture
def memory(root: Path) -> Path:
    return root.parent / "memory"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "images"
    write_many(root, 4, MANY // 4)
    return root


def test_what_was_seen_once_is_not_opened_again(root: Path, memory: Path) -> None:
    assert looked_at_again(root, memory) == 0


def of_other_pixels(path: Path) -> Pixels:
    return grey(int(path.stem) + 5000)


def written_anew(path: Path) -> None:
    write(path, of_other_pixels(path))


def replaced_with_its_size_and_times(path: Path) -> None:
    """Another image of as many bytes, which claims to be as old: as rsync and tar leave it."""
    before = path.stat()
    other = write(path.with_name("other.png"), of_other_pixels(path))
    for one in (path, other):
        assert one.stat().st_size < 300
    size = max(before.st_size, other.stat().st_size)
    other.write_bytes(other.read_bytes().ljust(size, b"\0"))
    other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changed_in_place_with_its_times(path: Path) -> None:
    before, bytes_before = path.stat(), path.read_bytes()
    other = write(path.with_name("other.png"), of_other_pixels(path))
    bytes_after = other.read_bytes()
    other.unlink()
    path.write_bytes(bytes_after.ljust(len(bytes_before), b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino


def touched(path: Path) -> None:
    path.touch()


def renamed(path: Path) -> None:
    path.rename(path.with_name("zzz.png"))


def moved_to_another_class(path: Path) -> None:
    path.rename(path.parents[1] / "cat" / "moved.png")


def copied(path: Path) -> None:
    shutil.copyfile(path, path.with_name("copy.png"))


@pytest.mark.parametrize(
    "change",
    [
        written_anew,
        replaced_with_its_size_and_times,
        changed_in_place_with_its_times,
        touched,
        renamed,
        moved_to_another_class,
        copied,
    ],
)
def test_a_file_that_changed_is_looked_at_again_and_no_other(
    root: Path, memory: Path, change: Callable[[Path], None]
) -> None:
    change(root / "ant" / "03.png")
    assert looked_at_again(root, memory) == 1
    assert looked_at_again(root, memory) == 0


def test_files_that_are_gone_or_changed_places_are_noticed(root: Path, memory: Path) -> None:
    before = content(root, memory)
    (root / "ant" / "03.png").unlink()
    assert looked_at_again(root, memory) == 0
    assert content(root, memory) != before
    (root / "ant" / "04.png").rename(root / "ant" / "04.tmp.png")
    (root / "ant" / "05.png").rename(root / "ant" / "04.png")
    (root / "ant" / "04.tmp.png").rename(root / "ant" / "05.png")
    assert looked_at_again(root, memory) == 2
    assert looked_at_again(root, memory) == 0


def test_samples_from_memory_are_those_of_a_first_look(root: Path, memory: Path) -> None:
    remembering = source_of(root, memory, Watched(at_most=0))
    fresh, again = source_of(root, None, Watched()).load(), remembering.load()
    for split, dataset in fresh.items():
        np.testing.assert_array_equal(dataset.sample_digests(), again[split].sample_digests())
        np.testing.assert_array_equal(dataset.shapes, again[split].shapes)
        indices = np.arange(len(dataset))[::-1]
        for _ in range(2):  # decoded when first asked for, then kept
            np.testing.assert_array_equal(again[split].samples(indices), dataset.samples(indices))
        assert again[split].store.in_memory
        np.testing.assert_array_equal(array_digests(again[split].samples(indices)), dataset.sample_digests()[::-1])


def test_an_image_that_changes_its_shape_after_it_was_seen_is_named(root: Path, memory: Path) -> None:
    dataset = source_of(root, memory, Watched()).load()["training"]
    path = root / dataset.names[2]
    write(path, grey(1, 9, 9))
    with pytest.raises(DatasetError, match=rf"{path}: the image is \(1, 9, 9\) now, and was \(1, 8, 6\)"):
        dataset.samples(np.arange(len(dataset)))


def damage_positions(size: int) -> list[int]:
    return [0, 70, 200, size // 2, size - 1]


@pytest.mark.parametrize("part", range(5))
def test_a_flipped_bit_anywhere_is_as_if_nothing_were_remembered(root: Path, memory: Path, part: int) -> None:
    (root / "ant" / "03.png").touch()  # so that all of the memory is needed
    path = memory_of(memory, root)
    stored = bytearray(path.read_bytes())
    stored[damage_positions(len(stored))[part]] ^= 1
    path.write_bytes(stored)
    assert looked_at_again(root, memory) == 2 * EACH
    assert looked_at_again(root, memory) == 0


@pytest.mark.parametrize("kept", [0, 10, 700, -1])
def test_a_memory_cut_short_is_as_if_nothing_were_remembered(root: Path, memory: Path, kept: int) -> None:
    path = memory_of(memory, root)
    path.write_bytes(path.read_bytes()[:kept])
    watched = Watched()
    source = source_of(root, memory, watched)
    assert {split: len(part) for split, part in digests_of(source).items()} == {
        split: len(part) for split, part in digests_of(source_of(root, None, Watched())).items()
    }
    assert watched.looked_at == 2 * EACH
    source.remember()
    assert looked_at_again(root, memory) == 0


def test_a_memory_that_cannot_be_written_is_no_error(root: Path) -> None:
    (root.parent / "file").touch()
    assert content(root, root.parent / "file") == content(root, None)


def test_another_folder_with_the_same_images_has_its_own_memory_and_the_same_content(root: Path, memory: Path) -> None:
    expected = content(root, memory)
    other = Path(shutil.copytree(root, root.parent / "copy"))
    assert looked_at_again(other, memory) == 2 * EACH
    assert content(other, memory) == expected
    link = root.parent / "link"
    link.symlink_to(root)
    assert looked_at_again(link, memory) == 0


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_many_images_are_seen_alike_whatever_the_processes(many: Path, tmp_path: Path, workers: int) -> None:
    watched = Watched()
    source = source_of(many, tmp_path / "memory", watched, workers)
    digests = digests_of(source)
    assert (watched.totals, watched.looked_at) == ([MANY], MANY)
    assert sum(len(part) for part in digests.values()) == MANY
    for split, dataset in source.load().items():
        pixels = np.array([[int(name[6]), 0, int(name[8:13])] for name in dataset.names])
        pixels[:, 1:] = np.stack([pixels[:, 2] // 256, pixels[:, 2] % 256], axis=1)
        np.testing.assert_array_equal(array_digests(pixels.astype(np.uint8)[:, None, None]), digests[split])


def test_a_look_that_was_interrupted_goes_on_where_it_stopped(many: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        content(many, tmp_path / "memory", Watched(at_most=1000))
    seen = (1000 // IMAGES_IN_A_PIECE + 1) * IMAGES_IN_A_PIECE
    assert looked_at_again(many, tmp_path / "memory") == MANY - seen
    assert looked_at_again(many, tmp_path / "memory") == 0


def test_a_broken_image_costs_no_second_look_at_those_before_it(many: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(many, tmp_path / "images"))
    paths = [root / "class_2" / "00007.png", root / "class_3" / "00000.png"]
    whole = paths[0].read_bytes()
    for path in paths:
        path.write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"class_2/00007\.png: this image cannot be decoded"):
        content(root, tmp_path / "memory")
    for path in paths:
        path.write_bytes(whole)
    before = (MANY // 2 + 7) // IMAGES_IN_A_PIECE * IMAGES_IN_A_PIECE
    assert looked_at_again(root, tmp_path / "memory") == MANY - before


LOOKING = """\
import sys
from pathlib import Path
from tests.data.image_files.test_first_look import Watched, content
content(Path(sys.argv[1]), Path(sys.argv[2]), Watched(), workers=2)
"""


def test_a_look_that_was_killed_goes_on_and_leaves_no_process(tmp_path: Path) -> None:
    root, memory = tmp_path / "images", tmp_path / "memory"
    write_many(root, 5, 1000)
    command = [sys.executable, "-c", LOOKING, str(root), str(memory)]
    with subprocess.Popen(command, env=ENVIRONMENT) as process:
        path = memory_of(memory, root)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.002)
        children = [int(child) for task in Path(f"/proc/{process.pid}/task").iterdir() for child in children_of(task)]
        process.send_signal(signal.SIGKILL)
    assert 0 < looked_at_again(root, memory) < 5000
    assert children
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(task: Path) -> list[str]:
    return (task / "children").read_text().split()
