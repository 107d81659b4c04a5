"""Every exception that zray raises, in four families by who is to blame.

What    ZrayError
        ├── UserError                   your code or your call is at fault
        │   ├── TaskError               your task or method raised; the remote traceback is attached
        │   ├── OptionError             also a ValueError: a wrong, unknown or refused option
        │   ├── SerializationError      also a TypeError: a value cannot be pickled or unpickled
        │   ├── UnschedulableError      no node can ever run it
        │   │   ├── TaskUnschedulableError
        │   │   ├── ActorUnschedulableError
        │   │   └── UnknownResourceError
        │   ├── ForkedProcessError      zray was used in a child made by os.fork
        │   ├── NotInitializedError     zray.init has not been called
        │   ├── NameTakenError          also a ValueError: an actor of that name lives
        │   └── ActorNotFoundError      also a ValueError: no actor of that name lives
        ├── ClusterError                the machines failed; see `retryable`
        │   ├── WorkerCrashedError
        │   ├── ActorError
        │   │   ├── ActorDiedError
        │   │   │   └── ActorPlacementGroupRemovedError
        │   │   └── ActorUnavailableError
        │   ├── TaskCancelledError
        │   ├── TaskPlacementGroupRemovedError
        │   ├── GetTimeoutError         also a TimeoutError
        │   ├── PendingCallsLimitError
        │   ├── ObjectLostError
        │   │   ├── OwnerDiedError
        │   │   └── ObjectFreedError
        │   ├── ObjectStoreFullError
        │   │   └── OutOfDiskError
        │   ├── OutOfMemoryError
        │   ├── NodeDiedError
        │   ├── NodeStartError
        │   ├── SecurityError
        │   └── GcsError
        │       ├── GcsCompactedError
        │       ├── GcsUnavailableError
        │       ├── GcsFencedError
        │       └── GcsSessionLostError
        ├── ProtocolError               bytes on a socket break the protocol
        │   ├── LocalProtocolError      we were about to send them
        │   └── RemoteProtocolError     a peer sent them
        └── InternalError               a bug in zray, with the story of the thing it happened to
Caller  every module of zray; users, who also find these under Ray's names in zray.exceptions.
Never   imports anything of zray, or loses a field when pickled: a class takes its message first and
        every other field by keyword with a default.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, ClassVar


class ZrayError(Exception):
    """Root of every exception that zray itself raises.

    Who acts: see the family. What to do: catch this class to catch all of zray's errors at once.
    """

    def __init__(self, message: str = "") -> None:
        """Keep `message`, which says what happened, where, why and what to do."""
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the message, then restore every field.

        OSError, an ancestor of GetTimeoutError, has a __reduce__ of its own that drops fields when
        it is given two arguments, so the rule is stated here once for the whole tree.
        """
        return (type(self), self.args, self.__dict__)


# ------------------------------------------------------------------------------------------- user


class UserError(ZrayError):
    """Your code raised, or you asked zray for something that it cannot do.

    Who acts: the author of the program. What to do: fix the call that the message names; a retry
    without a change fails in the same way.
    """


class TaskError(UserError):
    """A task or an actor method raised an exception; its remote traceback is attached.

    Who acts: the author of the function. What to do: read the traceback, whose innermost frames
    are yours; catch either TaskError or the type that the function raised, because what `get`
    raises is both (see `as_instanceof_cause`).
    """

    def __init__(
        self,
        summary: str = "",
        *,
        function_name: str = "",
        traceback_text: str = "",
        cause: BaseException | None = None,
        pid: int = 0,
        node_id: str = "",
    ) -> None:
        """Describe one failed call.

        Args:
            summary: the exception in one line, such as "ValueError: bad shape".
            function_name: qualified name of the function or method that raised.
            traceback_text: the remote traceback, formatted, without frames of zray.
            cause: the exception itself, or None where it cannot be pickled.
            pid: process id of the worker that ran the call.
            node_id: hexadecimal id of that worker's node.
        """
        super().__init__(summary)
        self.summary = summary
        self.function_name = function_name
        self.traceback_text = traceback_text
        self.cause = cause
        self.pid = pid
        self.node_id = node_id

    @classmethod
    def from_exception(
        cls, error: BaseException, *, function_name: str, pid: int, node_id: str
    ) -> TaskError:
        """Wrap `error` where it was caught, with its traceback reduced to the user's frames.

        An error that is a TaskError already (a nested task failed and `get` raised it here) keeps
        its own cause, so that the type the user catches is the innermost one at any depth.
        """
        if isinstance(error, TaskError):
            summary, cause = error.summary, error.cause
        else:
            summary, cause = _one_line(error), error
        return cls(
            summary,
            function_name=function_name,
            traceback_text=_user_traceback(error),
            cause=cause,
            pid=pid,
            node_id=node_id,
        )

    def without_cause(self, reason: str) -> TaskError:
        """Return a copy that can be pickled although the user's exception cannot.

        Args:
            reason: why the exception did not pickle; it is told in a note of the copy.
        """
        copy = TaskError(
            self.summary,
            function_name=self.function_name,
            traceback_text=self.traceback_text,
            pid=self.pid,
            node_id=self.node_id,
        )
        copy.add_note(
            f"The exception object itself did not reach you ({reason}). Give its class an __init__ "
            "that accepts its own `args`, and keep only picklable fields in it."
        )
        return copy

    def as_instanceof_cause(self) -> TaskError:
        """Return an error that is both a TaskError and an instance of the cause's own class.

        `except ValueError` and `except TaskError` then both catch it. It is the plain TaskError
        where a mixed class is of no use (the cause is one of zray's own errors), would do harm
        (SystemExit would end the caller, StopIteration would end its loop) or cannot be made.
        """
        if not isinstance(self.cause, Exception) or isinstance(
            self.cause, (ZrayError, StopIteration, StopAsyncIteration)
        ):
            return self
        try:
            return _mixed(self, self.cause)
        except (
            TypeError
        ):  # Its class refuses subclasses, or its memory layout allows no second base.
            return self

    def __str__(self) -> str:
        """The headline, then the remote traceback."""
        where = f" (pid {self.pid}, node {self.node_id[:8]})" if self.pid else ""
        headline = f"{self.function_name or 'a task'}{where} raised {self.summary}"
        return f"{headline}\n\n{self.traceback_text}" if self.traceback_text else headline


def _one_line(error: BaseException) -> str:
    """Name the type and the first line of the message, even if the error cannot be printed."""
    try:
        lines = str(error).splitlines()
    except Exception as broken:
        lines = [f"<its __str__ raised {type(broken).__name__}>"]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _user_traceback(error: BaseException) -> str:
    """Format the traceback of `error` and of its causes without the frames inside zray.

    A traceback that lies wholly inside zray (arguments that fit no signature) is kept as it is.
    """
    import os
    import traceback

    package = os.path.dirname(os.path.abspath(__file__)) + os.sep
    formatted = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    chain: list[traceback.TracebackException | None] = [formatted]
    while chain:
        link = chain.pop()
        if link is None:
            continue
        users = [frame for frame in link.stack if not frame.filename.startswith(package)]
        if users:
            link.stack[:] = users
        chain += [link.__cause__, link.__context__, *(link.exceptions or ())]
    return "".join(formatted.format()).rstrip()


def _mixed(error: TaskError, cause: Exception) -> TaskError:
    """Make the instance that `TaskError.as_instanceof_cause` promises."""
    cause_class: Any = type(cause)
    mixed_class, builtin_class = _mixed_class(cause_class)
    # The user's own __new__ and __init__ do not run: they may have effects or other parameters.
    mixed: Any = builtin_class.__new__(mixed_class, *cause.args)
    for base in builtin_class.__mro__:
        for name, member in vars(base).items():
            # Fields that live in the C struct, such as OSError.errno, are in no __dict__.
            if type(member).__name__ == "member_descriptor":
                with contextlib.suppress(AttributeError, TypeError):  # A read-only one is set.
                    setattr(mixed, name, getattr(cause, name))
    mixed.__dict__.update(cause.__dict__)
    mixed.__dict__.update(error.__dict__)
    mixed.__dict__["task_error"] = error
    done: TaskError = mixed
    return done


@functools.lru_cache(maxsize=256)
def _mixed_class(cause_class: Any) -> tuple[type[Any], type[Any]]:
    """Make the class "TaskError(X)", and find X's first built-in ancestor.

    The cache keeps the class equal from one error to the next (`type(a) is type(b)`) and bounds
    how many such classes live.
    """

    def read_from_cause(self: Any, name: str) -> Any:
        return getattr(self.__dict__.get("cause"), name)

    body = {
        "__module__": __name__,
        "__doc__": cause_class.__doc__,
        "__reduce__": lambda self: (TaskError.as_instanceof_cause, (self.task_error,)),
        "__getattr__": read_from_cause,
        "__str__": lambda self: str(self.task_error),
    }
    mixed_class = type(f"TaskError({cause_class.__name__})", (TaskError, cause_class), body)
    builtin_class = next(base for base in cause_class.__mro__ if base.__module__ == "builtins")
    return mixed_class, builtin_class


class OptionError(UserError, ValueError):
    """An option is unknown, has a wrong value, or is one that this release does not offer.

    Who acts: the author of the call. What to do: change or drop the option that the message names.
    """

    def __init__(self, message: str = "", *, option: str = "") -> None:
        """Name the offending `option` beside the message."""
        super().__init__(message)
        self.option = option


class SerializationError(UserError, TypeError):
    """A function, argument, result or exception cannot be pickled, or not be unpickled there.

    Who acts: the author of the value. What to do: leave out what cannot travel (locks, sockets,
    open files), create it inside the task, or run zray.util.inspect_serializability to find it.
    """


class UnschedulableError(UserError):
    """No node of the cluster could ever meet the resources asked for, even when it is idle.

    Who acts: the author of the call, or who runs the cluster. What to do: ask for less, or start a
    node that has enough.
    """

    def __init__(
        self,
        message: str = "",
        *,
        request: dict[str, float] | None = None,
        capacity: dict[str, float] | None = None,
    ) -> None:
        """Describe what was asked for and what there is.

        Args:
            message: what cannot run and which resource is short.
            request: the resources asked for, by name, in whole units.
            capacity: what the best node has in total, by name, in whole units.
        """
        super().__init__(message)
        self.request = dict(request or {})
        self.capacity = dict(capacity or {})


class TaskUnschedulableError(UnschedulableError):
    """A task asks for more resources than any node has.

    Who acts: the author of the task. What to do: lower its num_cpus, num_gpus, memory or resources.
    """


class ActorUnschedulableError(UnschedulableError):
    """An actor asks for more resources than any node has.

    Who acts: the author of the actor. What to do: lower its num_cpus, num_gpus, memory or
    resources.
    """


class UnknownResourceError(UnschedulableError):
    """A custom resource is asked for that no node offers under that name.

    Who acts: the author of the call. What to do: correct the name, or offer the resource with
    zray.init(resources={...}) or `zray-node start --resources`.
    """


class ForkedProcessError(UserError):
    """zray was used in a child process made by os.fork from a process that uses zray.

    Who acts: the author of the program. What to do: call zray.init in the child first, or start the
    child with the "spawn" method; sockets and threads of the parent do not survive a fork.
    """


class NotInitializedError(UserError):
    """The call needs a running session, and there is none in this process.

    Who acts: the author of the program. What to do: call zray.init first, or again after shutdown.
    """


class NameTakenError(UserError, ValueError):
    """An actor (or a placement group) of this name lives in the namespace already.

    Who acts: the author of the call. What to do: take another name, or pass get_if_exists=True to
    be given the one that lives.
    """

    def __init__(self, message: str = "", *, name: str = "", namespace: str = "") -> None:
        """Name the actor's `name` and `namespace` beside the message."""
        super().__init__(message)
        self.name = name
        self.namespace = namespace


class ActorNotFoundError(UserError, ValueError):
    """No actor of this name lives in the namespace.

    Who acts: the author of the call. What to do: check the spelling and the namespace; an actor
    that is not detached ends with the driver that made it.
    """

    def __init__(self, message: str = "", *, name: str = "", namespace: str = "") -> None:
        """Name the `name` and `namespace` that were looked for beside the message."""
        super().__init__(message)
        self.name = name
        self.namespace = namespace


# ---------------------------------------------------------------------------------------- cluster


class ClusterError(ZrayError):
    """A process, a node or the cluster failed, or is out of some means.

    Who acts: who runs the cluster, or a retry. What to do: when `retryable` is true, the same
    operation may succeed if it is tried again unchanged; when false, it cannot.
    """

    retryable: ClassVar[bool] = False


class WorkerCrashedError(ClusterError):
    """The worker process that ran the task died, and max_retries is used up.

    Who acts: the author of the task if it killed its process (segfault, os._exit), else who runs
    the machine (out of memory, signals). What to do: read the exit reason in the message, then
    retry, or raise max_retries.
    """

    retryable: ClassVar[bool] = True

    def __init__(
        self, message: str = "", *, pid: int = 0, exit_code: int | None = None, attempts: int = 0
    ) -> None:
        """Describe the last death.

        Args:
            message: what died and how.
            pid: process id of the worker.
            exit_code: its exit status; negative is the number of the signal that killed it, None
                is unknown.
            attempts: how many times the task was started.
        """
        super().__init__(message)
        self.pid = pid
        self.exit_code = exit_code
        self.attempts = attempts


class ActorError(ClusterError):
    """An actor cannot answer a call.

    Who acts: see the subclass. What to do: catch this class to handle both a dead actor and one
    that is out of reach.
    """

    def __init__(self, message: str = "", *, actor_id: str = "", reason: str = "") -> None:
        """Describe the actor's trouble.

        Args:
            message: what happened and what to do.
            actor_id: hexadecimal id of the actor.
            reason: why it is dead or unreachable, in one line.
        """
        super().__init__(message)
        self.actor_id = actor_id
        self.reason = reason


class ActorDiedError(ActorError):
    """The actor is dead for good: killed, ended, failed in __init__, or out of restarts.

    Who acts: the author of the program. What to do: read `reason`, make a new actor, and give it
    max_restarts if it should come back by itself.
    """


class ActorPlacementGroupRemovedError(ActorDiedError):
    """The actor is dead because the placement group that it lived in was removed.

    Who acts: who removed it. What to do: make the actor in another group, or in none.
    """


class ActorUnavailableError(ActorError):
    """The actor is out of reach or restarting; the call may or may not have run.

    Who acts: the caller. What to do: call again if running twice does no harm, or set
    max_task_retries so that zray does so.
    """

    retryable: ClassVar[bool] = True


class TaskCancelledError(ClusterError):
    """The task was cancelled before it gave a result.

    Who acts: whoever called zray.cancel. What to do: nothing, or submit the task anew.
    """

    def __init__(self, message: str = "", *, task_id: str = "") -> None:
        """Name the hexadecimal `task_id` beside the message."""
        super().__init__(message)
        self.task_id = task_id


class TaskPlacementGroupRemovedError(ClusterError):
    """The task did not finish because the placement group that it is to run in was removed.

    Who acts: who removed it. What to do: get() its results before you remove the group.
    """


class GetTimeoutError(ClusterError, TimeoutError):
    """`get` gave up waiting; the task itself goes on.

    Who acts: the caller. What to do: get the same ref again, wait longer, or cancel it.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str = "", *, timeout_s: float = 0.0) -> None:
        """Name how long was waited, in seconds, beside the message."""
        super().__init__(message)
        self.timeout_s = timeout_s


class PendingCallsLimitError(ClusterError):
    """The actor has max_pending_calls calls of this caller waiting; this one was not sent.

    Who acts: the caller. What to do: get some of the earlier results first, then call again.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str = "", *, limit: int = 0) -> None:
        """Name the `limit`, in calls, beside the message."""
        super().__init__(message)
        self.limit = limit


class ObjectLostError(ClusterError):
    """Every copy of the object is gone and it cannot be computed again.

    Who acts: the caller. What to do: submit the task again, or put the value again, for a new ref.
    """

    def __init__(self, message: str = "", *, object_id: str = "") -> None:
        """Name the hexadecimal `object_id` beside the message."""
        super().__init__(message)
        self.object_id = object_id


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died before its value had another home.

    Who acts: the caller. What to do: make the object in a process that outlives its readers.
    """


class ObjectFreedError(ObjectLostError):
    """The object was freed by an explicit call while a ref to it remained.

    Who acts: the author of the program. What to do: free an object only after its last use.
    """


class ObjectStoreFullError(ClusterError):
    """The shared-memory store has no room: all of it is pinned by readers, or cannot be spilled.

    Who acts: the author of the program or who runs the node. What to do: drop the refs and arrays
    that the message lists, or start the node with a larger object_store_memory.
    """

    retryable: ClassVar[bool] = True

    def __init__(
        self, message: str = "", *, wanted_bytes: int = 0, capacity_bytes: int = 0
    ) -> None:
        """Describe the shortage.

        Args:
            message: what was wanted and who holds what.
            wanted_bytes: size of the object that found no room.
            capacity_bytes: size of the store.
        """
        super().__init__(message)
        self.wanted_bytes = wanted_bytes
        self.capacity_bytes = capacity_bytes


class OutOfDiskError(ObjectStoreFullError):
    """The store is full and the disk it spills to is full as well.

    Who acts: who runs the node. What to do: free disk space or name another spill directory.
    """


class OutOfMemoryError(ClusterError):
    """The task's worker was killed because the machine, or its cgroup, ran out of memory.

    Who acts: the author of the task. What to do: use less memory, run fewer at a time, or state
    memory= so that fewer are placed together.
    """

    retryable: ClassVar[bool] = True


class NodeDiedError(ClusterError):
    """The node process that this driver or worker belongs to is gone.

    Who acts: who runs the node. What to do: read the node's log, start it again, and call
    zray.shutdown then zray.init.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str = "", *, node_id: str = "") -> None:
        """Name the hexadecimal `node_id` beside the message."""
        super().__init__(message)
        self.node_id = node_id


class NodeStartError(ClusterError):
    """A node could not be started or joined; its own last words are in the message.

    Who acts: who runs the node. What to do: mend what the message names, then start it again.
    """


class SecurityError(ClusterError):
    """Keys are missing or unsafe, or a port would stand open to strangers.

    Who acts: who runs the cluster. What to do: what the message says; no retry helps before.
    """


class GcsError(ClusterError):
    """The control store refused or could not do what was asked.

    Who acts: see the subclass. What to do: catch this class to handle all of them.
    """


class GcsCompactedError(GcsError):
    """A watch asked for changes from a revision that is no longer kept.

    Who acts: the watcher. What to do: read the whole range, then watch from the revision read.
    """

    def __init__(self, message: str = "", *, oldest_revision: int = 0) -> None:
        """Name the oldest revision that is still kept beside the message."""
        super().__init__(message)
        self.oldest_revision = oldest_revision


class GcsUnavailableError(GcsError):
    """The control store does not answer.

    Who acts: who runs the cluster. What to do: retry; if it lasts, look at the store's processes.
    """

    retryable: ClassVar[bool] = True


class GcsFencedError(GcsError):
    """The GCS has declared this life of the node dead, and does nothing for it any more.

    Who acts: the node. What to do: end its actors, then join again as a new incarnation.
    """


class GcsSessionLostError(GcsError):
    """The GCS does not know this session (any more), so a command may or may not have happened.

    Who acts: the node. What to do: join again, read what the command was to change, and repeat
    it where that is needed.
    """


# --------------------------------------------------------------------------------------- protocol


class ProtocolError(ZrayError):
    """Bytes on a socket break zray's protocol.

    Who acts: see the subclass, which says whose bytes. What to do: catch this class for both.
    """


class LocalProtocolError(ProtocolError):
    """This process was about to send a message that the protocol forbids; it was not sent.

    Who acts: the author of the code that builds the message. What to do: keep to the limits that
    the message names.
    """


class RemoteProtocolError(ProtocolError):
    """A peer sent bytes that are no message; they were dropped.

    Who acts: who runs the peer. What to do: give every process the same release of zray, and let
    nothing else speak to its sockets.
    """

    def __init__(self, message: str = "", *, peer: str = "") -> None:
        """Name the `peer`, as an address or an id, beside the message."""
        super().__init__(message)
        self.peer = peer


# --------------------------------------------------------------------------------------- internal


class InternalError(ZrayError):
    """An invariant of zray does not hold: this is a bug in zray.

    Who acts: the authors of zray. What to do: report it together with the story below the message.
    """

    def __init__(self, message: str = "", *, story: tuple[str, ...] = ()) -> None:
        """Describe the broken invariant.

        Args:
            message: what was expected and what was found.
            story: the recent events of the thing concerned, one line each, oldest first.
        """
        super().__init__(message)
        self.story = tuple(story)

    def __str__(self) -> str:
        """The message, whose bug it is, and the story."""
        lines = [f"{super().__str__()} (this is a bug in zray: please report it with this text)"]
        return "\n  ".join([*lines, *self.story])
