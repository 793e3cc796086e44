"""The manifest: what a sealed cache is, made from what, and what a reader checks before it decodes anything."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.canonical import canonical_json, digest_of, short
from pipeline.errors import CorruptCacheError, FormatVersionError, UntrustedCacheError
from pipeline.keys import cache_key
from pipeline.targets.arrays import (
    FILL_VALUES,
    LARGEST_CHUNK_BYTES,
    ArraySpec,
    Positions,
    block_arrays,
    index_arrays,
)
from pipeline.targets.encodings import ENCODINGS, Encoding, encoding_of
from pipeline.targets.layouts import LAYOUTS, Layout

MANIFEST_FILE = "manifest.json"
FORMAT = "softcache target cache"
FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
MOST_OBJECTS = 2**22  # 10^9 rows of 1000 classes in float16 have a quarter of a million
LARGEST_MANIFEST_BYTES = 64_000_000

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Length = Annotated[int, Field(ge=1, lt=2**48)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StoredArray(_Part):
    """One array as the manifest lists it; see ArraySpec."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    dtype: str
    shape: Annotated[tuple[Length, ...], Field(min_length=1)]
    rows_per_chunk: Length
    dimensions: tuple[str, ...]
    compression: str = "none"  # version 1 knew no other

    def spec(self) -> ArraySpec:
        """The array that this describes."""
        return ArraySpec(self.name, self.dtype, self.shape, self.rows_per_chunk, self.dimensions, self.compression)


class BlockTableReference(_Part):
    """The block table's number of entries and the sha256 of its file."""

    entries: Annotated[int, Field(ge=1)]
    sha256: Sha256


class Measured(_Part):
    """The error at one temperature; see pipeline/targets/certificate.py."""

    kl_mean: float | None
    kl_max: float | None
    infinite_rows: int
    absolute_error_max: float
    retained_mass_mean: float
    rows: int


class Certificate(_Part):
    """What was measured on which rows, by temperature; `inherited` are the rows that stand as other caches measured them."""

    measured_on: str
    inherited: dict[Sha256, Annotated[int, Field(ge=1)]] | None = None
    temperatures: dict[Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?$")], Measured]


class Provenance(_Part):
    """What happened but is in no key; people and reports show these, and there may be more."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    recipe: str | None = None
    sealed: str | None = None
    device: str | None = None
    commit: str | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    rows_computed: int | None = None
    rows_resumed: int | None = None
    rows_taken: dict[str, int] = {}
    versions: dict[str, str] = {}


class TeacherRecord(_Part):
    """What a workspace that never had the teacher needs to find this cache."""

    key: Sha256
    recipe: str
    made_from: dict[str, Any]
    digest: Sha256
    sample_shape: tuple[int, ...]
    class_names: tuple[str, ...]


class Manifest(_Part):
    """manifest.json; docs/CACHE_FORMAT.md describes each field."""

    format: Literal["softcache target cache"]
    format_version: int
    key: Sha256
    row_key: Sha256
    row_made_from: dict[str, Any]
    rows_sha256: Sha256
    split: str
    rows: Length
    layout: str
    arrays: Annotated[tuple[StoredArray, ...], Field(min_length=1)]
    encoding: dict[str, Any]
    temperature: Annotated[float, Field(gt=0)]
    class_names: Annotated[tuple[str, ...], Field(min_length=2)]
    certificate: dict[str, Any]
    teacher: dict[str, Any]
    block_table: BlockTableReference
    provenance: dict[str, Any]
    self_sha256: Sha256

    @field_validator("certificate")
    @classmethod
    def _certificate_is_one(cls, value: dict[str, Any]) -> dict[str, Any]:
        Certificate.model_validate_json(canonical_json(value))
        return value

    @field_validator("teacher")
    @classmethod
    def _teacher_has_its_record(cls, value: dict[str, Any]) -> dict[str, Any]:
        TeacherRecord.model_validate_json(canonical_json(value))
        return value

    @field_validator("provenance")
    @classmethod
    def _provenance_can_be_shown(cls, value: dict[str, Any]) -> dict[str, Any]:
        Provenance.model_validate_json(canonical_json(value))
        return value

    @model_validator(mode="after")
    def _arrays_have_the_rows(self) -> Self:
        for array in self.arrays:
            if array.shape[0] != self.rows:
                raise ValueError(f"array {array.name} has {array.shape[0]} rows, the manifest {self.rows}")
            if len(array.dimensions) != len(array.shape):
                raise ValueError(f"array {array.name} has {len(array.shape)} axes and {len(array.dimensions)} names")
        return self

    def specs(self) -> tuple[ArraySpec, ...]:
        """All arrays, in the order of the store."""
        return tuple(array.spec() for array in self.arrays)

    def encoding_arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays after the index arrays."""
        return self.specs()[len(index_arrays(1)) :]

    def positions(self) -> Positions:
        """The axes between rows and what the encoding stores for one position."""
        first, array = self.store_encoding().columns(len(self.class_names))[0], self.encoding_arrays()[0]
        last = len(array.shape) - len(first.shape)
        return Positions(array.dimensions[1:last], array.shape[1:last])

    @property
    def compression(self) -> str:
        """Of the blocks; the index arrays have none."""
        return self.arrays[-1].compression

    def store_layout(self) -> Layout:
        """How the store looks on disk."""
        return LAYOUTS[self.layout]

    def store_encoding(self) -> Encoding:
        """How soft targets are represented."""
        return encoding_of(self.encoding)


def sealed(fields: dict[str, Any]) -> bytes:
    """The bytes of manifest.json for all fields but self_sha256, which is added."""
    return canonical_json({**fields, "self_sha256": digest_of(fields)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check a cache's manifest without touching anything else.

    Raises CorruptCacheError (missing or edited), FormatVersionError, or UntrustedCacheError (asks for what a reader
    must not do).
    """
    return checked_manifest(_content(folder / MANIFEST_FILE), folder)


def checked_manifest(content: bytes, folder: Path | str) -> Manifest:
    """The manifest with these bytes, found in `folder` (of a file system, or of a remote: it is only named in errors).

    Raises as `read_manifest` does.
    """
    path = f"{folder}/{MANIFEST_FILE}"
    fields = _parsed(content, path)
    if fields.get("format") != FORMAT:
        raise CorruptCacheError(f"{path}: format is {fields.get('format')!r}, not {FORMAT!r}; this is no target cache.")
    version = fields.get("format_version")
    if version not in READABLE_VERSIONS:
        raise FormatVersionError(
            f"{path}: format version {version!r}; this softcache reads {', '.join(map(str, READABLE_VERSIONS))}. "
            "Install a newer softcache to read it."
        )
    claimed = fields.get("self_sha256")
    computed = digest_of({name: value for name, value in fields.items() if name != "self_sha256"})
    if claimed != computed:
        raise CorruptCacheError(
            f"{path}: self_sha256 is {claimed!r}, but its content gives {computed}: it was changed."
        )
    try:
        manifest = Manifest.model_validate_json(canonical_json(fields))
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UntrustedCacheError(f"{path}: field {place}: {first['msg']}.") from None
    _check_keys(manifest, folder)
    _check_demands(manifest, path)
    return manifest


def _content(path: Path) -> bytes:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedCacheError(f"{path} is a symbolic link or no plain file; a cache holds none.")
        if status.st_size > LARGEST_MANIFEST_BYTES:
            raise UntrustedCacheError(f"{path} has {status.st_size} bytes; at most {LARGEST_MANIFEST_BYTES}.")
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptCacheError(f"{path} is missing: the cache is unfinished, or this is no cache.") from None


def _parsed(content: bytes, path: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise CorruptCacheError(f"{path} is damaged: {problem}.") from None
    if not isinstance(fields, dict):
        raise CorruptCacheError(f"{path} is damaged: it holds no JSON object.")
    try:
        canonical = canonical_json(fields)
    except (ValueError, RecursionError) as problem:
        raise CorruptCacheError(f"{path} is damaged: {problem}.") from None
    if canonical != content:
        raise CorruptCacheError(f"{path} is damaged: it is not the canonical JSON that a manifest is written as.")
    return fields


def _check_keys(manifest: Manifest, folder: Path | str) -> None:
    row_key = digest_of(manifest.row_made_from)
    if row_key != manifest.row_key:
        raise CorruptCacheError(f"{folder}: row_key is {manifest.row_key}, but what it was made from gives {row_key}.")
    key = cache_key(row_key, manifest.rows_sha256)
    if key != manifest.key:
        raise CorruptCacheError(f"{folder}: key is {manifest.key}, but row_key and rows give {key}.")
    for field in ("encoding", "temperature", "class_names"):
        made_from, stated = manifest.row_made_from.get(field), getattr(manifest, field)
        if made_from != (list(stated) if isinstance(stated, tuple) else stated):
            raise CorruptCacheError(f"{folder}: {field} is {stated!r}, but row_key was made from {made_from!r}.")
    made_by = manifest.row_made_from.get("teacher")
    digest = made_by.get("digest") if isinstance(made_by, dict) else None
    if digest != manifest.teacher["digest"]:
        raise CorruptCacheError(
            f"{folder}: teacher.digest is {manifest.teacher['digest']}, but row_key was made from {digest!r}."
        )


def _check_demands(manifest: Manifest, path: str) -> None:
    """Refuse what a reader must not do, before anything is opened."""
    if manifest.layout not in LAYOUTS:
        raise UntrustedCacheError(f"{path}: unknown layout {manifest.layout!r}; known are {', '.join(LAYOUTS)}.")
    name = manifest.encoding.get("name")
    if not isinstance(name, str) or name not in ENCODINGS:
        raise UntrustedCacheError(f"{path}: unknown encoding {name!r}; known are {', '.join(ENCODINGS)}.")
    for array in manifest.arrays:
        if array.dtype not in FILL_VALUES:
            raise UntrustedCacheError(
                f"{path}: array {array.name} has dtype {array.dtype!r}; none but numbers are read."
            )
    if manifest.compression not in manifest.store_layout().compressions:
        known = ", ".join(manifest.store_layout().compressions)
        raise UntrustedCacheError(
            f"{path}: unknown compression {manifest.compression!r}; {manifest.layout} has {known}."
        )
    specs = manifest.specs()
    for spec in specs:
        if spec.chunk_bytes > max(LARGEST_CHUNK_BYTES, spec.row_bytes):
            raise UntrustedCacheError(f"{path}: a chunk of {spec.name} has {spec.chunk_bytes} bytes; at most 16 MB.")
    if len(specs) <= len(index_arrays(1)):
        raise UntrustedCacheError(f"{path}: {len(specs)} arrays, and so none of an encoding.")
    try:
        columns = manifest.store_encoding().columns(len(manifest.class_names))
        encoded = block_arrays(
            columns, manifest.rows, manifest.positions(), specs[-1].rows_per_chunk, manifest.compression
        )
    except (TypeError, ValueError) as problem:
        raise UntrustedCacheError(f"{path}: field encoding: {problem}.") from None
    expected = (*index_arrays(manifest.rows), *encoded)
    for found, wanted in zip(specs, expected, strict=False):
        if found != wanted:
            raise UntrustedCacheError(f"{path}: array {found.name} is {found}; its encoding needs {wanted}.")
    if len(specs) != len(expected):
        raise UntrustedCacheError(f"{path}: {len(specs)} arrays; its encoding needs {len(expected)}.")
    chunks = sum(spec.chunks for spec in specs)
    entries = chunks + len(manifest.store_layout().metadata_names(specs))
    if entries > MOST_OBJECTS:
        raise UntrustedCacheError(f"{path}: its arrays have {entries:,} objects; at most {MOST_OBJECTS:,} are read.")
    if manifest.block_table.entries != entries:
        raise UntrustedCacheError(
            f"{path}: the block table of {short(manifest.key)} has {manifest.block_table.entries} entries, "
            f"its arrays need {entries}."
        )
