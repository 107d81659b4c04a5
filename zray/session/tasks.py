"""Submitted tasks: batches, leases, and what to do when a worker dies.

What    Tasks of one class (function + options) gather in an open batch; a batch is one message
        and one queue entry at the node. A caller that works synchronously gets a lease and
        sends its batch of one straight to the worker. Outcomes come from workers directly, so
        when one dies the session asks the node which tasks it no longer has, and sends those again.
Caller  zray/session/session.py.
Never   reads a clock: the shell says when to flush and when to reconcile.
"""

from collections.abc import Callable, Iterator
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol import messages
from zray.protocol.ids import ObjectId, ProcessId, return_number
from zray.protocol.limits import BATCH_BYTES_MAX, BATCH_TASKS_MAX
from zray.protocol.packing import packb

from .outbox import Outbox
from .references import Key, References

MODE_CALLS = 0
MODE_MAP = 1
_SYNC_STREAK = 2


class TaskClass:
    """A function with its options: what batches name by a number."""

    __slots__ = (
        "keep",
        "max_retries",
        "number",
        "open_bytes",
        "open_calls",
        "open_first",
        "open_keep",
        "returns",
        "shape",
        "spec",
    )

    def __init__(
        self,
        number: int,
        spec: list[Any],
        *,
        shape: tuple[tuple[str, int | str], ...],
        returns: int,
        max_retries: int,
    ) -> None:
        self.number = number
        self.spec = spec
        self.shape = shape
        self.returns = returns
        self.max_retries = max_retries
        self.open_calls: list[bytes] = []
        self.open_first = 0
        self.open_bytes = 0
        self.open_keep: list[object] = []
        self.keep: object = None


class TaskBatch:
    """Submitted tasks with consecutive numbers."""

    __slots__ = (
        "abandoned",
        "count",
        "done",
        "first",
        "inputs",
        "keep",
        "mode",
        "payload",
        "resent",
        "target",
        "task_class",
        "values",
        "watched",
    )

    def __init__(
        self,
        task_class: TaskClass,
        first: int,
        count: int,
        mode: int,
        payload: bytes,
        keep: list[object],
    ) -> None:
        self.task_class = task_class
        self.first = first
        self.count = count
        self.mode = mode
        self.payload = payload
        self.keep = keep
        self.done = bytearray(count)
        self.target: ProcessId | None = None
        self.inputs: list[ObjectId] = []
        """Large arguments, where one of them at least is not in this node's memory."""
        self.resent: dict[int, int] = {}
        """How often an item was submitted again, where it was."""
        self.values: list[tuple[int, int, bytes]] | None = [] if mode == MODE_MAP else None
        """Map only: (low, count, pickled list) as they arrived."""
        self.watched: set[int] = set()
        """Map only: items that somebody looked at, so they are objects of their own."""
        self.abandoned = False

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges [low, high) that have no outcome yet."""
        done, low = self.done, 0
        while (low := done.find(0, low)) >= 0:
            high = done.find(1, low)
            if high < 0:
                high = self.count
            yield low, high
            low = high


class Lease:
    """An idle worker that this process may call directly."""

    __slots__ = ("batch", "expired", "recalled", "used", "worker")

    def __init__(self, worker: ProcessId) -> None:
        self.worker = worker
        self.batch: int | None = None
        self.recalled = False
        """Others wait for the worker: it is ours to the end of a turn."""
        self.expired = False
        """The turn is over: it goes back when its task has ended."""
        self.used = True


class Tasks:
    """The tasks that this process submitted. Methods need the session's lock."""

    def __init__(
        self, node: ProcessId, results: dict[Key, bytes], references: References, outbox: Outbox
    ) -> None:
        self.node = node
        self.results = results
        self.references = references
        self.outbox = outbox
        self.next_number = 1
        self.classes: list[TaskClass] = []
        self.open: dict[int, TaskClass] = {}
        self.batches: dict[int, TaskBatch] = {}
        self.leases: dict[tuple[tuple[str, int | str], ...], Lease | None] = {}
        self._streak = 0
        self._parked: dict[tuple[tuple[str, int | str], ...], TaskBatch] = {}
        """Batches of one that wait for the answer to a LEASE."""
        self._recalled_early: set[ProcessId] = set()
        """Workers of leases that were recalled before we heard that we have them."""
        self.turn_runs = False
        """A lease is recalled: end_turn() is wanted in LEASE_TURN_S."""
        self.split_values: Callable[[bytes, int], bytes] = lambda values, _item: values
        """Set by the shell: pick one item out of a pickled list, as an outcome."""

    # -- submitting --------------------------------------------------------------------------

    def declare(
        self,
        spec: list[Any],
        *,
        shape: tuple[tuple[str, int | str], ...],
        returns: int,
        max_retries: int,
    ) -> TaskClass:
        """Give a function with its options a number and tell the node."""
        task_class = TaskClass(
            len(self.classes), spec, shape=shape, returns=returns, max_retries=max_retries
        )
        self.classes.append(task_class)
        self.outbox.call(messages.DECLARE_CLASS, task_class.number, spec)
        return task_class

    def take_numbers(self, count: int = 1) -> int:
        """Return the first of ``count`` fresh numbers."""
        first = self.next_number
        self.next_number = first + count
        return first

    def submit(self, task_class: TaskClass, arguments: bytes, keep: object) -> int:
        """Add one task to its class's open batch; returns its number."""
        calls = task_class.open_calls
        if not calls:
            # The block is given back when the batch closes, unless somebody numbered on.
            task_class.open_first = self.next_number
            self.next_number += BATCH_TASKS_MAX
            self.open[task_class.number] = task_class
        number = task_class.open_first + len(calls)
        calls.append(arguments)
        task_class.open_bytes += len(arguments)
        if keep is not None:
            task_class.open_keep.append(keep)
        if len(calls) >= BATCH_TASKS_MAX or task_class.open_bytes >= BATCH_BYTES_MAX:
            self._close(task_class)
        return number

    def submit_numbered(
        self,
        task_class: TaskClass,
        number: int,
        arguments: bytes,
        keep: object,
        inputs: list[ObjectId],
    ) -> None:
        """Submit a task whose number was taken earlier, while it waited for its arguments."""
        batch = TaskBatch(task_class, number, 1, MODE_CALLS, packb([arguments]), [keep])
        batch.inputs = inputs
        self._send(batch)

    def map_batch(
        self, task_class: TaskClass, items: bytes, count: int, keep: list[object]
    ) -> TaskBatch:
        """Return a batch of ``count`` tasks whose arguments lie in one pickled list, unsent."""
        return TaskBatch(task_class, self.take_numbers(count), count, MODE_MAP, items, keep)

    def submit_batch(self, batch: TaskBatch) -> None:
        """Send a batch made by map_batch()."""
        self._send(batch)

    def watch_item(self, batch: TaskBatch, item: int) -> int:
        """Make one item of a map an object of its own, now or when it arrives."""
        number = batch.first + item
        if item not in batch.watched:
            batch.watched.add(item)
            for low, count, values in batch.values or ():
                if low <= item < low + count:
                    self.references.arrived(number, self.split_values(values, item - low))
        return number

    def abandon(self, batches: list[TaskBatch], made: frozenset[int], chunk: int) -> None:
        """A map's sequence is gone: outcomes that nobody else refers to go with it."""
        for position, batch in enumerate(batches):
            batch.abandoned = True
            batch.values = []
            for item in range(batch.count):
                number = batch.first + item
                if position * chunk + item not in made and number in self.results:
                    self.references.garbage.append(number)

    def close_open(self) -> None:
        """Turn every open batch into a message."""
        for task_class in list(self.open.values()):
            self._close(task_class)

    def _close(self, task_class: TaskClass) -> None:
        calls, first = task_class.open_calls, task_class.open_first
        del self.open[task_class.number]
        if self.next_number == first + BATCH_TASKS_MAX:
            self.next_number = first + len(calls)
        payload = packb(calls)
        batch = TaskBatch(task_class, first, len(calls), MODE_CALLS, payload, task_class.open_keep)
        task_class.open_calls, task_class.open_keep, task_class.open_bytes = [], [], 0
        self._send(batch)

    def _send(self, batch: TaskBatch) -> None:
        synchronous = batch.count == 1 and not self.batches
        self.batches[batch.first] = batch
        task_class = batch.task_class
        # A function with max_calls is counted by the node, so each of its calls goes there.
        # One whose inputs are elsewhere is better off there than with a worker that is lent to us.
        may_lease = batch.mode == MODE_CALLS and not task_class.spec[8] and not batch.inputs
        if synchronous and may_lease:
            lease = self.leases.get(task_class.shape)
            if lease is not None and lease.batch is None and not lease.expired:
                self._run_on(lease, batch)
                return
            self._streak += 1
            if self._streak > _SYNC_STREAK and task_class.shape not in self.leases:
                # LEASED fills or clears it. The batch waits for the answer: in the queue it would
                # want the very worker that is lent to it, and the lease would be recalled at once.
                self.leases[task_class.shape] = None
                self._parked[task_class.shape] = batch
                self.outbox.call(messages.LEASE, task_class.number)
                return
        elif batch.count > 1:
            self._streak = 0
        self._enqueue(batch, 0, batch.count)

    def _run_on(self, lease: Lease, batch: TaskBatch) -> None:
        lease.batch = batch.first
        lease.used = True
        batch.target = lease.worker
        task_class = batch.task_class
        held: list[list[bytes]] = []
        for kept in batch.keep:
            if isinstance(kept, list):
                held += self.references.transfer(lease.worker, kept)
        self.outbox.message(
            lease.worker,
            messages.RUN,
            self.references.process,
            task_class.number,
            task_class.spec,
            batch.first,
            batch.count,
            0,
            batch.count,
            batch.mode,
            [],
            held,
            payloads=(batch.payload,),
        )

    def _enqueue(self, batch: TaskBatch, low: int, high: int) -> None:
        retries = batch.task_class.max_retries
        left = retries if retries < 0 else max(0, retries - batch.resent.get(low, 0))
        row: list[Any] = [batch.task_class.number, batch.first, batch.count, low, high, batch.mode]
        row += [left, batch.inputs] if batch.inputs else [left]
        self.outbox.message(self.node, messages.SUBMIT, [row], payloads=(batch.payload,))

    # -- outcomes ----------------------------------------------------------------------------

    def results_arrived(
        self, first: int, low: int, count: int, outcomes: list[bytes], special: bool
    ) -> None:
        """RESULTS: outcomes of consecutive tasks of a batch, ``returns`` for each."""
        batch = self.batches.get(first)
        if batch is None:
            self._results_again(first + low, count, outcomes)
            return
        returns = max(1, batch.task_class.returns)
        if not 0 <= low < low + count <= batch.count or len(outcomes) != count * returns:
            raise RemoteProtocolError(
                f"{len(outcomes)} RESULTS of items {low} to {low + count} of {batch.count}"
            )
        if batch.done.find(1, low, low + count) >= 0:
            if count == 1:
                self._results_again(first + low, count, outcomes)
                return
            # After a crash the steps of two executions need not begin at the same items.
            for item in range(count):
                self.results_arrived(
                    first, low + item, 1, outcomes[item * returns : (item + 1) * returns], special
                )
            return
        number = first + low
        references = self.references
        if returns > 1:
            for position, found in enumerate(outcomes):
                index, task = position % returns, position // returns
                references.arrived(return_number(number + task, index), found)
        elif special or references.dropped or references.publish:
            for position, found in enumerate(outcomes):
                references.arrived(number + position, found)
        else:
            self.results.update(zip(range(number, number + count), outcomes, strict=True))
            references.heard(range(number, number + count))
        if batch.abandoned:
            self.references.garbage.extend(
                number + item for item in range(count) if low + item not in batch.watched
            )
        self._mark(batch, low, count)

    def _results_again(self, number: int, count: int, outcomes: list[bytes]) -> None:
        """A second execution after a crash: the first outcome stands."""
        returns = len(outcomes) // count if count > 0 else 1
        for position, found in enumerate(outcomes):
            index, task = position % returns, position // returns
            self.references.arrived_again(return_number(number + task, index), found)

    def map_arrived(self, first: int, low: int, count: int, values: bytes) -> None:
        """MAP_RESULTS: one pickled list with the values of consecutive items."""
        batch = self.batches.get(first)
        if batch is None:
            return  # A second execution after a crash: the first outcome stands.
        if not 0 <= low < low + count <= batch.count:
            raise RemoteProtocolError(
                f"MAP_RESULTS of items {low} to {low + count} of {batch.count}"
            )
        if batch.done.find(1, low, low + count) >= 0:
            for item in range(count):
                if not batch.done[low + item]:
                    if not batch.abandoned or low + item in batch.watched:
                        self.references.arrived(first + low + item, self.split_values(values, item))
                    self._mark(batch, low + item, 1)
            return
        if batch.values is not None and not batch.abandoned:
            batch.values.append((low, count, values))
        for item in batch.watched:
            if low <= item < low + count:
                self.references.arrived(batch.first + item, self.split_values(values, item - low))
        self._mark(batch, low, count)

    def _mark(self, batch: TaskBatch, low: int, count: int) -> None:
        batch.done[low : low + count] = b"\1" * count
        if batch.done.find(0) >= 0:
            return
        del self.batches[batch.first]
        batch.keep = []
        batch.payload = b""
        if batch.target is not None:
            self._lease_done(batch)

    def _lease_done(self, batch: TaskBatch) -> None:
        lease = self.leases.get(batch.task_class.shape)
        if lease is not None and lease.batch == batch.first:
            lease.batch = None
            if lease.expired:
                self._unlease(batch.task_class.shape, lease)

    def failed(self, batch: TaskBatch, item: int, outcome_bytes: bytes) -> None:
        """End one item with an error outcome."""
        if batch.done[item]:
            return
        number = batch.first + item
        for index in range(max(1, batch.task_class.returns)):
            self.references.arrived(return_number(number, index), outcome_bytes)
        if batch.abandoned and item not in batch.watched:
            self.references.garbage.append(number)
        self._mark(batch, item, 1)

    def batch_of(self, number: int) -> TaskBatch | None:
        """Return the outstanding batch that holds this task number."""
        batch = self.batches.get(number)
        if batch is not None:
            return batch
        for batch in self.batches.values():
            if batch.first <= number < batch.first + batch.count:
                return batch
        return None

    def is_queued(self, number: int) -> bool:
        """Return whether this batch is the node's and none of it has an outcome yet."""
        batch = self.batches.get(number)
        return batch is not None and batch.target is None and batch.done.find(1) < 0

    def is_outstanding(self, number: int) -> bool:
        """Return whether task ``number`` has been submitted and has no outcome yet."""
        batch = self.batch_of(number)
        return batch is not None and not batch.done[number - batch.first]

    # -- leases and deaths -------------------------------------------------------------------

    def leased(
        self, class_number: int, worker: ProcessId | None, *, recalled: bool = False
    ) -> None:
        """LEASED: the node's answer."""
        shape = self.classes[class_number].shape
        batch = self._parked.pop(shape, None)
        if batch is not None and batch.first not in self.batches:
            batch = None  # It was cancelled meanwhile.
        if worker is None:
            self.leases.pop(shape, None)
            self._streak = -16  # Refused: do not ask again with every call.
        else:
            lease = self.leases[shape] = Lease(worker)
            if recalled or worker in self._recalled_early:
                self._recalled_early.discard(worker)
                lease.recalled = self.turn_runs = True
            if batch is not None:
                self._run_on(lease, batch)
                return
            if lease.recalled:
                self._unlease(shape, lease)
        if batch is not None:
            self._enqueue(batch, 0, batch.count)

    def recalled(self, worker: ProcessId, *, busy: bool) -> None:
        """RECALL: give the lease back, at once or after a turn.

        Args:
            worker: whose lease others wait for.
            busy: whether the lease was used a moment ago, and will be again in a moment.
        """
        for shape, lease in list(self.leases.items()):
            if lease is not None and lease.worker == worker:
                # What else is under way here waits for that very worker, perhaps.
                if lease.batch is None and (self.batches or not busy):
                    self._unlease(shape, lease)
                else:
                    lease.recalled = self.turn_runs = True
                return
        # RECALL comes on the lifeline and may overtake LEASED; the node recalls a lease once, so
        # whoever waits for the worker would wait until we are idle. Where it has crossed our
        # UNLEASE instead, all that the mark costs is one lease of that worker, given back unused.
        self._recalled_early.add(worker)

    def end_turn(self) -> None:
        """Give back the leases that others wait for, those in use when their task has ended."""
        self.turn_runs = False
        for shape, lease in list(self.leases.items()):
            if lease is not None and lease.recalled:
                lease.expired = True
                if lease.batch is None:
                    self._unlease(shape, lease)

    def sweep_leases(self) -> bool:
        """Give back leases not used since the last sweep; returns whether any is left."""
        for shape, lease in list(self.leases.items()):
            if lease is None or lease.batch is not None:
                continue
            if lease.used:
                lease.used = False
            else:
                self._unlease(shape, lease)
        return any(self.leases.values())

    def _unlease(self, shape: tuple[tuple[str, int | str], ...], lease: Lease) -> None:
        del self.leases[shape]
        # After a turn the next task asks again at once: in the queue it would be in others' way.
        self._streak = _SYNC_STREAK if lease.expired else 0
        self.outbox.call(messages.UNLEASE, lease.worker)

    def worker_died(self, worker: ProcessId, reason: str) -> list[TaskBatch]:
        """A worker is gone: returns leased batches that may not run again (max_retries 0)."""
        lost = []
        for shape, lease in list(self.leases.items()):
            if lease is None or lease.worker != worker:
                continue
            del self.leases[shape]
            batch = self.batches.get(lease.batch) if lease.batch is not None else None
            if batch is not None and self.again(batch, 0, batch.count):
                lost.append(batch)
        return lost

    def again(self, batch: TaskBatch, low: int, high: int) -> list[tuple[int, int]]:
        """Submit items once more; returns the ranges whose retries are used up."""
        retries, resent = batch.task_class.max_retries, batch.resent
        batch.target = None
        spent = []
        while low < high:
            times, end = resent.get(low, 0), low + 1
            while end < high and resent.get(end, 0) == times:
                end += 1
            if 0 <= retries <= times:
                spent.append((low, end))
            else:
                resent.update(dict.fromkeys(range(low, end), times + 1))
                self._enqueue(batch, low, end)
            low = end
        return spent

    def unfinished(self) -> list[list[int]]:
        """Return [first, low, high] of everything the node should have: for RECONCILE."""
        return [
            [batch.first, low, high]
            for batch in self.batches.values()
            if batch.target is None and not self.is_parked(batch)
            for low, high in batch.missing()
        ]

    @property
    def awaits_lease(self) -> bool:
        """Whether a task waits for the node's answer: somebody must read it."""
        return bool(self._parked)

    def is_parked(self, batch: TaskBatch) -> bool:
        """Whether a batch waits for the answer to a LEASE."""
        return batch in self._parked.values()

    def cancel_parked(self, number: int, found: bytes) -> bool:
        """End a task that waits for the answer to a LEASE; False: none does."""
        for shape, batch in self._parked.items():
            if batch.first == number:
                del self._parked[shape]
                self.failed(batch, 0, found)
                return True
        return False

    # -- for people and tests ----------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counts for status and tests."""
        return {
            "outstanding_tasks": sum(batch.done.count(0) for batch in self.batches.values()),
            "open_tasks": sum(len(each.open_calls) for each in self.open.values()),
            "leases": sum(lease is not None for lease in self.leases.values()),
        }

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for first, batch in self.batches.items():
            assert batch.first == first
            assert batch.done.find(0) >= 0, f"batch {first:x} is over and not forgotten"
            assert first + batch.count <= self.next_number, "a number given out twice"
        for number, task_class in self.open.items():
            assert task_class.number == number
            assert 0 < len(task_class.open_calls) < BATCH_TASKS_MAX, "an open batch, empty or full"
            assert task_class.open_first + len(task_class.open_calls) <= self.next_number
        for task_class in self.classes:
            assert bool(task_class.open_calls) == (task_class.number in self.open)
        workers = [lease.worker for lease in self.leases.values() if lease is not None]
        assert len(workers) == len(set(workers)), "a worker is leased twice"
        for lease in self.leases.values():
            if lease is None or lease.batch is None:
                assert lease is None or not lease.expired, "a lease whose turn is over lies idle"
                continue
            batch = self.batches[lease.batch]
            assert batch.target == lease.worker, "a leased worker runs somebody else's batch"
