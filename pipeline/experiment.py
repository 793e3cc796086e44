"""One recipe in one workspace: its datasets, their fingerprints, the records and caches, and the keys that follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pipeline.canonical import digest_of
from pipeline.errors import MismatchError, UserError
from pipeline.file_memory import FileMemory, sha256_of_file, write_memory
from pipeline.keys import KEY_SCHEMA, STAGE_VERSIONS, cache_key, model_parts, sight_parts, stage_key, training_parts
from pipeline.progress import Bar, no_bar
from pipeline.recipe import Data, Recipe
from pipeline.records import Record, Records, difference
from pipeline.targets.shelf import Shelf
from pipeline.teachers.coverage import covered_splits
from pipeline.teachers.identity import imported_record, row_parts

if TYPE_CHECKING:
    from pipeline.curves import Curves
    from pipeline.dataset import Dataset
    from pipeline.teachers.joining import JoinedOutputs

SPLITS = ("training", "validation", "test")

# Whose samples: "transfer" is the student's as the teacher sees them, at the teacher's mode and size.
Role = Literal["student", "teacher", "transfer"]
GEOMETRY = ("mode", "resize", "crop")  # fields of [data] that decide the shape in which a model sees a sample
NO_CONTENT = {"path", "source", "normalise", "workers", "memory_mb"}  # fields of [data] that no sample depends on
Fingerprints = Mapping[str, dict[str, Any]]


class NotYet(Exception):
    """A key cannot be known before another stage has run."""

    def __init__(self, stage: str):
        super().__init__(stage)
        self.stage = stage


class Source(Protocol):
    """Where a dataset comes from (see the package `data`)."""

    version: int | None

    def files(self) -> Mapping[str, Path] | None: ...

    def load(self) -> Mapping[str, Dataset]: ...


@runtime_checkable
class Remembering(Protocol):
    """A source of so many files that it remembers itself what it saw of each."""

    def content(self) -> str:
        """Hash of all that its samples follow from; a file that did not change is not opened for it."""
        ...

    def remember(self) -> None:
        """Write what was seen."""
        ...


@dataclass(frozen=True)
class Workspace:
    """Where runs/ and caches/ are."""

    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def caches(self) -> Path:
        return self.folder / "caches"

    @property
    def memories(self) -> Path:
        """Where is kept what saves time and may be deleted."""
        return self.runs / ".memory"


class Experiment:
    """What every stage works from. Datasets are loaded only when their content is needed, not for their keys."""

    def __init__(
        self,
        recipe: Recipe,
        workspace: Workspace,
        open_source: Callable[[Data], Source],
        *,
        shape: Callable[[Mapping[str, Dataset], Data], Mapping[str, Dataset]] = lambda datasets, settings: datasets,
        data_folder: Path = Path(),
        say: Callable[[str], None] = lambda text: None,
        bar: Bar = no_bar,
        curves: Curves | None = None,
    ):
        """`shape` lets a model see the splits of a source by mode, resize and crop; `data_folder` is where imported files start.

        `say` gets one-line messages for people, `bar` shows the progress of long work, `curves` gets the validations.
        """
        self.recipe = recipe
        self.workspace = workspace
        self.data_folder = data_folder
        self.say = say
        self.bar = bar
        self.curves = curves
        self.records = Records(workspace.runs)
        self.shelf = Shelf(workspace.caches, warn=say)
        self.memory = FileMemory(workspace.memories / "files.json")
        self._open_source = open_source
        self._shape = shape
        self._sources: dict[Role, Source] = {}
        self._contents: dict[Role, Mapping[str, str] | str | None] = {}
        self._loaded: dict[Role, Mapping[str, Dataset]] = {}
        self._datasets: dict[Role, Mapping[str, Dataset]] = {}
        self._fingerprints: dict[Role, Fingerprints] = {}
        self._to_remember: dict[Path, Mapping[str, Any]] = {}
        self.joined: tuple[str, JoinedOutputs] | None = None  # imported outputs of this process, by their file's sha256

    def curve_of(self, stage: str, label: str, key: str) -> Callable[[Sequence[dict[str, float]]], None]:
        """What gets the validations of one model while it trains."""
        return self.curves.of(self.recipe.name, stage, label, key) if self.curves else lambda history: None

    def save_memory(self) -> None:
        """Write what was learnt of files and datasets, if there are runs here; a memory that cannot be written is no error."""
        if not self.workspace.runs.is_dir():
            return
        for source in self._sources.values():
            if isinstance(source, Remembering):
                source.remember()
        with suppress(OSError):
            self.memory.save()
            for path, known in self._to_remember.items():
                write_memory(path, known)
            self._to_remember.clear()

    def remember(self, path: Path, known: Mapping[str, Any]) -> None:
        """Keep what was learnt at a path below runs/.memory/; `save_memory` writes it."""
        self._to_remember[path] = known

    def data_of(self, role: Role) -> Data:
        """The `[data]` table that says where a role's samples are from and how they are seen."""
        if role == "teacher":
            return self.recipe.teacher_data
        if role == "student":
            return self.recipe.data
        seen = {name: getattr(self.recipe.teacher_data, name) for name in GEOMETRY}
        return self.recipe.data.model_copy(update=seen)

    def datasets(self, role: Role) -> Mapping[str, Dataset]:
        """The splits that the teacher was trained on, those of the student and its transfer set, or these for the teacher."""
        if role != "student" and self.data_of(role) == self.recipe.data:
            return self.datasets("student")
        if role not in self._datasets:
            from pipeline.dataset import refuse_malformed

            self._datasets[role] = self._shape(self._splits(role), self.data_of(role))
            for split in SPLITS:
                refuse_malformed(self._datasets[role][split], f"[{self._table(role)}], {split} split")
        return self._datasets[role]

    def fingerprints(self, role: Role) -> Fingerprints:
        """What identifies each split by content; remembered while the files and the version are the same."""
        if role != "student" and self.data_of(role) == self.recipe.data:
            return self.fingerprints("student")
        if role not in self._fingerprints:
            remembered = self.data_memory(role)
            known = _recalled(remembered) if remembered is not None else None
            if known is not None:
                self._fingerprints[role] = known
            else:
                from pipeline.dataset import fingerprint

                datasets = self.datasets(role)
                samples = sum(len(datasets[split]) for split in SPLITS)
                found: dict[str, dict[str, Any]] = {}
                with self.bar("reading the data", samples, "samples") as advance:
                    for split in SPLITS:
                        found[split] = fingerprint(datasets[split])
                        advance(len(datasets[split]))
                self._fingerprints[role] = found
                if remembered is not None:
                    self._to_remember[remembered] = self._fingerprints[role]
        return self._fingerprints[role]

    def teacher_made_from(self) -> dict[str, Any]:
        """What the teacher's weights follow from."""
        recipe, data = self.recipe, self.fingerprints("teacher")
        assert recipe.teacher.training is not None, "an imported teacher is not trained"
        return {
            "teacher": {
                **model_parts(recipe.teacher),
                "seed": recipe.teacher.seed,
                "training": training_parts(recipe.teacher.training),
                "data": {
                    **sight_parts(recipe.teacher_data),
                    "training": data["training"],
                    "validation": data["validation"],
                },
            },
        }

    def teacher_key(self) -> str:
        """The key of the teacher stage; it follows from the recipe and the data alone."""
        return stage_key("teacher", self.teacher_made_from())

    def teacher_record(self) -> Record:
        """The record of this recipe's teacher: of a run here, restored from a cache that it made, or as it was imported.

        Raises NotYet when the teacher was never trained, as far as this workspace knows, and TeacherAbsentError when what it
        is imported from is not there.
        """
        pinned = self.recipe.teacher.digest
        if self.recipe.teacher.form != "trained":
            return imported_record(self)
        if pinned is not None:
            return self._refuse_other_settings(self.known_teacher(pinned))
        key = self.teacher_key()
        record = self.records.read("teacher", key)
        if record is not None:
            return record
        for _, manifest in self.shelf.sealed():
            if manifest.teacher.get("key") == key:
                return _restored(manifest.teacher)
        raise NotYet("teacher")

    def row_made_from(self) -> dict[str, Any]:
        """Everything that determines one row of the target cache given its sample; its hash is the row_key."""
        recipe = self.recipe
        if recipe.targets.use is not None:
            return dict(self._used_manifest_field("row_made_from"))
        self._refuse_unlike_data()
        teacher = self.teacher_record()
        self._refuse_unlike_samples(teacher)
        classes = len(teacher.values["class_names"])
        if recipe.targets.encoding == "top-k" and recipe.targets.k >= classes:
            raise UserError(
                f"targets.k = {recipe.targets.k}, but the teacher has {classes} classes; top-k keeps fewer than all. Set a "
                'smaller targets.k, or targets.encoding = "dense".'
            )
        made_from = {
            "key_schema": KEY_SCHEMA,
            "stage_version": STAGE_VERSIONS["teacher-targets"],
            "teacher": row_parts(self, teacher),
            "preprocessing": {
                **sight_parts(recipe.teacher_data),
                "sample_shape": teacher.values["sample_shape"],
            },
            "class_names": teacher.values["class_names"],
            "augmentation": "none",
            "encoding": recipe.targets.encoding_parameters(),
            "temperature": recipe.targets.temperature,
            "precision": recipe.targets.precision,
        }
        if recipe.teacher.form == "outputs":  # given elsewhere: nothing that this recipe does to a sample counts
            made_from["preprocessing"] = "imported"
        return made_from

    def _refuse_unlike_data(self) -> None:
        """Refuse a teacher with a dataset or classes of its own that cannot serve the student's, before anything runs."""
        teacher = self.recipe.teacher
        if teacher.data is not None and teacher.digest is None:
            taught, asked = (self.fingerprints(role)["training"] for role in ("teacher", "transfer"))
            if taught["sample_shape"] != asked["sample_shape"]:
                raise UserError(
                    f"[teacher.data] has samples of shape {taught['sample_shape']} and [data] of shape {asked['sample_shape']}; "
                    "the teacher must be able to run on the student's samples, which mode, resize and crop of [teacher.data] can "
                    "make alike."
                )
            self._refuse_unlike_classes("[teacher.data]", teacher.class_names or taught["class_names"])
        elif teacher.class_names is not None:
            self._refuse_unlike_classes("teacher.class_names", teacher.class_names)

    def _refuse_unlike_samples(self, teacher: Record) -> None:
        """Refuse a pinned teacher of other samples or classes: its own data may not be here to compare."""
        if self.recipe.teacher.digest is None or self.recipe.teacher.form == "outputs":
            return
        asked = self.fingerprints("transfer")["training"]["sample_shape"]
        if teacher.values["sample_shape"] != asked:
            raise MismatchError(
                f"the teacher that teacher.digest pins takes samples of shape {teacher.values['sample_shape']}, but those of "
                f"[data] have {asked}. Resize them for it in [teacher.data], or remove the pin."
            )
        self._refuse_unlike_classes("the teacher that teacher.digest pins", teacher.values["class_names"])

    def _refuse_unlike_classes(self, where: str, known: Sequence[str]) -> None:
        asked = self.fingerprints("student")["training"]["class_names"]
        missing = [name for name in self.recipe.student.classes or asked if name not in known]
        if missing or (self.recipe.student.classes is None and list(known) != asked):
            raise MismatchError(
                f"{where} has classes {', '.join(known)} and [data] has {', '.join(asked)}. "
                + (
                    f"The teacher knows no {missing[0]!r}."
                    if missing
                    else "Map them by name with student.classes = [...]."
                )
            )

    def covered_splits(self) -> list[str]:
        """The splits that get a cache: all, or those that a file of outputs covers."""
        return covered_splits(self)

    def cache_keys(self) -> dict[str, str]:
        """The key of the cache of each split of the student's data."""
        row_key = digest_of(self.row_made_from())
        return {
            split: cache_key(row_key, parts["rows_sha256"]) for split, parts in self.fingerprints("student").items()
        }

    def cache_folder(self, split: str) -> Path | None:
        """The sealed cache that serves a split: the one the recipe names, or one found by row_key; None when none does."""
        use = self.recipe.targets.use
        if use is not None and split == "training":
            return self._used_folder(use)
        row_key = digest_of(self.row_made_from())
        digests = lambda: self.datasets("student")[split].sample_digests()  # noqa: E731
        return self.shelf.serving(row_key, self.cache_keys()[split], digests)

    def used_cache_key(self) -> str:
        """The key of the cache that targets.use names."""
        return str(self._used_manifest_field("key"))

    def _used_folder(self, use: str) -> Path:
        path = self.workspace.folder / use
        return path if (path / "manifest.json").is_file() else self.shelf.named(use)

    def _used_manifest_field(self, field: str) -> Any:
        from pipeline.targets.manifest import read_manifest

        folder = self._used_folder(str(self.recipe.targets.use))
        manifest = read_manifest(folder)
        pinned, found = self.recipe.teacher.digest, manifest.teacher.get("digest")
        if pinned is not None and pinned != found:
            raise MismatchError(
                f"cache {folder} is of the teacher {found}, but teacher.digest pins {pinned}. Use a cache of that teacher."
            )
        return getattr(manifest, field)

    def known_teacher(self, digest: str, suits: Callable[[Record], bool] = lambda record: True) -> Record:
        """The record of the teacher that a recipe pins: of a run here, or restored from a cache.

        Of several with the same weights the first that `suits`, else the first, which says what differs. Raises UserError.
        """
        found = [record for record in self.records.of_stage("teacher") if record.values.get("digest") == digest]
        manifests = (manifest for _, manifest in self.shelf.sealed())
        found += [_restored(manifest.teacher) for manifest in manifests if manifest.teacher.get("digest") == digest]
        if found:
            return next(filter(suits, found), found[0])
        raise UserError(
            f"teacher.digest = {digest!r}, but no teacher of runs/ and no cache of caches/ has it. Remove the pin to train "
            "the teacher of this recipe, or bring a cache that it made."
        )

    def _refuse_other_settings(self, pinned: Record) -> Record:
        """A pinned teacher is that of its own recipe: its network and the inputs that it was trained on."""
        trained = pinned.made_from["teacher"]
        network = model_parts(self.recipe.teacher)
        asked = {**network, **sight_parts(self.recipe.teacher_data)}
        seen = {name: value for name, value in trained.get("data", {}).items() if name not in SPLITS}
        made = {**{name: trained[name] for name in network if name in trained}, **seen}
        if made != asked:
            raise MismatchError(
                f"teacher.digest pins {pinned.values['digest']}, but this recipe differs from the one it was trained by: "
                f"{difference({'teacher': made}, {'teacher': asked})}. Set these as they were, or remove the pin."
            )
        return pinned

    def _table(self, role: Role) -> str:
        return "teacher.data" if role == "teacher" else "data"

    def _source(self, role: Role) -> Source:
        owner = self._owner(role)
        if owner not in self._sources:
            self._sources[owner] = self._open_source(self.data_of(owner))
        return self._sources[owner]

    def _splits(self, role: Role) -> Mapping[str, Dataset]:
        owner = self._owner(role)
        if owner not in self._loaded:
            loaded = self._source(owner).load()
            for split in SPLITS:
                if split not in loaded:
                    raise UserError(f"[{self._table(owner)}] has no {split} split; it has {', '.join(loaded)}.")
            self._loaded[owner] = loaded
        return self._loaded[owner]

    def _owner(self, role: Role) -> Role:
        """Whose source holds a role's samples: one serves all where the tables differ only in how samples are seen."""
        data = self.recipe.data
        seen_alike = {name: getattr(data, name) for name in (*GEOMETRY, "normalise")}
        return "student" if self.data_of(role).model_copy(update=seen_alike) == data else role

    def data_memory(self, role: Role) -> Path | None:
        """Where the fingerprints of these data are remembered; None for data that must be loaded each time to see."""
        source, owner = self._source(role), self._owner(role)
        if owner not in self._contents:
            self._contents[owner] = (
                source.content() if isinstance(source, Remembering) else self._hashed(source.files())
            )
        contents = self._contents[owner]
        if contents is None or source.version is None:
            return None
        settings = self.data_of(role).model_dump(mode="json", exclude=NO_CONTENT)
        identity = {
            "key_schema": KEY_SCHEMA,
            "settings": settings,
            "version": source.version,
            "files": contents,
        }
        return self.workspace.memories / f"data-{digest_of(identity)}.json"

    def _hashed(self, files: Mapping[str, Path] | None) -> dict[str, str] | None:
        return (
            None if files is None else {name: self.memory.recall(path, sha256_of_file) for name, path in files.items()}
        )


def _recalled(path: Path) -> Fingerprints | None:
    """Fingerprints that an earlier run remembered; None where there are none, or they are damaged."""
    try:
        known = json.loads(path.read_bytes())
        return {split: dict(known[split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _restored(teacher: dict[str, Any]) -> Record:
    """The teacher's record as a cache's manifest carries it; the weights are not here."""
    values = {name: teacher[name] for name in ("digest", "sample_shape", "class_names")}
    return Record("teacher", "", str(teacher["key"]), str(teacher["recipe"]), teacher["made_from"], {}, values, {})
