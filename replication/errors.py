"""What can go wrong, as a person and a script are told: one line, and an exit code.

Every error that Seamark raises for a reason it understands is a SeamarkError. Anything else is a bug.
The codes and their meanings are documented in docs/exit-codes.md; they never change meaning.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended. A code which is not here is a failure."""

    OK = 0  # done, nothing is left to do
    ERROR = 1  # it failed, and trying the same again will not help by itself
    USAGE = 2  # the command line, or the configuration, is wrong
    PARTIAL = 3  # done, but for some items, which are listed
    NOT_FOUND = 4  # what the command was asked about does not exist
    TEMPORARY = 5  # it failed in a way that may pass: network, full disk, server not up
    LOCKED = 8  # another process works on this session
    DIFFERENT = 9  # differences were found
    INTERRUPTED = 130  # Ctrl-C


class SeamarkError(Exception):
    """An error with a cause that a person can understand, and often mend.

    ``message`` is one line, without a final full stop, and says what to do where that is known.
    Subclasses set ``exit_code``; an instance may override it.
    """

    exit_code: ExitCode = ExitCode.ERROR

    def __init__(self, message: str, exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(SeamarkError):
    """The command line, or the configuration, is wrong."""

    exit_code = ExitCode.USAGE


class NotFoundError(SeamarkError):
    """What was asked about does not exist."""

    exit_code = ExitCode.NOT_FOUND


class TemporaryError(SeamarkError):
    """It may work later: unreachable, full, not up yet. Callers may try again with back-off."""

    exit_code = ExitCode.TEMPORARY


class LockedError(SeamarkError):
    """Another process works on the same session, or the secondary belongs to another one."""

    exit_code = ExitCode.LOCKED
