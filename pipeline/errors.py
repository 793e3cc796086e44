"""Everything that can go wrong, as one tree.

SoftcacheError                 base: a one-paragraph message and an exit code
├── UserError            (1)   the input or the recipe is wrong
│   ├── RecipeError            a recipe cannot be read or a value is not allowed
│   ├── TeacherOutputError     the teacher returned NaN, infinity or the wrong number of classes
│   ├── WeightsError           weights are missing, of the wrong kind or do not fit the model
│   ├── OutputsError           a file of outputs is damaged, wrong, or not of this dataset
│   ├── TeacherAbsentError     what an imported teacher is imported from is not there
│   ├── StorageError           the disk is full or may not be written
│   └── RemoteError            a remote cannot be reached, refuses, or may not be written
├── VerificationError    (3)   stored bytes, or a cache and what it is used for, do not agree
│   ├── CorruptCacheError      an object of a cache is missing, truncated, changed or swapped
│   ├── UntrustedCacheError    a manifest asks for something a reader must not do
│   ├── FormatVersionError     a cache was written by a version this reader does not know
│   ├── MismatchError          another teacher, dataset, class list or temperature than asked for
│   └── JoinError              samples of a dataset have no row in the cache
├── LockedError          (4)   another run works on the same key
└── Interrupted        (130)   Ctrl-C; says what is kept
"""

from __future__ import annotations


class SoftcacheError(Exception):
    """Base of all errors that a user can cause or meet; `exit_code` is what the CLI exits with."""

    exit_code = 1


class UserError(SoftcacheError):
    """The input or the recipe is wrong."""


class RecipeError(UserError):
    """A recipe cannot be read, has an unknown key, or a value that is not allowed."""


class TeacherOutputError(UserError):
    """The teacher returned NaN, infinity, no distribution or the wrong number of classes."""


class WeightsError(UserError):
    """Weights are missing, of a refused kind, or do not fit the model."""


class OutputsError(UserError):
    """A file of outputs is damaged, holds what cannot be, or is not of this dataset."""


class TeacherAbsentError(UserError):
    """The file or module that a teacher is imported from is not there."""


class StorageError(UserError):
    """There is not enough free space, or a folder may not be written."""


class RemoteError(UserError):
    """A remote cannot be reached, refuses what is asked of it, or is read-only; the message names the object."""


class VerificationError(SoftcacheError):
    """Stored bytes, or a cache and the use made of it, do not agree."""

    exit_code = 3


class CorruptCacheError(VerificationError):
    """An object of a cache is missing, truncated, changed or swapped with another."""


class UntrustedCacheError(VerificationError):
    """A manifest asks for something that a reader must not do (leave its folder, an unknown codec, ...)."""


class FormatVersionError(VerificationError):
    """A cache has a format version that this reader does not know."""


class MismatchError(VerificationError):
    """A cache is of another teacher, dataset, class list or temperature than it is asked to serve."""


class JoinError(VerificationError):
    """Samples of a dataset have no row in the cache."""


class LockedError(SoftcacheError):
    """Another run holds the lock of this key; the message names its pid and host."""

    exit_code = 4


class Interrupted(SoftcacheError):
    """The user pressed Ctrl-C; the message says what is kept and how to go on."""

    exit_code = 130
