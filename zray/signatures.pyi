"""What type checkers see of zray: remote functions, actor classes, handles, get and put.

What    `.remote` takes what the function takes, or for each of its first six positional arguments
        an ObjectRef of that, and returns an ObjectRef of what the function returns.

        Python can't map the methods of a class, so an actor's handle is, to a checker, an instance
        of the class, and `@method` says of a method that it has `.remote`. A method without
        `@method` runs all the same, but to a checker it has no `.remote`: an error where it is
        called, which names the method to decorate. Any is the way out for a whole handle.

        mypy takes no notice of what a class decorator returns, and pyright then no longer takes
        the decorated name for a type. A class that derives from Actor has `.remote` and `.options`
        for both, with the decorator or without, and stays a type for annotations. Any other class
        is `zray.remote(Class)` to mypy, and decorated is known to pyright.

        A ref passed by keyword is an error to a checker: pass it by position.
Caller  zray/__init__.py, under TYPE_CHECKING, in place of the functions that do the work.
Never   imported by a running program.
Spec    tests/typing/programs/ shows what is accepted and what is an error.
"""

# The first overload that fits is meant: of a class before a function, of 1 before any int.
# mypy: disable-error-code="overload-overlap"
# pyright: reportOverlappingOverload=false

from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from zray.refs import ObjectRef, ObjectRefGenerator
from zray.util.scheduling_strategies import (
    HasGroupId,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")
ClassT = TypeVar("ClassT", bound=type)
ActorT = TypeVar("ActorT", bound=type[Actor])
CallableT_co = TypeVar("CallableT_co", bound=Callable[..., Any], covariant=True)

OneReturn = Literal[1, "streaming"] | None
Retried = bool | Sequence[type[BaseException]]

# ---------------------------------------------------------------------------------------- options

class PlacedKeywords(TypedDict, total=False):
    """Options that tasks and actors share; zray/options.py has the table of all of them."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: Mapping[str, float] | None
    scheduling_strategy: (
        Literal["DEFAULT", "SPREAD"]
        | NodeAffinitySchedulingStrategy
        | NodeLabelSchedulingStrategy
        | PlacementGroupSchedulingStrategy
        | None
    )
    placement_group: HasGroupId | Literal["default"] | None
    placement_group_bundle_index: int | None
    placement_group_capture_child_tasks: bool | None
    label_selector: Mapping[str, str] | None
    runtime_env: Mapping[str, Any] | None
    name: str | None

class TaskKeywords(PlacedKeywords, total=False):
    """Options of tasks, but num_returns, which changes what `.remote` returns."""

    max_retries: int | None
    retry_exceptions: Retried | None
    max_calls: int | None
    _generator_backpressure_num_objects: int | None

class ActorKeywords(PlacedKeywords, total=False):
    """Options of actors."""

    namespace: str | None
    get_if_exists: bool | None
    lifetime: Literal["detached", "non_detached"] | None
    recovery: Literal["none", "restart"] | None
    max_restarts: int | None
    max_task_retries: int | None
    max_concurrency: int | None
    concurrency_groups: Mapping[str, int] | None
    max_pending_calls: int | None
    isolation: Literal["process", "shared"] | None

class RemoteKeywords(TaskKeywords, ActorKeywords, total=False):
    """Options that `remote` takes before it knows whether a function or a class follows."""

class MethodKeywords(TypedDict, total=False):
    """Options of methods, but num_returns."""

    name: str | None
    retry_exceptions: Retried | None
    max_task_retries: int | None
    concurrency_group: str | None
    _generator_backpressure_num_objects: int | None

# -------------------------------------------------------------------------------- remote callables

class Submit(Generic[CallableT_co]):
    """What `.remote` is: takes the arguments of a callable, and returns what that returns.

    The callable of a function from int to str is Callable[[int], ObjectRef[str]]; that of a class
    is the class.
    """

    # `self` is matched against a Callable, because mypy does not solve A in Concatenate[A, P] from
    # a class that is generic in P itself.
    @overload
    def __call__(
        self: Submit[Callable[P, V]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, P], V]],
        a: A | ObjectRef[A],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, B, P], V]],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, B, C, P], V]],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, B, C, D, P], V]],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, B, C, D, E, P], V]],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        e: E | ObjectRef[E],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, B, C, D, E, F, P], V]],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        e: E | ObjectRef[E],
        f: F | ObjectRef[F],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> V: ...
    # A fan-in, `total.remote(*refs)`. What takes eight of a type is taken to be variadic, because
    # mypy finds that a function of one argument fits a Protocol of `*args` too.
    @overload
    def __call__(
        self: Submit[Callable[Concatenate[A, A, A, A, A, A, A, A, P], V]], *args: A | ObjectRef[A]
    ) -> V: ...

class SubmitEach(Generic[CallableT_co]):
    """What `.map` is: takes items, each the only argument of one call."""

    def __call__(self: SubmitEach[Callable[[A], V]], items: Iterable[A]) -> Sequence[V]: ...

class RemoteFunction(Generic[P, V]):
    """A function behind `@remote`. P is its parameters, V what `.remote` returns."""

    @property
    def remote(self) -> Submit[Callable[P, V]]: ...
    @overload
    def options(
        self, *, num_returns: OneReturn = None, **options: Unpack[TaskKeywords]
    ) -> RemoteFunction[P, V]: ...
    @overload
    def options(
        self, *, num_returns: int, **options: Unpack[TaskKeywords]
    ) -> RemoteFunction[P, list[ObjectRef[Any]]]: ...
    @property
    def map(self) -> SubmitEach[Callable[P, V]]: ...

class ActorMethod(Generic[P, R, V]):
    """A method behind `@method`. R is what a call from inside the class returns."""

    @property
    def remote(self) -> Submit[Callable[P, V]]: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def options(
        self, *, num_returns: OneReturn = None, **options: Unpack[MethodKeywords]
    ) -> ActorMethod[P, R, V]: ...
    @overload
    def options(
        self, *, num_returns: int, **options: Unpack[MethodKeywords]
    ) -> ActorMethod[P, R, list[ObjectRef[Any]]]: ...

class ActorClass(Generic[CallableT_co]):
    """A class behind `@remote`. Its `.remote` returns a handle, typed as an instance."""

    @property
    def remote(self) -> Submit[CallableT_co]: ...
    def options(self, **options: Unpack[ActorKeywords]) -> ActorClass[CallableT_co]: ...

class Actor:
    """Base for actor classes that checkers of every make are to understand."""

    # As in Submit; a descriptor that returned one would lose the parameters to mypy.
    @overload
    @classmethod
    def remote(
        cls: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    @classmethod
    def remote(
        cls: Callable[Concatenate[A, P], T],
        a: A | ObjectRef[A],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    @classmethod
    def remote(
        cls: Callable[Concatenate[A, B, P], T],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    @classmethod
    def remote(
        cls: Callable[Concatenate[A, B, C, P], T],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    @classmethod
    def remote(
        cls: Callable[Concatenate[A, B, C, D, P], T],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    @classmethod
    def remote(
        cls: Callable[Concatenate[A, B, C, D, E, P], T],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        e: E | ObjectRef[E],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    @classmethod
    def remote(
        cls: Callable[Concatenate[A, B, C, D, E, F, P], T],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        e: E | ObjectRef[E],
        f: F | ObjectRef[F],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @classmethod
    def options(cls: ClassT, **options: Unpack[ActorKeywords]) -> ActorClass[ClassT]: ...

# ------------------------------------------------------------------------------------- decorators

class RemoteDecorator(Protocol):
    """What `remote(...)` returns when it is given options."""

    @overload
    def __call__(self, target: ActorT, /) -> ActorT: ...
    @overload
    def __call__(self, target: ClassT, /) -> ActorClass[ClassT]: ...
    @overload
    def __call__(
        self, target: Callable[P, Iterator[R]], /
    ) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...

class SeveralReturnsDecorator(Protocol):
    """What `remote(num_returns=n)` returns: it makes tasks of several refs."""

    def __call__(self, target: Callable[P, Any], /) -> RemoteFunction[P, list[ObjectRef[Any]]]:
        """Make a function remote."""
        ...

class MethodDecorator(Protocol):
    """What `method(...)` returns when it is given options."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> ActorMethod[P, Coroutine[Any, Any, R], ObjectRef[R]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
    ) -> ActorMethod[P, AsyncIterator[R], ObjectRefGenerator[R]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Iterator[R]], /
    ) -> ActorMethod[P, Iterator[R], ObjectRefGenerator[R]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], R], /
    ) -> ActorMethod[P, R, ObjectRef[R]]: ...

class SeveralReturnsMethodDecorator(Protocol):
    """What `method(num_returns=n)` returns."""

    def __call__(
        self, function: Callable[Concatenate[Any, P], R], /
    ) -> ActorMethod[P, R, list[ObjectRef[Any]]]:
        """Mark a method."""
        ...

@overload
def remote(target: ActorT, /) -> ActorT: ...
@overload
def remote(target: ClassT, /) -> ActorClass[ClassT]: ...
@overload
def remote(target: Callable[P, Iterator[R]], /) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(
    *, num_returns: OneReturn = None, **options: Unpack[RemoteKeywords]
) -> RemoteDecorator: ...
@overload
def remote(*, num_returns: int, **options: Unpack[RemoteKeywords]) -> SeveralReturnsDecorator: ...
@overload
def method(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
) -> ActorMethod[P, Coroutine[Any, Any, R], ObjectRef[R]]: ...
@overload
def method(
    function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
) -> ActorMethod[P, AsyncIterator[R], ObjectRefGenerator[R]]: ...
@overload
def method(
    function: Callable[Concatenate[Any, P], Iterator[R]], /
) -> ActorMethod[P, Iterator[R], ObjectRefGenerator[R]]: ...
@overload
def method(function: Callable[Concatenate[Any, P], R], /) -> ActorMethod[P, R, ObjectRef[R]]: ...
@overload
def method(
    *, num_returns: OneReturn = None, **options: Unpack[MethodKeywords]
) -> MethodDecorator: ...
@overload
def method(
    *, num_returns: int, **options: Unpack[MethodKeywords]
) -> SeveralReturnsMethodDecorator: ...
@overload
def get(refs: ObjectRef[T], *, timeout: float | None = None, writable: bool = False) -> T: ...
@overload
def get(
    refs: Sequence[ObjectRef[T]], *, timeout: float | None = None, writable: bool = False
) -> list[T]: ...
def put(value: T) -> ObjectRef[T]: ...
def wait(
    refs: Sequence[T],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[T], list[T]]: ...

# A handle is typed as an instance of its class, and which class a name stands for is not known.
def kill(actor: object, *, no_restart: bool = True) -> None: ...
def get_actor(name: str, namespace: str | None = None) -> Any: ...
