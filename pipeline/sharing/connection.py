"""A connection to a remote: whole objects read and written, with bounded retries and errors that name the object.

Every kind of remote looks the same from here. A transfer that breaks is begun again from the object's first byte.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from pipeline.errors import CorruptCacheError, RemoteError, UserError
from pipeline.sharing.settings import Remote

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.2
ATTEMPTS = 4  # of one object, on top of the retries of requests that got no answer
LARGEST_PART_BYTES = 64_000_000  # larger files are uploaded in parts

_used_by: int | None = None  # the process that first used a remote

Buffer = bytes | bytearray | memoryview


class Absent(Exception):
    """The remote has no object of this name."""


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it."""

    name: str
    size: int


class Connection:
    """One remote. Threads may share it; it is opened at the first request.

    A process that is forked after that cannot use remotes: the threads that serve requests are gone in it.
    """

    def __init__(self, remote: Remote):
        """Nothing is asked of the remote yet. Raises UserError for a URL that no kind of remote has."""
        self.remote = remote
        scheme = urlsplit(remote.url).scheme
        if scheme not in KINDS_OF_REMOTE:
            raise UserError(
                f"remote {remote.name}: {remote.url} begins with {scheme or 'no scheme'}; known are {', '.join(KINDS_OF_REMOTE)}."
            )
        self._kind = scheme
        self._opened: ObjectStore | None = None
        self._opening = threading.Lock()
        self._buffers = threading.local()

    @property
    def can_list(self) -> bool:
        """Whether the names of its objects can be asked for; plain HTTP cannot."""
        return self._kind not in ("http", "https")

    @property
    def can_write(self) -> bool:
        """Whether anything may be written there."""
        return not self.remote.read_only and self._kind not in ("http", "https")

    @property
    def folder(self) -> Path | None:
        """The folder that the remote is, where it is one of this machine's file systems."""
        return Path(unquote(urlsplit(self.remote.url).path)) if self._kind == "file" else None

    def read(self, name: str, size: int, start: int | None = None) -> memoryview:
        """Exactly `size` bytes of an object: all of it, or from `start` on. Good until this thread's next read.

        Raises Absent, CorruptCacheError when the object has another size, and RemoteError.
        """
        if self.folder is not None:
            return self._read_file(name, size, start)
        return self._attempted("read", name, lambda: self._read_once(name, size, start))

    def read_small(self, name: str, at_most: int) -> bytes:
        """A whole object of a size that is not known. Raises as `read` does, CorruptCacheError beyond `at_most` bytes."""

        def once() -> bytes:
            import obstore

            found = obstore.get(self._store(), name)
            if found.meta["size"] > at_most:
                raise CorruptCacheError(
                    f"remote {self.remote.name}: {name} has {found.meta['size']} bytes; at most {at_most} are read."
                )
            content = bytes(found.bytes())
            if len(content) != found.meta["size"]:
                raise _Broken(f"{len(content)} of {found.meta['size']} bytes came")
            return content

        return self._attempted("read", name, once)

    def size(self, name: str) -> int | None:
        """The size of an object, None where there is none. Raises RemoteError."""
        import obstore

        try:
            return int(self._attempted("look for", name, lambda: obstore.head(self._store(), name))["size"])
        except Absent:
            return None

    def write(self, name: str, data: Buffer) -> str | None:
        """Write a whole object, replacing what was there; its e_tag, where the remote has such. Raises RemoteError."""
        import obstore

        self._refuse_to_write(name)
        put = lambda: obstore.put(self._store(), name, data, use_multipart=False)  # noqa: E731
        return self._attempted("write", name, put)["e_tag"]

    def write_file(self, name: str, path: Path) -> None:
        """Upload a file, in parts where it is large. Raises RemoteError."""
        import obstore

        self._refuse_to_write(name)
        self._attempted(
            "write", name, lambda: obstore.put(self._store(), name, path, chunk_size=LARGEST_PART_BYTES // 4)
        )

    def write_if_absent(self, name: str, data: Buffer) -> bool:
        """Write an object unless there is one of this name: whether it was written. Raises RemoteError.

        When an answer is lost and the request repeated, the object that is found may be our own; then it was written too.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._refuse_to_write(name)
        try:
            self._attempted(
                "write", name, lambda: obstore.put(self._store(), name, data, mode="create", use_multipart=False)
            )
        except (AlreadyExistsError, PreconditionError):
            return self.read_small(name, max(len(data), 2**16)) == bytes(data)
        return True

    def listed(self, prefix: str) -> Iterator[Listed]:
        """Every object whose name begins with this folder. Raises RemoteError, also where nothing can be listed."""
        import obstore

        if not self.can_list:
            raise RemoteError(f"remote {self.remote.name}: {self.remote.url} cannot be listed.")
        found = self._attempted(
            "list", prefix, lambda: [*obstore.list(self._store(), prefix.rstrip("/"), chunk_size=1000)]
        )
        for page in found:
            for one in page:
                yield Listed(one["path"], one["size"])

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below one, without its own. Raises as `listed` does."""
        import obstore

        if not self.can_list:
            raise RemoteError(f"remote {self.remote.name}: {self.remote.url} cannot be listed.")
        found = self._attempted("list", prefix, lambda: obstore.list_with_delimiter(self._store(), prefix.rstrip("/")))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; what is gone already is no error. Raises RemoteError."""
        import obstore

        for name in names:
            self._refuse_to_write(name)
            try:
                self._attempted("delete", name, partial(obstore.delete, self._store(), name))
            except Absent:
                continue

    def _read_once(self, name: str, size: int, start: int | None) -> memoryview:
        import obstore

        options: Any = None if start is None else {"range": (start, start + size)}
        found = obstore.get(self._store(), name, options=options)
        whole = found.meta["size"]
        if (start is None and whole != size) or (start is not None and whole < start + size):
            raise CorruptCacheError(
                f"remote {self.remote.name}: object {name} has {whole} bytes, but {size if start is None else start + size} "
                "are sealed. Nothing of it was used."
            )
        data = memoryview(found.bytes())
        if len(data) != size:
            raise _Broken(f"{len(data)} of {size} bytes came")
        return data

    def _read_file(self, name: str, size: int, start: int | None) -> memoryview:
        """The same of a local folder, into memory that is used again: fresh memory for each block costs a third of the time."""
        held: bytearray | None = getattr(self._buffers, "held", None)
        if held is None or len(held) < size:
            held = self._buffers.held = bytearray(size)
        view = memoryview(held)[:size]
        assert self.folder is not None
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise Absent(name) from None
        except OSError as problem:
            raise RemoteError(f"remote {self.remote.name}: cannot read {name}: {problem.strerror}.") from None
        try:
            whole, got = os.fstat(descriptor).st_size, 0
            if (start is None and whole != size) or (start is not None and whole < start + size):
                raise CorruptCacheError(
                    f"remote {self.remote.name}: object {name} has {whole} bytes, but {size} are sealed. "
                    "Nothing of it was used."
                )
            while got < size:
                count = os.preadv(descriptor, [view[got:]], (start or 0) + got)
                if count == 0:
                    raise CorruptCacheError(
                        f"remote {self.remote.name}: object {name} became shorter while it was read."
                    )
                got += count
        finally:
            os.close(descriptor)
        return view

    def _attempted(self, verb: str, name: str, once: Callable[[], T]) -> T:
        """What `once` gives; tried again, after a while, where the transfer broke. Raises Absent and RemoteError."""
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return once()
            except FileNotFoundError:
                raise Absent(name) from None
            except (AlreadyExistsError, PreconditionError):
                raise
            except (PermissionDeniedError, UnauthenticatedError):
                raise RemoteError(
                    f"remote {self.remote.name} ({self.remote.url}) does not let you {verb} {name}. Set credentials in the "
                    "environment, or ask for the permission."
                ) from None
            except (_Broken, BaseError) as problem:
                if attempt == ATTEMPTS:
                    raise RemoteError(
                        f"remote {self.remote.name} ({self.remote.url}): cannot {verb} {name}, tried {ATTEMPTS} times: "
                        f"{_reason(problem)}."
                    ) from None
                time.sleep(random.uniform(0.5, 1.0) * FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _refuse_to_write(self, name: str) -> None:
        if not self.can_write:
            why = "is read-only" if self.remote.read_only else "cannot be written over HTTP"
            raise RemoteError(f"remote {self.remote.name} ({self.remote.url}) {why}; {name} was not written.")

    def _store(self) -> ObjectStore:
        global _used_by
        if _used_by not in (None, os.getpid()):  # its threads are gone here, and a request would wait for ever
            raise UserError(
                "a remote was used before this process was forked, and cannot be used after it. Start workers by "
                'multiprocessing_context="forkserver" (or "spawn"), or use the remote in the workers alone.'
            )
        with self._opening:
            if self._opened is None:
                _used_by = os.getpid()
                self._opened = KINDS_OF_REMOTE[self._kind](self.remote)
            return self._opened


class _Broken(Exception):
    """A transfer that ended early; it is tried again."""


def _reason(problem: Exception) -> str:
    """One line of what went wrong, without the address, which may carry a token."""
    return str(problem).splitlines()[0]


def _retries() -> Any:
    from datetime import timedelta

    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
    return {"max_retries": 3, "retry_timeout": timedelta(seconds=60), "backoff": backoff}


def _client(remote: Remote) -> Any:
    plain = (remote.endpoint or remote.url).startswith("http://")
    return {"allow_http": plain, "connect_timeout": "10s", "read_timeout": "30s", "timeout": "30min"}


def _open_folder(remote: Remote) -> ObjectStore:
    from obstore.store import LocalStore

    folder = Path(unquote(urlsplit(remote.url).path))
    if not folder.is_dir():
        raise RemoteError(f"remote {remote.name}: no folder {folder}. Create it, or mount it.")
    return LocalStore(folder)


def _open_s3(remote: Remote) -> ObjectStore:
    from obstore.store import S3Store

    settings: dict[str, Any] = {"endpoint": remote.endpoint, "region": remote.region}
    settings = {name: value for name, value in settings.items() if value is not None}
    if remote.anonymous:
        settings["skip_signature"] = True
    parts = urlsplit(remote.url)
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        client_options=_client(remote),
        retry_config=_retries(),
        **settings,
    )


def _open_other(remote: Remote) -> ObjectStore:
    from obstore.store import from_url

    return from_url(remote.url, client_options=_client(remote), retry_config=_retries())


KINDS_OF_REMOTE: dict[str, Callable[[Remote], ObjectStore]] = {
    "file": _open_folder,
    "s3": _open_s3,
    "gs": _open_other,
    "az": _open_other,
    "http": _open_other,
    "https": _open_other,
}
