"""Errors that callers tell apart by their class; each is a `ValueError`."""

from __future__ import annotations


class GramMismatchError(ValueError):
    """The Gram matrix of the layers' recorded calls is not `A A^T`: a weight acts otherwise, or examples are mixed."""


class NonFiniteError(ValueError):
    """A loss, a direction, or what they are computed from is NaN or infinite; the step was not taken."""


# By name, as an assertion inside a graph can only carry text.
BY_NAME: dict[str, type[ValueError]] = {error.__name__: error for error in (GramMismatchError, NonFiniteError)}

__all__ = ["GramMismatchError", "NonFiniteError"]
