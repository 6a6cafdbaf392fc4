"""What ends a run early, and the exit code that says so."""


class RunError(Exception):
    """Ends a run with a message for its user."""

    exit_code = 1


class BadInput(RunError):
    """A config, a dataset or a workdir that cannot be used; nothing was changed."""

    exit_code = 2


class Diverged(RunError):
    """The loss is not finite; the last good checkpoint stays."""

    exit_code = 3


class Broken(RunError):
    """A device, a disk or another process failed; the last good checkpoint stays."""

    exit_code = 4


class Interrupted(RunError):
    """A signal asked to stop; the run was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Keeps the signal, which the exit code names as shells do: 128 + its number."""
        super().__init__(message)
        self.exit_code = 128 + signal_number
