"""zray's exceptions under the names that Ray gives them, beside our own.

What    Each class of zray.errors, and for every exception name of Ray that has a counterpart here
        an alias of that same class, so that `except ray.exceptions.X` catches what it should.
Caller  users, mostly programs written for Ray that say `import zray as ray`.
Never   defines a class; gives a name without a counterpart any meaning: asking for one raises
        AttributeError with the reason.
"""

from __future__ import annotations

from typing import NoReturn

from zray.errors import (
    ActorDiedError,
    ActorError,
    ActorNotFoundError,
    ActorPlacementGroupRemovedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ClusterError,
    ForkedProcessError,
    GcsCompactedError,
    GcsError,
    GcsFencedError,
    GcsSessionLostError,
    GcsUnavailableError,
    GetTimeoutError,
    InternalError,
    LocalProtocolError,
    NameTakenError,
    NodeDiedError,
    NodeStartError,
    NotInitializedError,
    ObjectFreedError,
    ObjectLostError,
    ObjectStoreFullError,
    OptionError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitError,
    ProtocolError,
    RemoteProtocolError,
    SecurityError,
    SerializationError,
    TaskCancelledError,
    TaskError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
    UnknownResourceError,
    UnschedulableError,
    UserError,
    WorkerCrashedError,
    ZrayError,
)

RayError = ZrayError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = InternalError
ActorAlreadyExistsError = NameTakenError
ActorHandleNotFoundError = ActorNotFoundError
ActorPlacementGroupRemoved = ActorPlacementGroupRemovedError
LocalRayletDiedError = NodeDiedError
TaskPlacementGroupRemoved = TaskPlacementGroupRemovedError
PendingCallsLimitExceeded = PendingCallsLimitError
UnserializableException = SerializationError
# A runtime_env that cannot be set up is refused when it is written down, by its option.
RuntimeEnvSetupError = OptionError
# One reason fewer to tell apart: the value is gone, and the message says how it went.
ObjectFetchTimedOutError = ObjectLostError
ObjectReconstructionFailedError = ObjectLostError
ObjectReconstructionFailedMaxAttemptsExceededError = ObjectLostError
ObjectReconstructionFailedLineageEvictedError = ObjectLostError
# Who shows no key that a node knows is not let in; there is no other kind of login.
AuthenticationError = SecurityError
# An object freed while a ref to it lives is a bug of the runtime, whoever meets it.
ReferenceCountingAssertionError = InternalError

_NOT_HERE = {
    "CrossLanguageError": "zray runs Python only",
    "AsyncioActorExit": "an actor ends itself with zray.actor.exit_actor()",
    "ObjectRefStreamEndOfStreamError": "a generator of refs ends with StopIteration",
    "PlasmaObjectNotAvailable": "a lost object raises ObjectLostError",
    "StreamingGeneratorReplayInconsistentError": "a retried generator is not compared",
    "RayChannelError": "zray has no compiled graphs",
    "RayChannelTimeoutError": "zray has no compiled graphs",
    "RayCgraphCapacityExceeded": "zray has no compiled graphs",
    "RayDirectTransportError": "zray has no device-to-device transport",
}

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorHandleNotFoundError",
    "ActorNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorPlacementGroupRemovedError",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AuthenticationError",
    "ClusterError",
    "ForkedProcessError",
    "GcsCompactedError",
    "GcsError",
    "GcsFencedError",
    "GcsSessionLostError",
    "GcsUnavailableError",
    "GetTimeoutError",
    "InternalError",
    "LocalProtocolError",
    "LocalRayletDiedError",
    "NameTakenError",
    "NodeDiedError",
    "NodeStartError",
    "NotInitializedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedLineageEvictedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "ObjectStoreFullError",
    "OptionError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitError",
    "PendingCallsLimitExceeded",
    "ProtocolError",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RemoteProtocolError",
    "RuntimeEnvSetupError",
    "SecurityError",
    "SerializationError",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemoved",
    "TaskPlacementGroupRemovedError",
    "TaskUnschedulableError",
    "UnknownResourceError",
    "UnschedulableError",
    "UnserializableException",
    "UserError",
    "WorkerCrashedError",
    "ZrayError",
]


def __getattr__(name: str) -> NoReturn:
    """Say why a name that Ray has is missing here."""
    if name in _NOT_HERE:
        raise AttributeError(f"zray.exceptions has no {name}: {_NOT_HERE[name]}", name=name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
