"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake, said in one sentence: what was expected, which field, what came, what to do.

    The command line prints it and exits with code 2; from Python it is an ordinary `ValueError`.
    """
