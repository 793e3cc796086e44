"""softcache.toml: the remotes of a workspace, and where blocks of streamed caches are kept. It never holds a credential."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from pipeline.errors import UserError
from pipeline.recipe import Table, field

SETTINGS_FILE = "softcache.toml"
SCHEMES = ("file", "s3", "gs", "az", "http", "https")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class RemoteTable(Table):
    """One remote, `[remotes.NAME]`."""

    url: str = field(
        ..., "A folder, or file:///..., s3://bucket/..., gs://..., az://account/container/..., https://..."
    )
    read_only: bool = field(False, "Whether pushing there is refused.")
    endpoint: str | None = field(None, "The address of an S3-compatible server that is not AWS.")
    region: str | None = field(None, "The bucket's region; S3 only.")
    anonymous: bool = field(False, "Whether requests are not signed: a public bucket.")

    @field_validator("url", "endpoint")
    @classmethod
    def _without_secrets(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "it must hold no user, password, query or token: credentials come from the environment or from the provider's "
                "own chain"
            )
        return value


class BlockStoreTable(Table):
    """Where blocks of streamed caches are kept on this machine, `[block_store]`."""

    folder: str = field("caches/.blocks", "Relative to the workspace.")
    megabytes: Annotated[float, Field(gt=0)] = field(
        20_000.0, "Never holds more than that; the least recently used block goes first."
    )


class Settings(Table):
    """All of softcache.toml."""

    remotes: dict[Annotated[str, Field(pattern=NAME_PATTERN)], RemoteTable] = field(dict, "Where caches are shared.")
    block_store: BlockStoreTable = field(BlockStoreTable, "Blocks of streamed caches.")


@dataclass(frozen=True)
class Remote:
    """A place that caches are shared at. It pickles small and holds no credential."""

    name: str
    url: str
    read_only: bool = False
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False


def read_settings(workspace: Path) -> Settings:
    """The settings of a workspace; without the file, there are no remotes. Raises UserError."""
    import tomllib

    path = workspace / SETTINGS_FILE
    try:
        return Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} is no TOML: {problem}.") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place}: {first['msg']}.") from None


def remotes_of(workspace: Path) -> list[Remote]:
    """The remotes of a workspace, in the order of its file. Raises UserError."""
    found = read_settings(workspace).remotes.items()
    return [Remote(name, **{**table.model_dump(), "url": _absolute(table.url, workspace)}) for name, table in found]


def remote_named(workspace: Path, name: str | None) -> Remote:
    """The remote of a name; without a name, the only one. Raises UserError that lists those there are."""
    remotes = remotes_of(workspace)
    known = ", ".join(remote.name for remote in remotes)
    if not remotes:
        raise UserError(
            f"no remote in {workspace / SETTINGS_FILE}. Add one: softcache remote add NAME URL (a folder, s3://bucket/path, ...)."
        )
    if name is None:
        if len(remotes) > 1:
            raise UserError(f"there are several remotes, {known}: say which with --remote NAME.")
        return remotes[0]
    for remote in remotes:
        if remote.name == name:
            return remote
    raise UserError(f"no remote {name!r} in {workspace / SETTINGS_FILE}; there are {known}.")


def add_remote(workspace: Path, name: str, table: dict[str, Any]) -> Remote:
    """Write a remote to softcache.toml, keeping comments. Raises UserError for a name that is taken or a value not allowed."""
    raise NotImplementedError


def remove_remote(workspace: Path, name: str) -> None:
    """Take a remote out of softcache.toml. Raises UserError when there is none of that name."""
    raise NotImplementedError


def _absolute(url: str, workspace: Path) -> str:
    """The URL itself, or file:// of a folder given by its path."""
    if "://" in url:
        return url
    return (workspace / Path(url).expanduser()).resolve().as_uri()
