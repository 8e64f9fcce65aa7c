"""The errors a user can meet.

    DraftwoodError               anything draftwood says in one sentence
    ├── UsageError               a wrong argument (exit code 2)
    ├── FileError                a file that cannot be used (exit code 1)
    │   ├── FormatError          it is not what its name says, or it is damaged
    │   ├── UnsupportedModelError   a sound file of a kind draftwood cannot run
    │   └── DraftMismatchError   a draft that does not belong to the target
    ├── DownloadError            a file could not be fetched (exit code 1)
    └── DeviceError              the device cannot do what was asked (exit code 1)

Every message is one sentence that says what was found, what was expected and what to do.
"""

from __future__ import annotations


class DraftwoodError(Exception):
    """Base of all errors that are the user's to read; `exit_code` is the command line's exit status."""

    exit_code = 1


class UsageError(DraftwoodError, ValueError):
    """An argument has a value that cannot be used."""

    exit_code = 2


class FileError(DraftwoodError):
    """A file is missing or cannot be used."""


class FormatError(FileError):
    """A file is damaged, or not of the format it claims."""


class UnsupportedModelError(FileError):
    """A sound model file whose architecture or block type is not supported."""


class DraftMismatchError(FileError):
    """A draft whose geometry does not fit the target."""


class DownloadError(DraftwoodError):
    """A download failed or its content is not what was expected."""


class DeviceError(DraftwoodError):
    """The chosen device is missing or cannot run the request."""
