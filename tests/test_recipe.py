"""Recipes: read, overridden, validated, documented; and what a mistake in one is told."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from data import SOURCES
from data.idx import FILES
from pipeline.errors import RecipeError
from pipeline.recipe import FIELDS_OF_KIND, IDX_FILES, Data, Distillation, Recipe
from pipeline.recipe_reader import explain_fields, find_recipe, read_recipe

LEAST = """
name = "least"
[data]
kind = "digits"
[teacher]
model = "cnn"
training = { steps = 10 }
[student]
model = "mlp"
training = { epochs = 3 }
"""

FULL = """
name = "full"
device = "cpu"
[data]
kind = "npz"
path = "mine.npz"
class_names = ["a", "b"]
mode = "L"
resize = [32, 40]
crop = 28
workers = 3
memory_mb = 0
validation = 0.1
test = 0.3
split_seed = 7
normalise = { mean = [0.5, 1], std = [2, 3.0] }
[teacher]
model = "my.module:build"
options = { width = 8, layers = [1, [2, 3]] }
version = 4
seed = 5
digest = "abc"
[teacher.training]
epochs = 9
batch_size = 32
learning_rate = 0.5
weight_decay = 0
warmup = 0
gradient_clip = 2
validate_every = 11
precision = "bfloat16"
checkpoint_seconds = 0
[teacher.data]
kind = "function"
function = "my.module:data"
[targets]
temperature = 2
encoding = "dense"
dtype = "float32"
precision = "float16"
certify = [2, 3.5]
layout = "zarr"
compression = "zstd"
rows_per_block = 16
batch_size = 8
use = "caches/somewhere"
[student]
model = "mlp"
seeds = [3, 1]
labelled = 0
label_seed = 2
missing = "skip"
order = "window"
classes = ["b", "a"]
training = { steps = 1 }
[student.distillation]
form = "additive"
coefficient = 2.5
temperature = 3
max_kl = 0.25
[baseline]
learning_rates = [0.1]
weight_decays = [0]
search_seeds = 1
[evaluation]
batch_size = 2
calibration_bins = 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(LEAST)
    return path


def refusal(path: Path, *overrides: str) -> str:
    """The message for a recipe that is refused."""
    with pytest.raises(RecipeError) as refused:
        read_recipe(path, overrides)
    return str(refused.value)


def tables_of(table: type[BaseModel]) -> set[type[BaseModel]]:
    """A table's model and those of all tables inside it."""
    found = {table}
    for info in table.model_fields.values():
        for choice in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                found |= tables_of(choice)
    return found


def value_at(recipe: BaseModel, dotted: str) -> object:
    value: object = recipe
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def test_a_recipe_of_the_required_fields_has_the_documented_defaults(path: Path) -> None:
    recipe = read_recipe(path)
    assert {
        "device": recipe.device,
        "validation": recipe.data.validation,
        "std": recipe.data.normalise.std,
        "options": recipe.teacher.options,
        "learning_rate": recipe.student.training.learning_rate,
        "precision": recipe.student.training.precision,
        "temperature": recipe.targets.temperature,
        "dtype": recipe.targets.dtype,
        "layout": recipe.targets.layout,
        "rows_per_block": recipe.targets.rows_per_block,
        "seeds": recipe.student.seeds,
        "labelled": recipe.student.labelled,
        "missing": recipe.student.missing,
        "form": recipe.student.distillation.form,
        "coefficient": recipe.student.distillation.coefficient,
        "max_kl": recipe.student.distillation.max_kl,
    } == {
        "device": "auto",
        "validation": 0.2,
        "std": (1.0,),
        "options": {},
        "learning_rate": 1e-3,
        "precision": "float32",
        "temperature": 4.0,
        "dtype": "float16",
        "layout": "zarr",
        "rows_per_block": 4096,
        "seeds": (0, 1, 2),
        "labelled": None,
        "missing": "refuse",
        "form": "convex",
        "coefficient": 0.9,
        "max_kl": None,
    }
    assert recipe.teacher_data == recipe.data
    assert recipe.student_temperature is None


def test_every_documented_field_can_be_set_and_is_read_back(path: Path) -> None:
    least = read_recipe(path)
    path.write_text(FULL)
    recipe = read_recipe(path)
    elsewhere = ("student.options", "student.version", "student.training.")  # the same fields as the teacher's
    imported = ("teacher.weights", "teacher.trusted", "teacher.estimator", "teacher.outputs.", "teacher.class_names")
    fields = [key for key, *_ in explain_fields() if not key.startswith(("[", *elsewhere, *imported))]
    as_before = [key for key in fields if value_at(recipe, key) == value_at(least, key)]
    of_other_kinds = ["data.function", "data.sha256", "data.source", "data.input", "data.label"]
    of_top_k = ["targets.encoding", "targets.k", "targets.value_bits", "targets.temperatures"]
    assert as_before == [*of_other_kinds, *of_top_k, "targets.layout", "student.model"]
    assert recipe.teacher_data.function == "my.module:data"
    assert recipe.teacher.options == {"width": 8, "layers": (1, (2, 3))}
    assert recipe.data.normalise.mean == (0.5, 1.0)
    assert (recipe.data.resize, recipe.data.crop, recipe.data.mode) == ((32, 40), 28, "L")
    assert recipe.targets.certify == (2.0, 3.5)
    assert recipe.student.classes == ("b", "a")
    assert recipe.student.distillation == Distillation(form="additive", coefficient=2.5, temperature=3, max_kl=0.25)
    assert recipe.student_temperature == 3.0


def test_explain_lists_every_field_of_every_table_with_a_meaning() -> None:
    explained = list(explain_fields())
    assert all(meaning.strip() for _, _, _, meaning in explained)
    keys = [key for key, _, _, _ in explained]
    assert len(keys) == len(set(keys))
    names = {name for table in tables_of(Recipe) for name in table.model_fields}
    assert {key.strip("[]").rpartition(".")[2] for key in keys} == names
    assert {"name", "[teacher.data]", "student.distillation.coefficient", "data.normalise.std"} <= set(keys)
    assert ("targets.layout", '"zarr" | "hdf5"', '"zarr"') in [entry[:3] for entry in explained]
    kinds = '"digits" | "npz" | "function" | "idx" | "folder" | "huggingface" | "parquet" | "webdataset"'
    assert ("data.kind", kinds, "required") in [entry[:3] for entry in explained]
    assert ("data.resize", "int | list of int", "none") in [entry[:3] for entry in explained]


def test_fields_of_one_kind_of_data_are_read_back(path: Path) -> None:
    sha256 = f'data.sha256={{ "t10k-labels-idx1-ubyte" = "{"aB" * 32}" }}'
    idx = read_recipe(path, ["data.kind=idx", "data.path=mnist", "data.source=here", sha256]).data
    assert (idx.source, idx.sha256) == ("here", {"t10k-labels-idx1-ubyte": "aB" * 32})
    table = read_recipe(path, ["data.kind=huggingface", "data.path=saved", "data.input=img", "data.label=fine"]).data
    assert (table.input, table.label) == ("img", "fine")


def test_the_table_of_kinds_names_every_kind_and_the_files_of_idx() -> None:
    assert typing.get_args(Data.model_fields["kind"].annotation) == tuple(FIELDS_OF_KIND) == tuple(SOURCES)
    assert FILES == IDX_FILES


def test_every_bundled_recipe_is_valid_and_carries_its_own_name() -> None:
    folder = Path(__file__).parents[1] / "recipes"
    found = {file.stem: read_recipe(file).name for file in folder.glob("*.toml")}
    assert "digits" in found
    assert all(stem == name for stem, name in found.items())


def test_a_recipe_does_not_change_after_reading(path: Path) -> None:
    recipe = read_recipe(path)
    for table, name in ((recipe, "name"), (recipe.student.distillation, "coefficient"), (recipe.data, "kind")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, name, "other")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../up", "/top", "back\\slash", "two\nlines", "nul\0"])
def test_a_name_that_would_lead_to_another_folder_is_refused(name: str, path: Path) -> None:
    assert "no slashes, not empty" in refusal(path, f"name={json.dumps(name)}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.labeled=50", "unknown key student.labeled = 50. Did you mean student.labelled? Allowed here: model,"),
        (
            "targest.temperature=2",
            "unknown key targest = {temperature = 2}. Did you mean targets? Allowed here: name,",
        ),
        ("student.training.lerning_rate=1", "Did you mean student.training.learning_rate?"),
        ("student.distillation.qqq=1", "unknown key student.distillation.qqq = 1. Allowed here: form, coefficient,"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one_and_those_allowed(
    path: Path, override: str, message: str
) -> None:
    refused = refusal(path, override)
    assert refused.startswith(f"{path}: ")
    assert message in refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.labelled=many", 'student.labelled = "many": input should be a valid integer'),
        ("student.labelled=true", "student.labelled = true: input should be a valid integer"),
        ("student.training.epochs=1.5", "student.training.epochs = 1.5: input should be a valid integer"),
        ('targets.temperature="4"', 'targets.temperature = "4": input should be a valid number'),
        ("student.seeds=1", "student.seeds = 1: input should be a list"),
        ("student=1", "student = 1: input should be a table"),
        ("teacher.options=[1]", "teacher.options = [1]: input should be a table"),
        ("name=5", "name = 5: input should be a valid string"),
        ("student.classes=[1, 2]", "student.classes.0 = 1: input should be a valid string"),
    ],
)
def test_a_wrong_type_is_refused_with_key_value_and_what_is_allowed(path: Path, override: str, message: str) -> None:
    assert refusal(path, override).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("targets.temperature=0", "targets.temperature = 0: input should be greater than 0"),
        ("targets.temperature=nan", "targets.temperature = nan: input should be a finite number"),
        ("teacher.training.learning_rate=inf", "teacher.training.learning_rate = inf: input should be a finite number"),
        ("data.validation=1", "data.validation = 1: input should be less than 1"),
        ("data.validation=-0.1", "data.validation = -0.1: input should be greater than or equal to 0"),
        ("data.validation=0.9", "data: validation = 0.9 and test = 0.2 leave nothing for training"),
        ("targets.layout=parquet", "targets.layout = \"parquet\": input should be 'zarr' or 'hdf5'"),
        ("targets.rows_per_block=0", "targets.rows_per_block = 0: input should be greater than or equal to 1"),
        ("teacher.seed=2147483648", "teacher.seed = 2147483648: input should be less than 2147483648"),
        ("student.seeds=[]", "student.seeds = []: give at least 1"),
        ("student.seeds=[0, -1]", "student.seeds.1 = -1: input should be greater than or equal to 0"),
        ("student.seeds=[4, 0, 4]", "student.seeds = [4, 0, 4]: 4 is there twice"),
        ('student.classes=["a", "a"]', 'student.classes = ["a", "a"]: \'a\' is there twice'),
        ('student.classes=["a"]', 'student.classes = ["a"]: give at least 2'),
        ("student.distillation.coefficient=1.5", "coefficient = 1.5 is above 1, which form = 'convex' does not allow"),
        ("student.training.steps=5", "student.training: steps = 5 and epochs = 3; give exactly one of them"),
        ("student.training.epochs=none", "student.training: steps = None and epochs = None; give exactly one of them"),
        ("data.normalise.mean=[1, 2]", "data.normalise: mean has 2 numbers and std has 1; they must match"),
        ("data.normalise.std=[0]", "data.normalise.std.0 = 0: input should be greater than 0"),
        ("data.kind=npz", "data: kind = 'npz' needs path"),
        ("teacher.data.kind=function", "teacher.data: kind = 'function' needs function"),
        ("data.path=x.npz", "data: kind = 'digits' has no use for path = 'x.npz'"),
        ("data.kind=folder", "data: kind = 'folder' needs path"),
        ("data.label=fine", "data: kind = 'digits' has no use for label = 'fine'"),
        ("data.source=here", "data: kind = 'digits' has no use for source = 'here'"),
        ("data.resize=0", "data.resize = 0: one number of pixels, or [height, width], is needed; each from 1 to 65535"),
        ("data.resize=[1, 2, 3]", "data.resize = [1, 2, 3]: one number of pixels, or [height, width], is needed"),
        ("data.crop=[28]", "data.crop = [28]: one number of pixels, or [height, width], is needed"),
        ("data.crop=2.5", "data.crop = 2.5: one number of pixels, or [height, width], is needed"),
        ("data.mode=RGBA", "data.mode = \"RGBA\": input should be 'L' or 'RGB'"),
        ("data.workers=0", "data.workers = 0: input should be greater than or equal to 1"),
        (
            "student.options={hiden=[3]}",
            "student: model 'mlp': options.hiden = (3,): unknown option; options are hidden, dropout",
        ),
        (
            "teacher.model=resnet",
            "teacher: no model 'resnet'; there are cnn, mlp, or your own 'package.module:function'",
        ),
        (
            "data.kind=csv",
            "data.kind = \"csv\": input should be 'digits', 'npz', 'function', 'idx', 'folder', 'huggingface', 'parquet' or "
            "'webdataset'",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_key_value_and_what_is_allowed(
    path: Path, override: str, message: str
) -> None:
    refused = refusal(path, override)
    assert refused.startswith(f"{path}: ")
    assert message in refused


def test_an_additive_coefficient_may_be_above_one(path: Path) -> None:
    recipe = read_recipe(path, ["student.distillation.form=additive", "student.distillation.coefficient=7"])
    assert recipe.student.distillation.coefficient == 7.0


def test_all_mistakes_are_told_at_once(path: Path) -> None:
    refused = refusal(path, "name=none", "student.labeled=1", "targets.temperature=0")
    assert "name is missing; it is required" in refused
    assert "unknown key student.labeled" in refused
    assert "targets.temperature = 0" in refused


@pytest.mark.parametrize(
    ("override", "dotted", "value"),
    [
        ("student.labelled=50", "student.labelled", 50),
        ("student.distillation.coefficient=0", "student.distillation.coefficient", 0.0),
        ("teacher.training.learning_rate=3e-4", "teacher.training.learning_rate", 3e-4),
        (" targets.temperature = 8 ", "targets.temperature", 8.0),
        ("student.seeds=[5, 6]", "student.seeds", (5, 6)),
        ("student.classes=['a', 'b']", "student.classes", ("a", "b")),
        ("device=cpu", "device", "cpu"),
        ('device="cpu"', "device", "cpu"),
        ("name=a plain text", "name", "a plain text"),
        ("targets.use=caches/a=b", "targets.use", "caches/a=b"),
        ("targets.use=24405517e120", "targets.use", "24405517e120"),
        ("targets.use=123456789012", "targets.use", "123456789012"),
        ('targets.use="123456789012"', "targets.use", "123456789012"),
        ("teacher.digest=1e5", "teacher.digest", "1e5"),
        ("student.options.hidden=[8, 4]", "student.options", {"hidden": (8, 4)}),
        ("data.normalise={mean = [1], std = [2]}", "data.normalise.std", (2.0,)),
        ("data.validation=none", "data.validation", 0.2),
    ],
)
def test_set_replaces_one_value(path: Path, override: str, dotted: str, value: object) -> None:
    assert value_at(read_recipe(path, [override]), dotted) == value


def test_set_with_none_takes_a_value_away(path: Path) -> None:
    recipe = read_recipe(path, ["student.training.epochs=none", "student.training.steps=4"])
    assert (recipe.student.training.steps, recipe.student.training.epochs) == (4, None)


def test_of_several_overrides_the_last_one_counts(path: Path) -> None:
    assert read_recipe(path, ["student.labelled=1", "student.labelled=2"]).student.labelled == 2


@pytest.mark.parametrize("override", ["student.labelled", "=50", " = 1", ""])
def test_a_malformed_override_is_refused_with_an_example(path: Path, override: str) -> None:
    assert refusal(path, override) == (f"--set {override!r} is not of the form key=value, such as student.labelled=50")


def test_an_override_inside_a_value_is_refused(path: Path) -> None:
    assert refusal(path, "name.first=x") == "--set 'name.first=x': name is a value, not a table"


@pytest.mark.parametrize("content", [b"name = ", b"[data\nkind = 1", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_refused_by_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} is not a TOML file: ")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} cannot be read: Is a directory"


def test_a_recipe_is_found_by_path_or_by_its_bundled_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_recipe(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine.toml") == Path("mine.toml")
    assert read_recipe(find_recipe("digits")).name == "digits"


def test_a_recipe_in_the_current_folder_comes_before_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "digits.toml").write_text(LEAST)
    monkeypatch.chdir(tmp_path)
    assert read_recipe(find_recipe("digits")).name == "least"


@pytest.mark.parametrize("name", ["digit", "digits.tml", "somewhere/digts.toml"])
def test_a_missing_recipe_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"^{re.escape(name)}: no such recipe.* one of: .*digits.*mean 'digits'\?$"):
        find_recipe(name)


TOP_K = ("targets.encoding=top-k", "targets.k=3")


def test_an_encoding_takes_its_own_fields_alone(path: Path) -> None:
    targets = read_recipe(path, [*TOP_K, "targets.temperatures=[1.0, 4.0]", "targets.value_bits=8"]).targets
    assert targets.encoding_parameters() == {"name": "top-k", "k": 3, "value_bits": 8, "temperatures": [1.0, 4.0]}
    assert read_recipe(path).targets.encoding_parameters() == {"name": "dense", "dtype": "float16"}
    assert "encoding = 'top-k' has no use for dtype = 'float32'" in refusal(path, *TOP_K, "targets.dtype=float32")
    assert "encoding = 'dense' has no use for k = 3" in refusal(path, "targets.k=3")


def test_compression_needs_the_zarr_layout(path: Path) -> None:
    said = refusal(path, "targets.layout=hdf5", "targets.compression=zstd")
    assert "compression = 'zstd' needs layout = 'zarr'" in said


def test_a_temperature_that_top_k_does_not_list_is_refused_before_anything_runs(path: Path) -> None:
    said = refusal(path, *TOP_K, "student.distillation.temperature=2")
    assert "temperature = 2, but a top-k cache serves only what it lists, 4. Set targets.temperatures = [2]" in said
    assert read_recipe(path, [*TOP_K, "student.distillation.temperature=2", "targets.temperatures=[2]"])
