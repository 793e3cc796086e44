"""Settings of the test session."""

from __future__ import annotations

import signal

from hypothesis import settings

# No timed assertions, and the same examples in every run.
settings.register_profile("softcache", deadline=None, derandomize=True)
settings.load_profile("softcache")

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
