"""What stops `descant up`."""


class UpProblem(Exception):
    """Said to the user as one line: what is wrong, and what to do. `log_tail` follows it where a part has died."""

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class StopRequested(Exception):
    """Ctrl-C or SIGTERM: not a problem."""
