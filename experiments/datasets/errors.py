"""The one error of this package."""


class DataError(Exception):
    """Data that is missing, unreachable or damaged; the message names the file and the remedy, in one line."""
