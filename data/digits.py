"""scikit-learn's bundled digits: 1797 grey images of 8 x 8 pixels with values 0 to 16, ten classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DatasetError

if TYPE_CHECKING:
    from data.arrays import ArrayDataset

VERSION = 1


class DigitsSource:
    """The digits; they need no data folder, since scikit-learn carries them."""

    def __init__(self, *, validation: float, test: float, split_seed: int):
        self.version: int | None = VERSION
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """The file that scikit-learn carries, found without importing scikit-learn."""
        package = find_spec("sklearn")
        if package is None or package.origin is None:
            raise DatasetError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
        return {"digits": Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"}

    def load(self) -> dict[str, ArrayDataset]:
        """The three splits, samples of shape (1, 8, 8) uint8."""
        import numpy as np
        from sklearn.datasets import load_digits

        from data.arrays import checked_dataset
        from data.splits import split_by_content

        digits = load_digits()
        images = digits.images.astype(np.uint8)[:, None]
        names = [str(name) for name in digits.target_names]
        whole = checked_dataset(images, digits.target, names, split="all", origin="scikit-learn digits")
        validation, test, seed = self._fractions
        return split_by_content(whole, validation=validation, test=test, seed=seed)
