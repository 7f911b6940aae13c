"""The one exception that is not Python's own."""


class BackendError(RuntimeError):
    """A library or a device failed, or a backend that was asked for by name is not there."""
