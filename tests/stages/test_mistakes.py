"""A user's mistakes at the command line: an exit code and one short paragraph that says what to do, never a traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from data import DatasetError
from pipeline.errors import SoftcacheError
from stages import cli
from tests.stages.conftest import Command, Said
from tests.stages.toy import ENVIRONMENT, RECIPE, Toy, toy_arrays, write_npz

LONGEST_PARAGRAPH = 700  # characters: paths and digests included


@dataclass(frozen=True)
class Mistake:
    """Settings and files that are wrong, the exit code they get and what the message must mention."""

    name: str
    mentions: tuple[str, ...]
    settings: tuple[str, ...] = ()
    prepare: Callable[[Toy], object] = field(default=lambda toy: None)
    stage: str = "student"
    code: int = 1


def assert_one_paragraph(said: Said, code: int, *mentions: str) -> None:
    """The last thing on stderr is one paragraph; stdout holds no result and nowhere is a traceback."""
    assert said.code == code, said.err
    paragraph = said.err[said.err.rindex("softcache: ") :]
    assert len(paragraph) < LONGEST_PARAGRAPH, paragraph
    assert "\n\n" not in paragraph
    assert "Traceback" not in said.err + said.out
    for mention in mentions:
        assert mention in paragraph, paragraph


def dataset(toy: Toy, **changed: np.ndarray) -> None:
    write_npz(toy.folder / "toy.npz", {**toy_arrays(), **changed})


def with_nan(toy: Toy) -> None:
    values = toy_arrays()["x"].astype(np.float32)
    values[17, 2] = np.nan
    dataset(toy, x=values)


def with_label(toy: Toy, row: int, label: int) -> None:
    labels = toy_arrays()["y"].copy()
    labels[row] = label
    dataset(toy, y=labels)


def truncated(toy: Toy) -> None:
    whole = (toy.folder / "toy.npz").read_bytes()
    (toy.folder / "toy.npz").write_bytes(whole[: len(whole) // 2])


def module(source: str) -> Callable[[Toy], object]:
    """A user's own module beside the recipe."""
    return lambda toy: (toy.folder / "users_module.py").write_text(f"import torch\nfrom torch import nn\n\n\n{source}")


def users(what: str) -> tuple[str, ...]:
    return (f"{what}.model=users_module:build", f"{what}.options={{}}")


NAN_TEACHER = """\
class Nan(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(6, classes)

    def forward(self, inputs):
        logits = self.head(inputs)
        return logits if self.training or len(inputs) > 60 else logits / 0


def build(shape, classes):
    return Nan(shape, classes)
"""

RECIPE_MISTAKES = [
    Mistake("unknown key", ("toy.toml", "targets.temprature", "targets.temperature"), ("targets.temprature=3.0",)),
    Mistake("unknown table", ("toy.toml", "studnet", "student"), ("studnet.labelled=3",)),
    Mistake(
        "wrong type", ("toy.toml", "targets.rows_per_block", '"many"', "integer"), ("targets.rows_per_block=many",)
    ),
    Mistake(
        "out of range", ("toy.toml", "targets.temperature", "-1.0", "greater than 0"), ("targets.temperature=-1.0",)
    ),
    Mistake("no such choice", ("toy.toml", "targets.layout", '"tar"', "'zarr' or 'hdf5'"), ("targets.layout=tar",)),
    Mistake("coefficient above 1", ("toy.toml", "1.5", "convex"), ("student.distillation.coefficient=1.5",)),
    Mistake("steps and epochs", ("toy.toml", "student.training", "steps", "epochs"), ("student.training.epochs=2",)),
    Mistake("missing key", ("toy.toml", "data.kind"), ("data.kind=none",)),
    Mistake("missing path", ("toy.toml", "npz", "path"), ("data.path=none",)),
    Mistake("a path of no use", ("toy.toml", "kind = 'digits'", "path = 'toy.npz'"), ("data.kind=digits",)),
    Mistake("no key=value", ("--set", "'temperature'", "key=value"), ("temperature",)),
    Mistake("a value, not a table", ("--set", "name.first=1", "not a table"), ("name.first=1",)),
    Mistake("no TOML", ("toy.toml", "not a TOML file"), prepare=lambda toy: toy.recipe.write_text("name = = 'toy'")),
    Mistake(
        "recipe in Latin-1",
        ("toy.toml", "not a TOML file"),
        prepare=lambda toy: toy.recipe.write_bytes(RECIPE.encode() + "# café".encode("latin-1")),
    ),
    Mistake("unknown option", ("mlp", "options.widht", "hidden"), ("student.options={ widht = [4] }",)),
    Mistake("wrong option", ("mlp", "options.hidden", "-4"), ("student.options={ hidden = [-4] }",)),
    Mistake("no such model", ("'resnet'", "cnn, mlp"), ("student.model=resnet",)),
    Mistake("no such module", ("'users_none:build'",), ("student.model=users_none:build",)),
    Mistake(
        "cnn of vectors", ("cnn", "(channels, height, width)", "(6,)"), ("teacher.model=cnn", "teacher.options={}")
    ),
    Mistake("too many labels", ("student.labelled = 5000", "labelled samples"), ("student.labelled=5000",)),
    Mistake("channels", ("2 channels", "(6,)"), ("data.normalise={ mean = [0.0, 1.0], std = [1.0, 1.0] }",)),
    Mistake("no such class", ("'dog'", "ant, bee, cat"), ('student.classes=["ant", "dog"]',)),
]

IMPOSSIBLE_STUDENTS = [
    "student.model=nowhere:build",
    "student.labelled=5000",
    'student.classes=["ant", "dog"]',
    "student.options={ widht = [4] }",
]


@pytest.mark.parametrize("setting", IMPOSSIBLE_STUDENTS)
def test_an_impossible_student_is_refused_before_its_teacher_is_trained(
    fresh: Toy, softcache: Command, setting: str
) -> None:
    assert softcache(*fresh.arguments("student", settings=[setting])).code == 1
    assert not list(fresh.folder.glob("runs/teacher/*"))
    assert not list(fresh.folder.glob("caches/*"))


DATASET_MISTAKES = [
    Mistake("missing file", ("nowhere.npz", "no such file"), ("data.path=nowhere.npz",)),
    Mistake("truncated file", ("toy.npz", "not a whole .npz"), prepare=truncated),
    Mistake(
        "wrong magic",
        ("toy.npz", "not a whole .npz"),
        prepare=lambda toy: (toy.folder / "toy.npz").write_bytes(b"GIF89a"),
    ),
    Mistake("NaN", ("toy.npz", "row 17", "NaN"), prepare=with_nan),
    Mistake("label too large", ("toy.npz", "row 5", "label 3", "0 to 2"), prepare=lambda toy: with_label(toy, 5, 3)),
    Mistake("label below -1", ("toy.npz", "row 6", "label -2", "0 to 2"), prepare=lambda toy: with_label(toy, 6, -2)),
    Mistake(
        "unequal lengths", ("toy.npz", "200 samples", "(7,)"), prepare=lambda toy: dataset(toy, y=np.zeros(7, int))
    ),
    Mistake("unknown array", ("toy.npz", "'z'"), prepare=lambda toy: dataset(toy, z=np.zeros(3))),
    Mistake(
        "no samples", ("toy.npz",), prepare=lambda toy: dataset(toy, x=np.zeros((0, 6), np.float32), y=np.zeros(0, int))
    ),
]

USERS_CODE = [
    Mistake(
        "teacher returns NaN",
        ("NaN or infinity", "sample 0 of the training split", "finished blocks are kept"),
        (*users("teacher"), "targets.batch_size=8", "teacher.training.steps=1"),
        module(NAN_TEACHER),
    ),
    Mistake(
        "teacher of other classes",
        ("shape", "5", "3 classes"),
        (*users("teacher"), "teacher.training.steps=1"),
        module("def build(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5))\n"),
    ),
    Mistake(
        "model function raises",
        ("KeyError", "no weights today", "build", "users_module.py", "--debug"),
        users("student"),
        module("def build(shape, classes):\n    raise KeyError('no weights today')\n"),
    ),
    Mistake(
        "model function takes other arguments",
        ("users_module:build", "width"),
        ("student.model=users_module:build", "student.options={ width = 3 }"),
        module("def build(shape, classes):\n    return nn.Linear(6, classes)\n"),
    ),
    Mistake(
        "model function returns no module",
        ("users_module:build", "list", "torch.nn.Module"),
        users("student"),
        module("def build(shape, classes):\n    return [shape, classes]\n"),
    ),
    Mistake(
        "forward raises",
        ("RuntimeError", "too tired", "forward", "users_module.py", "--debug"),
        users("student"),
        module(
            "class Tired(nn.Linear):\n    def forward(self, inputs):\n        raise RuntimeError('too tired')\n\n\n"
            "def build(shape, classes):\n    return Tired(6, classes)\n"
        ),
    ),
    Mistake(
        "dataset function raises",
        ("ZeroDivisionError", "build", "users_module.py", "--debug"),
        ("data.kind=function", "data.path=none", "data.function=users_module:build"),
        module("def build(folder):\n    return 1 / 0\n"),
    ),
    Mistake(
        "dataset function returns a list",
        ("users_module:build", "list", "mapping"),
        ("data.kind=function", "data.path=none", "data.function=users_module:build"),
        module("def build(folder):\n    return [1, 2]\n"),
    ),
    Mistake(
        "module with a mistake in it",
        ("SyntaxError", "users_module.py"),
        users("student"),
        module("def build(shape, classes)\n    return 1\n"),
    ),
]


@pytest.mark.parametrize(
    "mistake", [*RECIPE_MISTAKES, *DATASET_MISTAKES, *USERS_CODE], ids=lambda mistake: mistake.name
)
def test_a_users_mistake_is_told_in_one_paragraph(fresh: Toy, softcache: Command, mistake: Mistake) -> None:
    mistake.prepare(fresh)
    said = softcache(*fresh.arguments(mistake.stage, settings=mistake.settings))
    assert_one_paragraph(said, mistake.code, *mistake.mentions)


@pytest.mark.parametrize("setting", ["student.options={ widht = [4] }", "student.model=resnet"])
def test_a_students_wrong_model_is_found_before_the_teacher_is_trained(
    fresh: Toy, softcache: Command, setting: str
) -> None:
    assert softcache(*fresh.arguments("student", settings=[setting])).code == 1
    assert not (fresh.folder / "runs").exists()


@pytest.mark.parametrize("mistake", DATASET_MISTAKES, ids=lambda mistake: mistake.name)
def test_nothing_is_written_for_a_dataset_that_cannot_be_read(fresh: Toy, softcache: Command, mistake: Mistake) -> None:
    mistake.prepare(fresh)
    softcache(*fresh.arguments("student", settings=mistake.settings))
    assert not (fresh.folder / "runs").exists()
    assert not (fresh.folder / "caches").exists()


@pytest.mark.parametrize(
    "mistake", [RECIPE_MISTAKES[0], DATASET_MISTAKES[0], USERS_CODE[2]], ids=lambda mistake: mistake.name
)
def test_debug_shows_the_traceback_of_a_users_mistake(
    fresh: Toy, monkeypatch: pytest.MonkeyPatch, mistake: Mistake
) -> None:
    mistake.prepare(fresh)
    monkeypatch.setattr(sys, "argv", ["softcache", *fresh.arguments("student", settings=mistake.settings), "--debug"])
    with pytest.raises((SoftcacheError, DatasetError, KeyError)) as raised:
        cli.main()
    assert len(raised.traceback) > 3


def test_debug_prints_a_traceback_in_a_process_of_its_own(fresh: Toy) -> None:
    ended = fresh.process("student", "--debug", settings=["targets.temprature=3.0"])
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "RecipeError" in ended.stderr


def test_an_unknown_recipe_is_named_with_the_nearest_one(softcache: Command) -> None:
    assert_one_paragraph(softcache("student", "digit"), 1, "digit", "Did you mean 'digits'?")


@pytest.mark.parametrize(
    "arguments",
    [
        ("studnet",),
        ("student", "digits", "more"),
        ("student", "--no-such-option"),
        ("student", "--set"),
        ("predict",),
        ("caches", "show"),
        ("caches", "burn"),
        ("convert", "only-one.pt"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(softcache: Command, arguments: tuple[str, ...]) -> None:
    said = softcache(*arguments)
    assert said.code == 2
    assert "Error: " in said.err
    assert "Traceback" not in said.err


def one_block(toy: Toy) -> Path:
    return toy.cache() / "targets.zarr" / "soft_targets" / "c.0.0"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


OTHER_COEFFICIENT = "student.distillation.coefficient=0.5"


@pytest.mark.parametrize("damaged", ["block", "block gone", "manifest", "block table"])
def test_a_damaged_cache_is_refused_naming_the_object(finished: Toy, softcache: Command, damaged: str) -> None:
    cache = finished.cache()
    if damaged == "block":
        flip(one_block(finished), 40)
    elif damaged == "block gone":
        one_block(finished).unlink()
    else:
        flip(cache / {"manifest": "manifest.json", "block table": "blocks.npy"}[damaged], 150)
    mention = {"manifest": "manifest.json", "block table": "blocks.npy"}.get(damaged, "soft_targets/c.0.0")
    said = softcache(*finished.arguments("student", settings=[OTHER_COEFFICIENT]))
    assert_one_paragraph(said, 3, mention)
    assert len(finished.records("student", OTHER_COEFFICIENT)) == 0
    assert_one_paragraph(softcache("caches", "verify", "--workspace", str(finished.folder)), 3, mention)


def test_verify_checks_every_sha256_before_the_student_begins(finished: Toy, softcache: Command) -> None:
    flip(one_block(finished), -1)  # in the codec's own trailer, which no crc32c covers
    said = softcache(*finished.arguments("student", "--verify", settings=[OTHER_COEFFICIENT]))
    assert_one_paragraph(said, 3, "sha256")


def test_an_uncertified_temperature_is_refused_with_those_that_are(finished: Toy, softcache: Command) -> None:
    said = softcache(*finished.arguments("student", settings=["student.distillation.temperature=3.0"]))
    assert_one_paragraph(said, 3, "temperature 3.0", "1.0, 2.0, 4.0, 8.0", "targets.certify")


def test_too_large_an_error_of_the_cache_is_refused_with_both_numbers(finished: Toy, softcache: Command) -> None:
    stricter = "student.distillation.max_kl=1e-12"
    assert "above max_kl = 1e-12" in finished.status("student", stricter)["reason"]
    for settings in ([stricter], [stricter, OTHER_COEFFICIENT]):
        said = softcache(*finished.arguments("student", settings=settings))
        assert_one_paragraph(said, 3, "mean KL", "max_kl = 1e-12", "log-uint16")
    assert finished.run("student") == [], "max_kl is in no key: what was trained stays"


def test_another_teachers_cache_is_refused_with_both_digests(finished: Toy, softcache: Command) -> None:
    found = finished.records("teacher")[0].values["digest"]
    pinned = "f" * 64
    settings = [f"targets.use={finished.cache().name}", f"teacher.digest={pinned}"]
    assert_one_paragraph(softcache(*finished.arguments("student", settings=settings)), 3, found, pinned)


def test_an_unknown_cache_key_is_answered_with_those_there_are(finished: Toy, softcache: Command) -> None:
    known = [path.name[:12] for path in finished.folder.glob("caches/[!.]*")]
    said = softcache("caches", "show", "zzz", "--workspace", str(finished.folder))
    assert_one_paragraph(said, 1, "'zzz'", *known)
    said = softcache(*finished.arguments("student", settings=["targets.use=zzz"]))
    assert_one_paragraph(said, 1, "'zzz'", *known)


def test_an_ambiguous_cache_key_is_refused_with_the_keys_it_may_mean(finished: Toy, softcache: Command) -> None:
    cache = finished.cache()
    shutil.copytree(cache, cache.with_name(f"{cache.name[:11]}-copy"))
    said = softcache("caches", "show", cache.name[:8], "--workspace", str(finished.folder))
    assert_one_paragraph(said, 1, f"'{cache.name[:8]}'", "2 caches", cache.name[:12], f"{cache.name[:11]}-")


HOLD_THE_LOCK = """\
import sys
from pathlib import Path
from pipeline.locks import locked

with locked(Path(sys.argv[1]), "held by a test"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_runs_lock_exits_4_naming_its_pid_and_host(finished: Toy, softcache: Command) -> None:
    student = next(step for step in finished.runner(OTHER_COEFFICIENT).plan("student") if step.label == "seed 0")
    lock = finished.folder / "runs" / ".locks" / f"student-{student.key}"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        said = softcache(*finished.arguments("student", settings=[OTHER_COEFFICIENT]))
        assert_one_paragraph(said, 4, "student seed 0", f"process {holder.pid} on {socket.gethostname()}")
    finally:
        holder.communicate("")
    assert finished.run("student", OTHER_COEFFICIENT) == ["student seed 0", "student seed 1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_gpu_that_is_not_there_is_no_silent_cpu(fresh: Toy, softcache: Command, stage: str) -> None:
    said = softcache(*fresh.arguments(stage, settings=["device=cuda"]))
    assert_one_paragraph(said, 1, 'device = "cuda"', "sees no GPU", '"cpu"')


def test_weights_replaced_by_a_pickle_are_never_opened(finished: Toy, softcache: Command) -> None:
    """The student's are made anew; the teacher's, which evaluate would time, are refused with the command that converts."""
    teacher = finished.output("teacher")
    torch.save({"weight": torch.zeros(2)}, teacher)
    said = softcache(*finished.arguments("evaluate", settings=[OTHER_COEFFICIENT]))
    assert_one_paragraph(said, 1, "model.safetensors is a pickle", "softcache convert")
    student = finished.output("student")
    torch.save({"weight": torch.zeros(2)}, student)
    assert finished.run("student") == ["student seed 0"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workspace_that_may_not_be_written_is_named(fresh: Toy, softcache: Command) -> None:
    (fresh.folder / "runs").mkdir(mode=0o500)
    assert_one_paragraph(softcache(*fresh.arguments("student")), 1, "runs", "--workspace")


def test_a_workspace_that_is_a_file_is_named(fresh: Toy, softcache: Command) -> None:
    arguments = fresh.arguments("student")
    arguments[arguments.index("--workspace") + 1] = str(fresh.recipe)
    assert_one_paragraph(softcache(*arguments), 1, "toy.toml")


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ({"x": np.zeros((4, 7), np.float32)}, ("new.npz", "(7,)", "(6,)")),
        ({"z": np.zeros((4, 6), np.float32)}, ("new.npz", "array x")),
        ({"x": np.full((4, 6), np.inf, np.float32)}, ("new.npz", "row 0", "infinity")),
        (None, ("new.npz",)),
    ],
    ids=["wrong shape", "no x", "infinite", "no file"],
)
def test_an_input_that_the_student_cannot_take_is_refused(
    finished: Toy, softcache: Command, content: dict[str, np.ndarray] | None, mentions: tuple[str, ...]
) -> None:
    source, output = finished.folder / "new.npz", finished.folder / "out.csv"
    if content is not None:
        write_npz(source, content)
    said = softcache(*finished.arguments("predict", then=[str(source)]), "--output", str(output))
    assert_one_paragraph(said, 1, *mentions)
    assert not output.exists()


def test_a_seed_without_a_student_is_refused_with_those_there_are(finished: Toy, softcache: Command) -> None:
    said = softcache(*finished.arguments("predict", then=["test"]), "--seed", "7")
    assert_one_paragraph(said, 1, "seed 7", "seed 0, seed 1")


def test_a_file_that_is_no_pickle_is_not_converted(tmp_path: Path, softcache: Command) -> None:
    (tmp_path / "model.pt").write_bytes(b"no weights")
    said = softcache("convert", str(tmp_path / "model.pt"), str(tmp_path / "model.safetensors"))
    assert_one_paragraph(said, 1, "model.pt")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_damaged_checkpoint_is_named(fresh: Toy, softcache: Command) -> None:
    [step] = fresh.runner().plan("teacher")
    checkpoint = fresh.folder / "runs" / "teacher" / str(step.key) / "checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a checkpoint")
    assert_one_paragraph(softcache(*fresh.arguments("teacher")), 1, str(checkpoint), "not a whole safetensors file")


@pytest.mark.parametrize("command", [("list",), ("verify",), ("show", "abc")])
def test_a_workspace_that_is_not_there_does_not_pass_for_an_empty_one(
    command: tuple[str, ...], tmp_path: Path, softcache: Command
) -> None:
    said = softcache("caches", *command, "--workspace", str(tmp_path / "typo"))
    assert_one_paragraph(said, 1, str(tmp_path / "typo"), "no such folder")


def test_status_writes_nothing_where_nothing_ran(fresh: Toy, softcache: Command) -> None:
    before = sorted(fresh.folder.rglob("*"))
    assert softcache(*fresh.arguments("status")).code == 0
    assert sorted(fresh.folder.rglob("*")) == before


def test_verify_checks_the_cache_of_a_student_that_is_up_to_date(finished: Toy, softcache: Command) -> None:
    said = softcache(*finished.arguments("student"), "--verify")
    assert said.code == 0
    assert f"verify: {finished.cache().name[:12]}" in said.err
    block = finished.cache() / "targets.zarr" / "soft_targets" / "c.0.0"
    block.write_bytes(b"\xff" + block.read_bytes()[1:])
    assert_one_paragraph(softcache(*finished.arguments("student"), "--verify"), 3, "soft_targets/c.0.0")


def test_a_teacher_that_cannot_take_the_students_samples_is_refused_before_it_is_trained(
    fresh: Toy, softcache: Command
) -> None:
    settings = ["teacher.data={ kind = 'digits' }", "teacher.options={}"]
    said = softcache(*fresh.arguments("student", settings=settings))
    assert_one_paragraph(said, 1, "[1, 8, 8]", "[6]")
    assert not list(fresh.folder.glob("runs/teacher/*"))


def test_the_teacher_stops_at_the_first_block_that_no_student_could_use(fresh: Toy, softcache: Command) -> None:
    settings = ("targets.temperature=0.05", "targets.rows_per_block=16")
    said = softcache(*fresh.arguments("student", settings=settings))
    assert_one_paragraph(said, 1, "vanish in dense float16", "at temperature 0.05", "The teacher was stopped")
    [unfinished] = fresh.folder.glob("caches/*/journal*")
    committed = len(unfinished.read_text().splitlines())
    assert 1 <= committed <= 4  # of 8: the block at fault, and those on their way when it was measured

    again = softcache(*fresh.arguments("teacher-targets", settings=settings))
    assert_one_paragraph(again, 1, "The teacher was stopped")
    assert len(unfinished.read_text().splitlines()) == committed

    fresh.run("teacher-targets", *settings, "student.distillation.coefficient=0")
    assert_one_paragraph(softcache(*fresh.arguments("student", settings=settings)), 3, "infinite in")


def test_predictions_never_replace_what_is_no_table(finished: Toy, softcache: Command) -> None:
    said = softcache(*finished.arguments("predict", then=["test"]), "--output", str(finished.recipe))
    assert_one_paragraph(said, 1, f"--output {finished.recipe}", "must end in .csv")
    assert finished.recipe.read_text() == RECIPE
