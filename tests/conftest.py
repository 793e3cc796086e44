"""Settings of the test session."""

from __future__ import annotations

from hypothesis import settings

# No timed assertions, and the same examples in every run.
settings.register_profile("softcache", deadline=None, derandomize=True)
settings.load_profile("softcache")
