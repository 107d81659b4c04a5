"""Outcomes that the node itself reports.

What    error_outcome() of an error that arose in the node, not in a user's code.
Caller  the shells of brokers/: a machine is handed such outcomes and does not look inside.
Never   reports what a task raised: the worker that ran it has done so.
"""

from __future__ import annotations

from zray.protocol import outcome
from zray.serialization.exceptions import encode_exception


def error_outcome(error: BaseException) -> bytes:
    """Return the outcome of an error that the node itself reports."""
    return outcome.error(encode_exception(error, where="node"))
