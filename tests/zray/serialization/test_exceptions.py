"""Exceptions: the caller catches the type that the task raised.

What    encode_exception and decode_exception over kind and unkind exceptions.
Never   starts a process.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from zray.errors import ActorDiedError, SerializationError, TaskError, UserError, ZrayError
from zray.serialization import collector
from zray.serialization.exceptions import decode_exception, encode_exception


def raised_by(function: Callable[[], Any]) -> BaseException:
    """Run a function that raises, and return what it raised."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def through(error: BaseException, **place: Any) -> Any:
    """Send an exception from a worker to its caller."""
    return decode_exception(encode_exception(error, where="module.function", **place))


class WithFields(ValueError):
    def __init__(self, text: str, code: int = 3) -> None:
        super().__init__(text, code)
        self.code = code

    def doubled(self) -> int:
        return self.code * 2


class NeedsArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("only a text")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("busy")
        self.lock = threading.Lock()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class BecomesInt(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return int, (5,)


def fail_with_fields() -> None:
    raise WithFields("bad", 21)


def test_the_error_is_a_task_error_and_of_the_users_type_with_its_fields_and_methods() -> None:
    error = through(raised_by(fail_with_fields), pid=42, node_id="ab" * 8)
    assert isinstance(error, TaskError)
    assert isinstance(error, WithFields)
    assert error.args == ("bad", 21)
    assert error.doubled() == 42
    assert type(error.cause) is WithFields
    assert (error.pid, error.node_id, error.function_name) == (42, "ab" * 8, "module.function")


def test_the_text_carries_the_remote_traceback_of_the_users_frames_and_the_place() -> None:
    text = str(through(raised_by(fail_with_fields), pid=42, node_id="ab" * 8))
    assert "in fail_with_fields" in text
    assert 'raise WithFields("bad", 21)' in text
    assert "module.function (pid 42, node abababab)" in text


def test_fields_of_builtin_types_survive() -> None:
    missing = through(raised_by(lambda: os.stat("/no/such/file")))
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "/no/such/file")
    group = through(raised_by(lambda: _raise(ExceptionGroup("several", [KeyError(1)]))))
    assert isinstance(group, ExceptionGroup)
    assert type(group.exceptions[0]) is KeyError


def _raise(error: BaseException) -> None:
    raise error


def test_the_chain_of_causes_is_kept() -> None:
    def fail() -> None:
        try:
            try:
                raise OSError(5, "disk")
            except OSError as error:
                raise KeyError("row") from error
        except KeyError as error:
            raise ValueError("table") from error

    error = through(raised_by(fail))
    assert type(error.__cause__) is KeyError
    assert type(error.__cause__.__cause__) is OSError
    assert error.cause.__cause__ is error.__cause__


def test_what_was_raised_while_handling_is_kept_as_context() -> None:
    def fail() -> None:
        try:
            raise KeyError("row")
        except KeyError:
            raise ValueError("table")  # noqa: B904 - the implicit chain is what is tested

    error = through(raised_by(fail))
    assert error.__cause__ is None
    assert type(error.cause.__context__) is KeyError


def test_a_cause_that_cannot_be_pickled_ends_the_chain_and_not_the_report() -> None:
    error = through(raised_by(lambda: _raise_from(ValueError("outer"), HoldsLock())))
    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    assert "HoldsLock: busy" in str(error)


def _raise_from(error: BaseException, cause: BaseException) -> None:
    raise error from cause


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NeedsArguments(1, 2), "missing 1 required"), (HoldsLock(), "lock"), (BecomesInt(), "int")],
)
def test_what_cannot_be_pickled_arrives_as_text_with_the_reason(
    error: Exception, reason: str
) -> None:
    arrived = through(raised_by(lambda: _raise(error)))
    assert type(arrived) is TaskError
    assert arrived.cause is None
    assert type(error).__name__ in str(arrived)
    assert reason in arrived.__notes__[0]


def test_an_exception_that_cannot_be_printed_still_arrives() -> None:
    error = through(raised_by(lambda: _raise(Unprintable())))
    assert isinstance(error, Unprintable)
    assert "Unprintable" in str(error)


def test_an_exception_that_holds_refs_arrives_as_text() -> None:
    class Ref:
        def __reduce__(self) -> tuple[Any, ...]:
            collector.note(self)
            return int, (1,)

    error = through(raised_by(lambda: _raise(ValueError(Ref()))))
    assert type(error) is TaskError
    assert "ObjectRefs" in error.__notes__[0]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(4), asyncio.CancelledError()]
)
def test_what_would_end_the_caller_is_a_plain_task_error(error: BaseException) -> None:
    arrived = through(raised_by(lambda: _raise(error)))
    assert type(arrived) is TaskError
    assert type(arrived.cause) is type(error)


def test_zrays_own_errors_arrive_as_themselves_with_a_note_of_where() -> None:
    died = ActorDiedError("it is gone", actor_id="77", reason="killed")
    arrived = through(raised_by(lambda: _raise(died)))
    assert type(arrived) is ActorDiedError
    assert (arrived.actor_id, arrived.reason, str(arrived)) == ("77", "killed", "it is gone")
    assert arrived.__notes__ == ["Raised in module.function."]
    assert not hasattr(died, "__notes__")


def test_an_error_of_zrays_family_that_cannot_be_pickled_is_described() -> None:
    class Odd(ZrayError):
        def __init__(self) -> None:
            super().__init__("odd")
            self.lock = threading.Lock()

    arrived = through(raised_by(lambda: _raise(Odd())))
    assert type(arrived) is TaskError
    assert isinstance(arrived, UserError)
    assert "Odd: odd" in str(arrived)


def test_an_error_passed_on_by_an_outer_task_keeps_its_type_and_both_tracebacks() -> None:
    inner = through(raised_by(fail_with_fields))
    outer = through(raised_by(lambda: _raise(inner)))
    assert isinstance(outer, WithFields)
    assert outer.doubled() == 42
    assert "in fail_with_fields" in str(outer)
    assert "in _raise" in str(outer)


def test_each_decoding_makes_a_new_exception() -> None:
    data = encode_exception(ValueError(1), where="f")
    assert decode_exception(data) is not decode_exception(memoryview(data))


def test_garbled_bytes_are_a_serialization_error() -> None:
    with pytest.raises(SerializationError, match="garbled"):
        decode_exception(b"nonsense")
