"""The nouns of scheduling: shapes, ranges, workers, claims, and the scheduler's commands.

What    Data only. A Range is a part of a submitted batch: splitting it copies nothing, because
        the payload stays whole and the bounds move.
Caller  brokers/scheduler.py, brokers/node.py, brokers/dispatcher.py.
Never   decides anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from zray.protocol.limits import TASK_ESTIMATE_US

from .placement import ANYWHERE, Where, read_where
from .resources import Grant, read_request

STARTING, IDLE, RUNNING, LEASED = "STARTING", "IDLE", "RUNNING", "LEASED"
Environment = tuple[tuple[str, str], ...]
JOB_VARIABLE = "ZRAY_JOB_ID"
"""The job is part of a worker's environment: modules of two drivers never meet in one process."""


def job_of(env: Environment) -> str:
    """Return the job of an environment in hex, "" for a worker that serves whoever comes first."""
    return next((value for name, value in env if name == JOB_VARIABLE), "")


def is_plain(env: Environment) -> bool:
    """Whether any fresh worker can take this environment on."""
    return not env or (len(env) == 1 and env[0][0] == JOB_VARIABLE)


class Shape:
    """What a task needs of a worker: resources held while it runs, its environment, and where."""

    __slots__ = ("_key", "amounts", "env", "where")

    def __init__(self, amounts: dict[str, int], env: Environment, where: Where = ANYWHERE) -> None:
        self.amounts = amounts
        self.env = env
        self.where = where
        self._key = (tuple(sorted(amounts.items())), env, where)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and other._key == self._key

    def __repr__(self) -> str:
        return f"Shape({self.amounts}, {dict(self.env)})"


class TaskClass:
    """A client's function with its options."""

    __slots__ = ("client", "estimate_us", "has_run", "key", "max_calls", "name", "shape", "spec")

    def __init__(self, client: bytes, number: int, spec: list[Any]) -> None:
        self.client = client
        self.key = (client, number)
        self.spec = spec
        self.name: str = spec[1]
        self.max_calls: int = spec[8]
        where = read_where(spec[9]) if len(spec) > 9 else ANYWHERE
        amounts = where.amounts(read_request(spec[2]))
        self.shape = Shape(amounts, tuple(sorted(spec[7].items())), where)
        self.estimate_us = float(TASK_ESTIMATE_US)
        self.has_run = False
        """The estimate is more than a guess."""

    def observe(self, mean_us: float, count: int) -> None:
        """Move the estimate towards a measured mean: fast down, fast up, by the sample's size."""
        self.has_run = True
        weight = min(0.5, 0.1 * count)
        self.estimate_us = max(0.2, self.estimate_us + weight * (mean_us - self.estimate_us))


class Range:
    """Items [low, high) of a submitted batch."""

    __slots__ = (
        "alone",
        "count",
        "first",
        "high",
        "low",
        "mode",
        "payload",
        "retries",
        "shape",
        "task_class",
    )

    def __init__(
        self,
        task_class: TaskClass,
        first: int,
        count: int,
        low: int,
        high: int,
        mode: int,
        payload: bytes,
        retries: int,
    ) -> None:
        self.task_class = task_class
        self.shape = task_class.shape
        """Of its class, or that with the node it was dealt to."""
        self.first = first
        self.count = count
        self.low = low
        self.high = high
        self.mode = mode
        self.payload = payload
        self.retries = retries
        self.alone = False
        """Handed out one at a time: its worker's death must be its own doing."""

    def head(self, high: int) -> Range:
        """Return [low, high) as a range of its own."""
        return self._part(self.low, high)

    def tail(self, low: int) -> Range:
        """Return [low, self.high) as a range of its own."""
        return self._part(low, self.high)

    def _part(self, low: int, high: int) -> Range:
        part = Range(
            self.task_class,
            self.first,
            self.count,
            low,
            high,
            self.mode,
            self.payload,
            self.retries,
        )
        part.alone = self.alone
        part.shape = self.shape
        return part

    def holds(self, client: bytes, first: int, item: int) -> bool:
        """Return whether this task is in the range."""
        return (
            self.task_class.client == client
            and self.first == first
            and self.low <= item < self.high
        )

    def without(self, items: list[int]) -> list[Range]:
        """Return the parts between these items, which are sorted and of this range."""
        bounds = [self.low - 1, *items, self.high]
        return [self._part(low + 1, high) for low, high in pairwise(bounds) if low + 1 < high]

    def __repr__(self) -> str:
        return f"Range({self.task_class.name} {self.first}[{self.low}:{self.high}])"


class WorkerState:
    """One worker process as the scheduler sees it."""

    __slots__ = (
        "backlog_us",
        "blameless",
        "blocked",
        "calls",
        "env",
        "gpu_ids",
        "grant",
        "idle_since",
        "known",
        "lease",
        "lender",
        "lessee",
        "outstanding",
        "patience_s",
        "pooled",
        "process",
        "recalled",
        "reclaim_at",
        "reclaiming",
        "reclaiming_since",
        "reported",
        "retiring",
        "shape",
        "state",
    )

    def __init__(self, process: bytes, env: Environment) -> None:
        self.process = process
        self.env = env
        self.state = STARTING
        self.pooled = True
        """False once it hosts an actor: it never runs tasks again."""
        self.shape: Shape | None = None
        self.grant: Grant | None = None
        self.outstanding: deque[Range] = deque()
        self.backlog_us = 0.0
        self.known: set[tuple[bytes, int]] = set()
        self.calls: dict[tuple[bytes, int], int] = {}
        """How often it was given each function that has max_calls."""
        self.retiring = False
        """It has had its max_calls of one: it ends when it has run them."""
        self.blocked = False
        self.reclaiming = False
        self.reclaiming_since = 0.0
        self.reclaim_at = 0.0
        self.patience_s = 0.0
        """While it is blocked: when to ask again for what it has not begun, and then again."""
        self.blameless = False
        """It is being ended on purpose: none of its tasks crashed it."""
        self.lessee: bytes | None = None
        self.recalled = False
        self.gpu_ids: tuple[str, ...] = ()
        """Of a borrowed worker: what its node gave it."""
        self.lender: bytes | None = None
        """The node it belongs to, where that is another one: its resources are counted there."""
        self.lease = 0
        """Of the leases given so far, which one this is."""
        self.reported = 0.0
        self.idle_since = 0.0


@dataclass(slots=True)
class Claim:
    """An actor's need for a worker (or for room in a shared one) and resources."""

    actor: bytes
    placement: dict[str, int]
    resources: dict[str, int]
    env: Environment
    shared_host: bytes | None = None
    where: Where = ANYWHERE
    is_loan: bool = False
    """Another node's need: `actor` is the loan's name."""


@dataclass(slots=True)
class Run:
    """Send this part of a batch to a worker; ``introduce`` the class it does not know yet."""

    worker: bytes
    work: Range
    low: int
    high: int
    introduce: bool
    gpu_ids: tuple[str, ...]


@dataclass(slots=True)
class Reclaim:
    """Ask a worker for tasks it has not begun; None: all."""

    worker: bytes
    count: int | None


@dataclass(slots=True)
class Suspect:
    """A worker does not answer: seize() what it has not begun if it has been stopped."""

    worker: bytes


@dataclass(slots=True)
class Recall:
    """Ask a client for its lease."""

    client: bytes
    worker: bytes


@dataclass(slots=True)
class Granted:
    """Answer a LEASE."""

    client: bytes
    class_number: int
    worker: bytes | None
    recalled: bool
    """Others wait for it: the lease is for a turn."""


@dataclass(slots=True)
class Fork:
    """Start workers with this environment."""

    env: Environment
    count: int


@dataclass(slots=True)
class Kill:
    """End a worker."""

    worker: bytes
    reason: str
    graceful: bool = False


@dataclass(slots=True)
class Fail:
    """End items of a batch: their retries are used up."""

    client: bytes
    first: int
    items: list[int]
    name: str
    reason: str


@dataclass(slots=True)
class Claimed:
    """A claim is served: the worker is the actor's, or in_host: its share of one is."""

    actor: bytes
    worker: bytes
    grant: Grant | None
    """None: the worker is another node's, which counts what it holds."""
    in_host: bool = False


@dataclass(slots=True)
class Cancelled:
    """These items were cancelled before they ran: tell their submitter."""

    client: bytes
    first: int
    items: list[int]


@dataclass(slots=True)
class Borrow:
    """Ask another node for a worker."""

    node: bytes
    request: int
    placement: dict[str, int]
    """What must be free there."""
    resources: dict[str, int]
    """What the worker holds while it is ours."""
    env: Environment
    for_actor: bool
    patient: bool
    """We can't do it here, nor can others: it may wait there for its turn."""


@dataclass(slots=True)
class GiveBack:
    """A borrowed worker is not needed any more; spent: nor is it good for anything else."""

    worker: bytes
    lender: bytes
    spent: bool = False


@dataclass(slots=True)
class Lend:
    """Answer a BORROW; worker None: there is none to spare."""

    node: bytes
    request: int
    worker: bytes | None
    gpu_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class MoveActors:
    """The node of a borrowed worker is leaving: what lives there may live elsewhere."""

    worker: bytes


@dataclass(slots=True)
class WantBack:
    """Ask the borrower for a worker of ours; if_idle: only where it has nothing to do just now."""

    node: bytes
    worker: bytes
    if_idle: bool = False


@dataclass(slots=True)
class LoanLost:
    """Tell the borrower that a worker of ours has died."""

    node: bytes
    worker: bytes
    reason: str


@dataclass(slots=True)
class Offer:
    """Tell a node that waits that workers are free here."""

    node: bytes


@dataclass(slots=True)
class Unschedulable:
    """End items of a batch: they ask for a node or a placement group that is not there."""

    client: bytes
    first: int
    items: list[int]
    name: str
    reason: str
    group: bytes = b""
    """Of the placement group that is gone, where that is the reason."""


@dataclass(slots=True)
class ClaimRefused:
    """End an actor: it asks for a node or a placement group that is not there."""

    actor: bytes
    reason: str
    group: bytes = b""
    """Of the placement group that is gone, where that is the reason."""


Command = (
    Cancelled
    | Run
    | Reclaim
    | Recall
    | Granted
    | Fork
    | Kill
    | Fail
    | Claimed
    | Suspect
    | Borrow
    | GiveBack
    | Lend
    | MoveActors
    | WantBack
    | LoanLost
    | Offer
    | Unschedulable
    | ClaimRefused
)
