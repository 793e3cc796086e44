"""A user's own dataset: `package.module:function`, called with the data folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.arrays import ArrayDataset
from data.errors import DatasetError
from data.npz import LAYOUT_OF_ARRAYS, splits_of_arrays
from data.splits import SPLITS


class FunctionSource:
    """What `function(data_folder)` returns: named arrays as in a .npz, or a dataset for each split.

    The function may carry two attributes: `version` (an integer, raised when its meaning changes) and `files` (a list
    of paths, relative ones starting at the data folder). With both, it is called only when one of them changed;
    without, it is called each time to see.
    """

    def __init__(self, name: str, data_folder: Path, *, validation: float, test: float, split_seed: int):
        self._name = name
        self._data_folder = data_folder
        self._function = _imported(name)
        self._fractions = (validation, test, split_seed)
        self.version: int | None = getattr(self._function, "version", None)

    def files(self) -> dict[str, Path] | None:
        """The files that the function declares, by their place in its list, or None when it declares none."""
        declared = getattr(self._function, "files", None)
        if declared is None or self.version is None:
            return None
        if isinstance(declared, str):
            raise DatasetError(f"{self._name}.files is the text {declared!r}; a list of paths is needed.")
        paths = [self._data_folder / path for path in declared]
        for path in paths:
            if not path.is_file():
                raise DatasetError(f"{path}: no such file, but {self._name} declares it in its `files`.")
        return {str(place): path for place, path in enumerate(paths)}

    def load(self) -> dict[str, ArrayDataset]:
        """Call the function. Raises DatasetError when it returns something else than is asked of it."""
        returned: Any = self._function(self._data_folder)
        if not isinstance(returned, Mapping):
            raise DatasetError(
                f"{self._name} returned {type(returned).__name__}; a mapping is needed: arrays named "
                f"{LAYOUT_OF_ARRAYS}; or a dataset for each of {', '.join(SPLITS)}."
            )
        if "training" in returned:
            return dict(returned)
        validation, test, seed = self._fractions
        arrays = {name: _as_array(value, name, self._name) for name, value in returned.items()}
        return splits_of_arrays(arrays, self._name, validation=validation, test=test, seed=seed)


def _as_array(value: Any, name: str, origin: str) -> NDArray[np.generic]:
    try:
        return np.asarray(value)
    except ValueError as problem:  # nested lists of unequal lengths
        raise DatasetError(f"{origin}: {name} is no array ({problem}).") from None


def _imported(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, TypeError) as problem:
        raise DatasetError(f"data.function = {name!r} cannot be imported: {problem}.") from None
    if not callable(function):
        raise DatasetError(f"data.function = {name!r} is a {type(function).__name__}, not a function.")
    return function
