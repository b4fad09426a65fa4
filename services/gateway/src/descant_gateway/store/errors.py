"""What a query can refuse. Each error names the thing, so that its message can be shown as it is."""


class StoreError(Exception):
    """A change or look-up that the data doesn't allow."""


class NotFound(StoreError):
    """The named thing is not there."""

    def __init__(self, kind: str, name: object) -> None:
        super().__init__(f"There is no {kind} {str(name)!r}.")


class AlreadyExists(StoreError):
    """Another thing has this name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is already a {kind} {name!r}.")


class InUse(StoreError):
    """Something else refers to the thing that was to be deleted."""


class Invalid(StoreError):
    """A value that contradicts what is stored; `field` is the request's field at fault."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field
