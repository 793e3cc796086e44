"""Processes beside this one: answers in order, errors as they are, none left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from data.errors import DatasetError
from data.processes import Processes


def double(number: int) -> int:
    """Twice a number; of 7 an error, of 8 a bug."""
    if number == 7:
        raise DatasetError("seven")
    if number == 8:
        raise KeyError("eight")
    return 2 * number


def whoami() -> int:
    return os.getpid()


def slowly(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_answers_come_in_the_order_of_the_calls() -> None:
    with Processes(3) as processes:
        assert list(processes.map(double, ((n,) for n in range(100, 400)))) == list(range(200, 800, 2))
        assert list(processes.map(double, [])) == []
        assert list(processes.map(double, [(1,)])) == [2]


def test_a_large_answer_is_whole() -> None:
    with Processes(2) as processes:
        found = list(processes.map(bytes, [(3 * 10**6,)] * 5))
    assert found == [bytes(3 * 10**6)] * 5


def test_the_first_error_is_raised_as_it_was() -> None:
    with Processes(2) as processes:
        answers = processes.map(double, ((n,) for n in range(5, 30)))
        assert [next(answers), next(answers)] == [10, 12]
        with pytest.raises(DatasetError, match=r"^seven$"):
            next(answers)


def test_a_bug_is_told_whatever_it_raised() -> None:
    with Processes(2) as processes, pytest.raises(RuntimeError, match=r"KeyError\('eight'\)"):
        list(processes.map(double, [(8,)]))


def test_a_process_that_dies_is_told_with_its_exit_code() -> None:
    with Processes(1) as processes:
        [pid] = processes.map(whoami, [()])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DatasetError, match=r"ended unexpectedly \(exit code -9\).*data\.workers = 1"):
            list(processes.map(whoami, [()]))


def test_none_is_left_when_the_work_is_abandoned() -> None:
    with Processes(2) as processes:
        pids = set(processes.map(slowly, [(0.05,)] * 4))
        answers = processes.map(slowly, [(60.0,)] * 10)
        with pytest.raises(KeyboardInterrupt):
            abandon(answers)
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def abandon(answers: object) -> None:
    raise KeyboardInterrupt
