"""The one error of this package; the command line shows it like any other user's mistake (exit code 1)."""


class DatasetError(ValueError):
    """A dataset is missing, damaged or inconsistent; the message names the file and, where there is one, the row."""
