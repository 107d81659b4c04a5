"""What a task raised, on its way to the caller.

What    An exception becomes a TaskError that is also an instance of the exception's own class, with
        the remote traceback in its text, the exception itself in `.cause` and its __cause__ chain.
        zray's own errors arrive as themselves. What cannot be pickled arrives as text.
Caller  actors/executor.py (encode), zray/client.py (decode).
Never   lets the exception's own code fail the report: a broken __reduce__ or __str__ is part of
        the report.
"""

from __future__ import annotations

import pickle
from typing import Any

from zray.errors import SerializationError, TaskError, ZrayError

from . import blob

_VERSION = 1
_CHAIN_LEN_MAX = 16
"""Causes of causes that travel as objects; the traceback's text names all of them."""


def encode_exception(error: BaseException, *, where: str, pid: int = 0, node_id: str = "") -> bytes:
    """Encode what a task or method raised.

    The bytes are made and read back here, so that what leaves can be read by the caller.

    Args:
        error: the exception, with its traceback.
        where: qualified name of the function or method that raised.
        pid: process id of the worker.
        node_id: hexadecimal id of the worker's node.
    """
    if isinstance(error, ZrayError) and not isinstance(error, TaskError):
        system, reason = _encode_chain(error)
        if system:
            return pickle.dumps((_VERSION, where, system, None, ""), 5)
        error = _described(error, reason)
    report = TaskError.from_exception(error, function_name=where, pid=pid, node_id=node_id)
    fields = (report.summary, report.function_name, report.traceback_text, pid, node_id)
    chain: list[tuple[bool, bytes]] = []
    reason = ""
    if report.cause is not None:
        chain, reason = _encode_chain(report.cause)
    return pickle.dumps((_VERSION, where, chain, fields, reason), 5)


def decode_exception(data: bytes | memoryview) -> BaseException:
    """Return the exception to raise at the caller, made anew by each call.

    Raises:
        SerializationError: the bytes are not what encode_exception makes.
    """
    try:
        version, where, chain, fields, reason = pickle.loads(data)
    except Exception as error:
        raise SerializationError(f"an exception arrived garbled: {error}") from error
    if version != _VERSION:
        raise SerializationError(
            f"an exception arrived in format {version}, not {_VERSION}: all processes of a cluster "
            "must run the same release of zray"
        )
    cause: BaseException | None = None
    try:
        cause = _decode_chain(chain)
    except SerializationError as error:
        reason = str(error)
    if fields is None:
        if cause is None:
            return SerializationError(f"{where} failed, and its error did not arrive: {reason}")
        cause.add_note(f"Raised in {where}.")
        return cause
    summary, function_name, traceback_text, pid, node_id = fields
    report = TaskError(
        summary,
        function_name=function_name,
        traceback_text=traceback_text,
        cause=cause,
        pid=pid,
        node_id=node_id,
    )
    if cause is None:
        return report.without_cause(reason) if reason else report
    raised = report.as_instanceof_cause()
    raised.__cause__ = cause.__cause__
    raised.__suppress_context__ = cause.__suppress_context__
    return raised


def _encode_chain(error: BaseException) -> tuple[list[tuple[bool, bytes]], str]:
    """Pickle an exception and those it came from: [(is a __cause__, not a __context__; bytes)].

    Returns an empty chain and the reason where the first of them cannot be pickled. One further
    down that cannot be ends the chain: the traceback's text has it.
    """
    chain: list[tuple[bool, bytes]] = []
    link: BaseException | None = error
    is_cause = True
    while link is not None and len(chain) < _CHAIN_LEN_MAX:
        try:
            chain.append((is_cause, _encode_one(link)))
        except Exception as refusal:
            return chain, "" if chain else f"{type(refusal).__name__}: {refusal}"
        is_cause = link.__cause__ is not None
        shown = is_cause or not link.__suppress_context__
        link = (link.__cause__ or link.__context__) if shown else None
    return chain, ""


def _encode_one(error: BaseException) -> bytes:
    """Pickle one exception and prove that it can be read back.

    Raises whatever its own code raises, and SerializationError for one that would arrive as
    something else.
    """
    encoded = blob.encode(error)
    if encoded.refs:
        raise SerializationError("it holds ObjectRefs, and nothing keeps those of an error alive")
    data = blob.to_bytes(encoded)
    # Pickle calls the class with `args`: an __init__ with other parameters fails only here.
    again = blob.decode(data)
    if not isinstance(again, BaseException):
        raise SerializationError(f"it unpickles to a {type(again).__name__}")
    return data


def _decode_chain(chain: list[tuple[bool, bytes]]) -> BaseException | None:
    """Unpickle the exceptions and link them up; None for no chain."""
    first: BaseException | None = None
    last: BaseException | None = None
    for is_cause, data in chain:
        link: Any = blob.decode(data)
        if first is None or last is None:
            first = link
        elif is_cause:
            last.__cause__ = link
        else:
            last.__context__ = link
        last = link
    return first


def _described(error: ZrayError, reason: str) -> ZrayError:
    """Replace an error of zray's family whose fields cannot be pickled by one that says so."""
    text = f"{type(error).__name__}: {error} (its fields could not be pickled: {reason})"
    return ZrayError(text).with_traceback(error.__traceback__)
