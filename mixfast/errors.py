"""Errors that a user can correct; the commands end with the exit code of each (docs/reproduce.md lists them)."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NonFiniteError",
    "OutOfMemoryError",
    "PlatformError",
    "StorageError",
    "UserError",
]


class UserError(Exception):
    """An error that the user can correct. The message says what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(UserError):
    """A bad option, value, preset or combination."""

    exit_code = 2


class DataError(UserError):
    """Data that is missing, empty, unreadable, or of the wrong shape."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is absent, truncated, or belongs to another run."""

    exit_code = 4


class NonFiniteError(UserError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 5


class OutOfMemoryError(UserError):
    """The device ran out of memory."""

    exit_code = 6


class PlatformError(UserError):
    """A device, a compiled part or an optional package that this machine lacks."""

    exit_code = 7


class StorageError(UserError):
    """A disk, folder or file that cannot be written or read: full, read-only, forbidden, or gone."""

    exit_code = 9
