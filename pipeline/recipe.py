"""The recipe: every setting of the pipeline, frozen and validated, documented beside its field."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is there twice; give each once")
    return values


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("an odd number is needed, so that the image keeps its place")
    return value


def _a_name(value: str) -> str:
    if (
        not value.strip()
        or value in (".", "..")
        or any(letter in "/\\" or not letter.isprintable() for letter in value)
    ):
        raise ValueError("a name for people is needed, which may become that of a folder: no slashes, not empty")
    return value


Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
OddCount = Annotated[Count, AfterValidator(_odd)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
Precision = Literal["float32", "bfloat16", "float16"]


class Table(BaseModel):
    """A TOML table: unknown keys are refused, values do not change after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def field(default: Any, meaning: str) -> Any:
    """A documented field; `softcache recipe explain` prints `meaning`. `...` as default makes it required."""
    if isinstance(default, type):
        return Field(default_factory=default, description=meaning)
    return Field(default=default, description=meaning)


class Normalise(Table):
    """`(sample - mean) / std`, for each channel (axis 0 of a sample), or one number for all."""

    mean: tuple[FiniteFloat, ...] = field((0.0,), "Subtracted; one number, or one for each channel.")
    std: tuple[Positive, ...] = field((1.0,), "Divided by; one number, or one for each channel.")

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std has {len(self.std)}; they must match")
        return self


def _sides(value: Any) -> Any:
    sides = value if isinstance(value, tuple) else (value,)
    if len(sides) not in (1, 2) or isinstance(value, tuple) != (len(sides) == 2):
        raise ValueError("one number of pixels, or [height, width], is needed")
    if not all(type(side) is int and 0 < side < 2**16 for side in sides):
        raise ValueError("one number of pixels, or [height, width], is needed; each from 1 to 65535")
    return value


Sides = Annotated[int | tuple[int, int], BeforeValidator(_sides)]


def _batch_size(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError('a number of samples from 1, or "auto", is needed')
    return value


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]

# What only some kinds of data use: the fields that each needs, and those that it may have.
FIELDS_OF_KIND: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "digits": ((), ()),
    "npz": (("path",), ("class_names",)),
    "function": (("function",), ()),
    "idx": (("path",), ("class_names", "sha256", "source")),
    "folder": (("path",), ()),
    "huggingface": (("path",), ("class_names", "input", "label")),
    "parquet": (("path",), ("class_names", "input", "label")),
    "webdataset": (("path",), ("class_names", "input", "label")),
}
IDX_FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


class Data(Table):
    """Where samples and labels come from."""

    kind: Literal["digits", "npz", "function", "idx", "folder", "huggingface", "parquet", "webdataset"] = field(
        ...,
        "digits (bundled with scikit-learn), npz (one .npz file), function (your own), idx (files as MNIST's), folder (of "
        "images, one folder for each class), huggingface (a dataset that save_to_disk wrote), parquet (or Arrow files) or "
        "webdataset (.tar files).",
    )
    path: str | None = field(
        None,
        "npz: the file; idx, folder, huggingface: the folder; parquet, webdataset: a file, a folder, or a pattern such as "
        "train-{0000..0099}.tar. A relative path starts at the data folder.",
    )
    function: str | None = field(None, "function: 'package.module:function', called with the data folder.")
    class_names: Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_distinct)] | None = field(
        None,
        "npz, idx, huggingface, parquet, webdataset: names of the classes 0, 1, ..., where the files give none. Default: the "
        "numbers.",
    )
    sha256: dict[str, Sha256] | None = field(
        None, "idx: sha256 of files' decompressed content, by file name without .gz; checked while they are read."
    )
    source: str | None = field(None, "idx: where to get the files; shown when one is missing. Not in any key.")
    input: str = field(
        "image",
        "huggingface, parquet: the column of the samples. webdataset: the ending of the samples, such as jpg or npy; default: "
        "that of any image.",
    )
    label: str = field(
        "label",
        "huggingface, parquet: the column of the labels. webdataset: the field of .json with the label; default: .cls, or the "
        "field label.",
    )
    validation: Fraction = field(0.2, "Fraction of samples for validation, where the source has no such split.")
    test: Fraction = field(0.2, "Fraction of samples for the test, where the source has no such split.")
    split_seed: Seed = field(0, "Another seed gives another split; equal samples always stay together.")
    mode: Literal["L", "RGB"] | None = field(
        None,
        "Images: all become grey (L) or coloured (RGB) for the model. Default: as they are, and all must be alike.",
    )
    resize: Sides | None = field(
        None, "Images: the shorter side, or [height, width], in pixels; bilinear, antialiased, as torchvision's Resize."
    )
    crop: Sides | None = field(
        None, "Images: a side, or [height, width], cut from the centre after resizing, as torchvision's CenterCrop."
    )
    normalise: Normalise = field(Normalise, "What a model sees: (sample - mean) / std, after resize and crop.")
    workers: Count | None = field(
        None, "Images: threads that decode and resize; default: one for each CPU core. Not in any key."
    )
    memory_mb: Annotated[int, Field(ge=0)] = field(
        1024, "Images: decoded ones are kept in memory up to so many MB, larger sets decoded anew. Not in any key."
    )

    @model_validator(mode="after")
    def _kind_has_its_source(self) -> Self:
        needed, allowed = FIELDS_OF_KIND[self.kind]
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"kind = {self.kind!r} needs {name}")
        special = dict.fromkeys(name for fields in FIELDS_OF_KIND.values() for part in fields for name in part)
        for name in special:
            value = getattr(self, name)
            if name not in (*needed, *allowed) and value != type(self).model_fields[name].default:
                raise ValueError(f"kind = {self.kind!r} has no use for {name} = {value!r}")
        for name in self.sha256 or ():
            if name not in IDX_FILES:
                raise ValueError(f"sha256 names {name!r}; the files are {', '.join(IDX_FILES)}")
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation = {self.validation} and test = {self.test} leave nothing for training; their sum must be below 1"
            )
        return self


class Training(Table):
    """One optimisation: AdamW, linear warm-up then cosine decay to zero, gradient clipping."""

    steps: Count | None = field(None, "Optimiser steps; give this or epochs.")
    epochs: Count | None = field(None, "Passes over the training samples; give this or steps.")
    batch_size: Count = field(64, "Samples in each optimiser step.")
    learning_rate: Positive = field(1e-3, "The highest learning rate, reached after the warm-up.")
    weight_decay: NonNegative = field(0.01, "AdamW's decoupled weight decay.")
    warmup: Fraction = field(0.1, "Fraction of the steps in which the learning rate rises from zero.")
    gradient_clip: Positive = field(1.0, "Largest L2 norm of the gradient of all parameters.")
    validate_every: Count = field(50, "Steps between validations; the best one's weights are kept.")
    precision: Precision = field("float32", "float32, or autocast to bfloat16 or float16 (with gradient scaling).")
    checkpoint_seconds: NonNegative = field(20.0, "Seconds between checkpoints to resume from; not in the key.")

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs}; give exactly one of them")
        return self


class CnnOptions(Table):
    """A plain CNN: one convolution for each width in `channels`.

    `kernels` and `strides` are those of each convolution (or one for all), `halved_after` the convolutions, counted from
    1, that a 2x2 max-pooling follows (default: all but the last), `head` how the last image becomes a vector.
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 64)
    kernels: Annotated[tuple[OddCount, ...], Field(min_length=1)] = (3,)
    strides: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    halved_after: tuple[Count, ...] | None = None
    head: Literal["mean", "flatten"] = "mean"
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _one_for_each_convolution(self) -> Self:
        for name, values in (("kernels", self.kernels), ("strides", self.strides)):
            if len(values) not in (1, len(self.channels)):
                raise ValueError(f"{name} has {len(values)} numbers; 1 or {len(self.channels)} are needed")
        if max(self.halved_after or (), default=0) > len(self.channels):
            raise ValueError(f"halved_after = {self.halved_after}, but there are {len(self.channels)} convolutions")
        return self


class MlpOptions(Table):
    """Widths of the hidden layers."""

    hidden: tuple[Count, ...] = (64,)
    dropout: Fraction = 0.0


MODEL_OPTIONS: dict[str, type[Table]] = {"cnn": CnnOptions, "mlp": MlpOptions}


def option_error(problem: ValidationError) -> str:
    """What is wrong with a model's options, and which there are."""
    error = problem.errors()[0]
    key = ".".join(str(part) for part in error["loc"])
    what = "unknown option" if error["type"] == "extra_forbidden" else error["msg"].lower()
    known = {options.__name__: options.model_fields for options in MODEL_OPTIONS.values()}.get(problem.title, {})
    allowed = f"; options are {', '.join(known)}" if known else ""
    if error["type"] == "value_error":
        what = str(error["ctx"]["error"])
        if not key:
            return f"options: {what}"
    return f"options.{key} = {error['input']!r}: {what}{allowed}"


class Model(Table):
    """Which network, and how large."""

    model: Annotated[str, Field(min_length=1)] = field(
        ..., "cnn, mlp, or your own 'package.module:function' of (sample_shape, class_count, **options)."
    )
    options: dict[str, Any] = field(
        dict,
        "cnn: channels, kernels, strides, halved_after, head, dropout; mlp: hidden, dropout; your own: its keyword arguments.",
    )
    version: Count = field(1, "Raise it when your own model function changes its meaning; it is part of the key.")

    @model_validator(mode="after")
    def _options_of_a_built_in_model(self) -> Self:
        if not self.model:
            return self  # only a teacher may have none: one that is imported without a network
        if self.model not in MODEL_OPTIONS and ":" not in self.model:
            known = ", ".join(MODEL_OPTIONS)
            raise ValueError(f"no model {self.model!r}; there are {known}, or your own 'package.module:function'")
        if self.model in MODEL_OPTIONS:
            try:
                MODEL_OPTIONS[self.model].model_validate(self.options)
            except ValidationError as problem:
                raise ValueError(f"model {self.model!r}: {option_error(problem)}") from None
        return self


class Outputs(Table):
    """A file of outputs that a teacher gave earlier, somewhere else."""

    path: str = field(
        ...,
        "A .npy, .npz, .parquet or .csv file; a relative path starts at the data folder (docs/GUIDE.md has its layout).",
    )
    values: Literal["logits", "log-probabilities", "probabilities"] = field("logits", "What the file's numbers are.")
    temperature: Positive = field(
        1.0, "T that the source's probabilities or log-probabilities were softened with; logits count as 1."
    )

    @model_validator(mode="after")
    def _logits_have_no_temperature(self) -> Self:
        if self.values == "logits" and self.temperature != 1:
            raise ValueError(
                f"values = 'logits' count as temperature 1, but temperature = {self.temperature:g}. Leave it out; if the "
                "numbers are softened probabilities, say values = 'probabilities' or 'log-probabilities'"
            )
        return self


TeacherForm = Literal["trained", "weights", "program", "estimator", "outputs"]


class Teacher(Model):
    """The expensive model: trained here, or imported in one of four forms."""

    model: str = field(
        "",
        "cnn, mlp, or your own 'package.module:function' of (sample_shape, class_count, **options); with training or weights.",
    )
    seed: Seed = field(0, "Initial weights, order of samples and dropout.")
    weights: str | None = field(
        None,
        "Instead of training: a .safetensors file for model, or a .pt2 program without model; starts at the data folder.",
    )
    trusted: bool = field(False, "Must be true for a .pt2 program: opening one may run any code that it holds.")
    estimator: str | None = field(
        None,
        "Instead of model: 'package.module:function' that returns a fitted estimator with predict_proba and classes_.",
    )
    class_names: Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_distinct)] | None = field(
        None, "Classes of an imported teacher's outputs, in order; default: those of its dataset."
    )
    digest: str | None = field(
        None, "Pins the teacher by its digest: it is then never trained again, nor another imported."
    )
    training: Training | None = field(
        None, "How the teacher is trained: AdamW, linear warm-up, cosine decay to zero, gradient clipping."
    )
    outputs: Outputs | None = field(None, "Instead of model: a file of outputs.")
    data: Data | None = field(None, "What the teacher is trained on; default: the same as [data].")

    @property
    def form(self) -> TeacherForm:
        """How the recipe gives the teacher."""
        if self.outputs is not None:
            return "outputs"
        if self.estimator is not None:
            return "estimator"
        if self.weights is not None:
            return "weights" if self.model else "program"
        return "trained"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        used = {
            name for name in type(self).model_fields if getattr(self, name) != type(self).model_fields[name].default
        }
        used -= {"options"} if not self.options else set()
        sources = [name for name in ("weights", "estimator", "outputs", "training") if name in used]
        if len(sources) != 1:
            found = " and ".join(sources) or "no training, weights, estimator or outputs"
            raise ValueError(
                f"{found} given, but a teacher takes exactly one of: model with training; model with weights "
                "(.safetensors); weights (.pt2) with trusted = true; estimator; outputs"
            )
        if self.weights is not None:
            _refuse_weights(self.weights, self.form, self.trusted)
        for name in sorted(used & _UNUSED_BY[self.form]):
            raise ValueError(f"{sources[0]} has no use for {name} = {_shown(getattr(self, name))}; leave it out")
        if self.estimator is not None and not all(self.estimator.partition(":")):
            raise ValueError(f"estimator = {self.estimator!r}; 'package.module:function' is needed")
        if self.form == "trained" and not self.model:
            raise ValueError("training needs model: cnn, mlp, or your own 'package.module:function'")
        return self


# What a form of the teacher has no use for; it is refused rather than silently ignored.
_UNUSED_BY: dict[TeacherForm, set[str]] = {
    "trained": {"trusted", "class_names"},
    "weights": {"trusted", "seed"},
    "program": {"seed", "options", "version"},
    "estimator": {"model", "trusted", "seed", "options", "version"},
    "outputs": {"model", "trusted", "seed", "options", "version", "data"},
}


def _shown(value: Any) -> str:
    return "{...}" if isinstance(value, Table) else repr(value)


def _refuse_weights(weights: str, form: TeacherForm, trusted: bool) -> None:
    is_program = weights.endswith(".pt2")
    if form == "weights" and is_program:
        raise ValueError(f"weights = {weights!r} is a program, which holds its own network; leave model out")
    if form == "program" and not is_program:
        raise ValueError(
            f"weights = {weights!r} needs model, the network that they are for. Only a .pt2 program (torch.export.save) "
            "stands alone; TorchScript (.pt, .ts, .pth) is code in a form that torch has given up, and is refused: export "
            "the model to .pt2, or save its state dict as .safetensors and name model"
        )
    if is_program and not trusted:
        raise ValueError(
            f"weights = {weights!r} is a torch.export program. Opening one unpickles objects and evaluates expressions from "
            "the file, which can run any code with your rights. Say trusted = true if you trust whoever made it; else use "
            "model with .safetensors weights"
        )


class Targets(Table):
    """The target cache."""

    temperature: Positive = field(4.0, "Soft targets are softmax(logits / temperature).")
    encoding: Literal["dense", "top-k"] = field(
        "dense",
        "How soft targets are represented: dense holds every class, top-k the k largest and the mass of the others.",
    )
    dtype: Literal["float16", "float32", "log-uint8", "log-uint16"] = field(
        "float16",
        "dense: the number format. float16 is for T = 2 and more, log-uint16 near-exact at any T, log-uint8 half of that.",
    )
    k: Count = field(64, "top-k: how many classes are kept.")
    value_bits: Literal[4, 8, 16] = field(16, "top-k: bits of each kept log-probability.")
    temperatures: Annotated[tuple[Positive, ...], AfterValidator(_distinct)] = field(
        (),
        "top-k: what students may ask for beside temperature; each costs 4 bytes for a row (or token), and is in the key.",
    )
    precision: Precision = field("float32", "The teacher's compute precision (autocast below float32).")
    certify: tuple[Positive, ...] = field(
        (1.0, 2.0, 4.0, 8.0), "Temperatures the stored error is measured at; not in the key."
    )
    layout: Literal["zarr", "hdf5"] = field("zarr", "How the store looks on disk; not in the key.")
    compression: Literal["none", "zstd", "blosc-lz4"] = field(
        "none", "zarr: of the blocks. Compressed ones are slower to read in random order; not in the key."
    )
    rows_per_block: Count = field(4096, "Rows committed together, at most (and at most 16 MB); not in the key.")
    batch_size: BatchSize = field(
        256,
        "Samples in each forward pass of a teacher, or auto: the largest that fits a GPU, the fastest on a CPU; not in the key.",
    )
    use: str | None = field(None, "Serve the student from this cache: a key (or its start) or a folder.")

    @model_validator(mode="after")
    def _fields_of_the_encoding(self) -> Self:
        special = {"dense": ("dtype",), "top-k": ("k", "value_bits", "temperatures")}
        for name in (name for other, names in special.items() if other != self.encoding for name in names):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"encoding = {self.encoding!r} has no use for {name} = {value!r}; leave it out")
        if self.layout == "hdf5" and self.compression != "none":
            raise ValueError(
                f"compression = {self.compression!r} needs layout = 'zarr'; HDF5 stores blocks as they are"
            )
        return self

    def encoding_parameters(self) -> dict[str, Any]:
        """What identifies the encoding in a key and in a manifest."""
        if self.encoding == "dense":
            return {"name": "dense", "dtype": self.dtype}
        temperatures = sorted({*self.temperatures, self.temperature})
        return {"name": "top-k", "k": self.k, "value_bits": self.value_bits, "temperatures": temperatures}


# The largest mean KL(exact || decoded) that a student accepts by default: a top-k cache states the mass that it left out,
# and how much of that is right depends on the task.
LARGEST_KL = {"dense": 1e-3, "top-k": math.inf}


class Distillation(Table):
    """The loss that a student learns from labels and soft targets by."""

    form: Literal["convex", "additive"] = field("convex", "convex or additive.")
    coefficient: NonNegative = field(0.9, "Distillation coefficient λ: the weight of the soft-target term.")
    temperature: Positive | None = field(None, "T of the loss; default: the cache's. Must be certified by the cache.")
    max_kl: Positive | None = field(
        None,
        "Largest mean KL(exact || decoded) of the cache, at this T, that is accepted; default: 1e-3 of dense, any of top-k.",
    )

    @model_validator(mode="after")
    def _convex_is_at_most_one(self) -> Self:
        if self.form == "convex" and self.coefficient > 1:
            raise ValueError(f"coefficient = {self.coefficient} is above 1, which form = 'convex' does not allow")
        return self


class Student(Model):
    """The small model."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)] = field(
        (0, 1, 2), "One student is trained for each seed."
    )
    labelled: Annotated[int, Field(ge=0)] | None = field(
        None,
        "How many training labels the student may use, stratified; the rest are an unlabelled transfer set. Default: all.",
    )
    label_seed: Seed = field(0, "Another seed keeps other labels.")
    missing: Literal["refuse", "skip"] = field("refuse", "Samples without a row: refuse them, or skip and count them.")
    classes: Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_distinct)] | None = field(
        None, "Class names of the student, where they are a subset or another order of the cache's."
    )
    order: Literal["global", "window", "sequential"] = field(
        "global",
        "Order of the samples in an epoch: a permutation of all, of windows of 32768 (for compressed caches), or as they are.",
    )
    training: Training = field(..., "How the student is trained; the same fields as [teacher.training].")
    distillation: Distillation = field(
        Distillation, "The loss: (1 - λ) CE + λ T² KL (convex; Hinton et al. 2015), or CE + λ T² KL (additive)."
    )

    @model_validator(mode="after")
    def _learns_from_something(self) -> Self:
        if self.labelled == 0 and self.distillation.coefficient == 0:
            raise ValueError("labelled = 0 and distillation.coefficient = 0 leave nothing to learn from")
        return self


class Baseline(Table):
    """The same student on labels alone; learning rate and weight decay are chosen on validation."""

    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = field(
        (1e-3, 3e-3, 1e-2), "Learning rates tried."
    )
    weight_decays: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = field((0.01, 0.1), "Weight decays tried.")
    search_seeds: Count = field(2, "Each pair is tried with this many seeds; the best mean on validation is taken.")


class Evaluation(Table):
    """How models are compared on the test split."""

    batch_size: Count = field(256, "Samples in each forward pass.")
    calibration_bins: Count = field(15, "Bins of equal width of the expected calibration error.")


class Recipe(Table):
    """One whole experiment."""

    name: Annotated[str, AfterValidator(_a_name)] = field(..., "Shown in tables and kept with what the recipe made.")
    device: Literal["auto", "cpu", "cuda"] = field("auto", "auto takes the GPU when there is one; not in any key.")
    data: Data = field(..., "The samples and labels of the student, and the transfer set.")
    teacher: Teacher = field(..., "The expensive model.")
    targets: Targets = field(Targets, "The target cache.")
    student: Student = field(..., "The small model and its loss.")
    baseline: Baseline = field(Baseline, "The label-only student.")
    evaluation: Evaluation = field(Evaluation, "How models are compared.")

    @model_validator(mode="after")
    def _precision_of_a_network(self) -> Self:
        if self.teacher.form in ("estimator", "outputs") and self.targets.precision != "float32":
            raise ValueError(
                f"targets.precision = {self.targets.precision!r} has no meaning for teacher.{self.teacher.form}, which is no "
                "network; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _temperature_is_listed(self) -> Self:
        asked, listed = self.student_temperature, self.targets.encoding_parameters().get("temperatures")
        if asked is not None and listed is not None and asked not in listed and self.targets.use is None:
            known = ", ".join(f"{one:g}" for one in listed)
            raise ValueError(
                f"student.distillation.temperature = {asked:g}, but a top-k cache serves only what it lists, {known}. Set "
                f"targets.temperatures = [{asked:g}]"
            )
        return self

    @property
    def teacher_data(self) -> Data:
        """What the teacher was trained on, with the normalisation that it needs."""
        return self.teacher.data or self.data

    @property
    def student_temperature(self) -> float | None:
        """T of the loss, or None for the cache's own."""
        return self.student.distillation.temperature
