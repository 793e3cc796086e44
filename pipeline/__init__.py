"""softcache: cached soft targets for knowledge distillation.

    from pipeline import TargetCache

opens a sealed target cache from any project; README.md shows a whole training loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.targets.reader import TargetCache

__all__ = ["TargetCache"]


def __getattr__(name: str) -> Any:
    if name == "TargetCache":  # numpy is imported when it is needed, not by a run that has nothing to do
        from pipeline.targets.reader import TargetCache

        return TargetCache
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
