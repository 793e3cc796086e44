"""Processes beside this one for work on many small files, where threads only wait for each other.

Decoding a tiny image, or asking for a file's size and times, is mostly Python, which one thread does at a time: two threads
take longer than one (100,000 images of 16 x 16 on two cores: 15 s by two threads, 9 s by one, 5 s by two processes).
They are programs of their own, neither forked (torch's threads would not survive that) nor multiprocessing's (whose
children run the user's main module again).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from data.errors import DatasetError

Result = TypeVar("Result")

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from data.processes import serve; serve()"
WAITING_PER_PROCESS = 2  # calls, so that none is idle while its last answer is read
SECONDS_TO_END = 5.0


class Processes:
    """`count` of them, started by the first `map`, ended when the context is left."""

    def __init__(self, count: int):
        self.count = count
        self._threads: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._all:
            process.kill()  # they hold nothing that could be lost
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not flushed has nowhere to go
                    assert pipe is not None
                    pipe.close()

    def map(self, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """`function(*a)` of each, in their order; a few are worked on ahead, so that memory is bounded.

        `function` is one of a module of ours, by name. The error of the first that has one is raised.
        """
        if self._threads is None:
            self._all = [_started() for _ in range(self.count)]
            for process in self._all:
                self._idle.put(process)
            self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="processes")
        ahead: deque[Future[Result]] = deque()
        for given in arguments:
            ahead.append(self._threads.submit(self._call, function, given))
            if len(ahead) >= WAITING_PER_PROCESS * self.count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _call(self, function: Callable[..., Result], given: tuple[Any, ...]) -> Result:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            pickle.dump((function, given), process.stdin, protocol=5)
            process.stdin.flush()
            answered, answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
            raise DatasetError(
                f"a process that reads image files ended unexpectedly (exit code {process.returncode}). Was it killed for want "
                "of memory? With data.workers = 1 there is none beside this one."
            ) from None
        finally:
            self._idle.put(process)
        if not answered:
            raise answer
        result: Result = answer
        return result


def _started() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def serve() -> None:
    """What such a process does: answer calls from standard input until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            function, given = pickle.load(calls)
        except (EOFError, pickle.UnpicklingError):
            return
        answer: tuple[bool, Any]
        try:
            answer = (True, function(*given))
        except (DatasetError, OSError) as problem:
            answer = (False, problem)
        except Exception as problem:  # a bug of ours, which might not survive the way as it is
            answer = (False, RuntimeError(repr(problem)))
        try:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # nobody is left to hear; Python's own exit would flush once more and complain
