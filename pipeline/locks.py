"""One run per key: an advisory lock that names its holder and dies with its process."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.durable import make_folder
from pipeline.errors import LockedError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive flock on `path` (created when absent; its text is "pid host").

    Raises LockedError naming the holder's pid and host when another process holds it.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, host = os.pread(descriptor, 4096, 0).decode().strip().partition(" ")
            raise LockedError(
                f"{what} is being made by another run: process {pid or '?'} on {host or '?'}. "
                "Wait for it to end, or stop it; what it finished is kept."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # releases the lock; the file stays, since removing it would race with another opener
