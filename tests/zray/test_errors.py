"""The exception tree: shape, pickling, documentation, and errors that carry a user's exception.

What    Walks every class of zray.errors, and drives TaskError as a worker and a caller would.
Never   starts a process: errors are plain data.
"""

from __future__ import annotations

import inspect
import pickle
import traceback
from typing import Any

import pytest

from zray import errors, exceptions
from zray.errors import TaskError, ZrayError

# In order of definition, so that a parent comes before its children.
ALL: list[type[ZrayError]] = [
    cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ZrayError)
]


class Boom(Exception):
    """A user's exception whose __init__ does not accept its own args."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"boom {code}")
        self.code = code
        self.message = hint

    def doubled(self) -> int:
        return 2 * self.code


class Slotted(ValueError):
    """A user's exception that keeps a field in a slot."""

    __slots__ = ("place",)
    place: str


class Final(Exception):
    """A user's exception that refuses subclasses."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


def _caught(error: BaseException) -> TaskError:
    try:
        raise error
    except BaseException as caught:
        return TaskError.from_exception(caught, function_name="f", pid=7, node_id="ab" * 8)


def _filled(cls: type[ZrayError]) -> ZrayError:
    """An instance with every field set to something other than its default."""
    samples: dict[str, Any] = {
        "str": "x",
        "int": 3,
        "int | None": -9,
        "float": 1.5,
        "tuple[str, ...]": ("a", "b"),
        "dict[str, float] | None": {"CPU": 2.0},
        "BaseException | None": ValueError("v"),
    }
    parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]
    return cls("what happened", **{each.name: samples[each.annotation] for each in parameters})


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_field_survives_a_pickle_round_trip(cls: type[ZrayError]) -> None:
    error = _filled(cls)
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error, protocol=5))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert repr(copy.__dict__) == repr(error.__dict__)
    assert "what happened" in str(copy)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_class_says_who_acts_and_what_to_do(cls: type[ZrayError]) -> None:
    text = " ".join((cls.__doc__ or "").split())
    assert "Who acts:" in text
    assert "What to do:" in text


def test_the_drawing_at_the_top_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if "── " in line:
            before, after = line.split("── ", 1)
            depth = (len(before) - len("        ├")) // 4 + 1
            name = after.split()[0]
            path[depth:] = [name]
            drawn[name] = path[depth - 1]
        elif line.startswith("What    "):
            path = [line.split()[1]]
    real = {cls.__name__: cls.__bases__[0].__name__ for cls in ALL if cls is not ZrayError}
    assert drawn == real


def test_a_class_is_of_one_family_and_only_cluster_errors_can_be_retryable() -> None:
    families = {
        errors.UserError,
        errors.ClusterError,
        errors.ProtocolError,
        errors.InternalError,
    }
    for cls in set(ALL) - {ZrayError}:
        assert len(families & set(cls.__mro__)) == 1, cls
        assert hasattr(cls, "retryable") == issubclass(cls, errors.ClusterError), cls
    assert errors.WorkerCrashedError.retryable
    assert not errors.ActorDiedError.retryable


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("OptionError", ValueError),
        ("ActorNotFoundError", ValueError),
        ("NameTakenError", ValueError),
        ("SerializationError", TypeError),
        ("GetTimeoutError", TimeoutError),
    ],
)
def test_errors_that_ray_users_catch_by_a_builtin_are_that_builtin(
    name: str, builtin: type[Exception]
) -> None:
    assert issubclass(getattr(errors, name), builtin)


def test_rays_names_are_our_classes() -> None:
    assert exceptions.RayError is ZrayError
    assert exceptions.RayTaskError is TaskError
    assert exceptions.RayActorError is errors.ActorError
    assert exceptions.PendingCallsLimitExceeded is errors.PendingCallsLimitError
    assert {cls.__name__ for cls in ALL} <= set(exceptions.__all__)
    for name in exceptions.__all__:
        assert getattr(exceptions, name) in ALL


def test_a_ray_name_without_counterpart_says_why_it_is_missing() -> None:
    with pytest.raises(AttributeError, match="Python only"):
        _ = exceptions.CrossLanguageError
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = exceptions.Nonsense


def test_a_task_error_is_caught_by_the_users_own_type_with_its_fields() -> None:
    error = _caught(Boom(21, hint="look left")).as_instanceof_cause()
    assert isinstance(error, Boom)
    assert isinstance(error, TaskError)
    assert (error.code, error.message, error.doubled()) == (21, "look left", 42)
    assert error.args == ("boom 21",)
    assert (error.function_name, error.pid) == ("f", 7)
    assert type(error.cause) is Boom


def test_the_text_has_headline_place_and_remote_traceback() -> None:
    text = str(_caught(ValueError("bad shape\nsecond line")).as_instanceof_cause())
    assert text.startswith("f (pid 7, node abababab) raised ValueError: bad shape\n")
    assert "Traceback (most recent call last)" in text
    assert "in _caught" in text
    assert text.endswith("second line")


def test_a_mixed_error_pickles_and_stays_mixed() -> None:
    error = _caught(FileNotFoundError(2, "no such", "a.txt")).as_instanceof_cause()
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, FileNotFoundError)
    assert isinstance(copy, TaskError)
    assert (copy.errno, copy.strerror, copy.filename) == (2, "no such", "a.txt")
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_a_subclass_of_oserror_keeps_the_fields_of_the_c_struct() -> None:
    error = _caught(ConnectionResetError(104, "reset")).as_instanceof_cause()
    assert isinstance(error, ConnectionResetError)
    assert error.errno == 104


@pytest.mark.parametrize(
    "cause",
    [
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"),
        ImportError("no x", name="x", path="/x.py"),
        ExceptionGroup("many", [ValueError("a"), TypeError("b")]),
        SyntaxError("bad", ("f.py", 1, 2, "x =", 1, 3)),
        KeyError("k"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_builtins_with_odd_constructors_keep_type_and_fields(cause: Exception) -> None:
    error: Any = pickle.loads(pickle.dumps(_caught(cause).as_instanceof_cause()))
    assert isinstance(error, type(cause))
    for field in ("encoding", "reason", "name", "path", "lineno", "message"):
        if hasattr(cause, field):
            assert getattr(error, field) == getattr(cause, field)


def test_a_field_in_a_slot_is_read_from_the_cause() -> None:
    cause = Slotted("s")
    cause.place = "here"
    error = _caught(cause).as_instanceof_cause()
    assert isinstance(error, Slotted)
    assert error.place == "here"


@pytest.mark.parametrize(
    "cause",
    [SystemExit(3), KeyboardInterrupt(), StopIteration(1), GeneratorExit(), Final("no")],
    ids=lambda cause: type(cause).__name__,
)
def test_a_cause_that_would_end_the_caller_stays_a_plain_task_error(cause: BaseException) -> None:
    error = _caught(cause)
    assert error.as_instanceof_cause() is error
    assert error.cause is cause


def test_zrays_own_errors_are_not_mixed_in() -> None:
    error = _caught(errors.GetTimeoutError("too long", timeout_s=1.0))
    assert not isinstance(error.as_instanceof_cause(), TimeoutError)


def test_a_nested_failure_keeps_the_innermost_type_and_both_tracebacks() -> None:
    inner = _caught(ZeroDivisionError("by zero")).as_instanceof_cause()
    outer = _caught(inner).as_instanceof_cause()
    assert isinstance(outer, ZeroDivisionError)
    assert type(outer.cause) is ZeroDivisionError
    assert outer.summary == "ZeroDivisionError: by zero"
    assert str(outer).count("Traceback (most recent call last)") == 2
    assert isinstance(pickle.loads(pickle.dumps(outer)), ZeroDivisionError)


def test_an_unpicklable_cause_leaves_text_and_advice() -> None:
    error = _caught(Boom(1, hint="h")).without_cause("TypeError: missing hint")
    copy = pickle.loads(pickle.dumps(error))
    assert copy.cause is None
    assert "boom 1" in str(copy)
    assert "missing hint" in "".join(traceback.format_exception(copy))


def test_an_exception_that_cannot_be_printed_is_still_reported() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert _caught(Mute()).summary == "Mute: <its __str__ raised RuntimeError>"


def test_frames_of_zray_are_left_out_and_users_kept() -> None:
    def call_through_zray() -> None:
        errors.TaskError.as_instanceof_cause(Mimic())  # type: ignore[arg-type]

    class Mimic:
        @property
        def cause(self) -> Exception:
            raise LookupError("from below zray")

    with pytest.raises(LookupError) as caught:
        call_through_zray()
    wrapped = TaskError.from_exception(caught.value, function_name="g", pid=1, node_id="0")
    text = wrapped.traceback_text
    assert "call_through_zray" in text
    assert "in cause" in text
    assert "errors.py" not in text.replace("test_errors.py", "")


def test_an_internal_error_tells_its_story_and_whose_bug_it_is() -> None:
    text = str(errors.InternalError("count is -1", story=("grant 3", "return 3", "return 3")))
    assert "this is a bug in zray" in text
    assert text.splitlines()[1:] == ["  grant 3", "  return 3", "  return 3"]
