"""The one exception that bad input raises."""

from __future__ import annotations


class RetroMAEError(ValueError):
    """Input that cannot be used: the message names the thing and the remedy.

    The command line prints the message and exits with status 2, without a traceback.
    """
