"""Who in this process refers to what, and what the node must know of it.

What    A key is an int for an object of this process, the 16-byte id for one of another. An
        object is private until its reference escapes (is pickled); then the node's directory
        is its home and counts this process's units. Refs and arrays that view the segment
        count alike: the last one to go gives all units back in one RELEASE.
Caller  zray/session/*, zray/client.py, ObjectRef.__del__ (only appends to ``garbage``).
Never   takes a lock in drop(): the collector calls it in the middle of anything.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sized

from zray.protocol import messages, outcome
from zray.protocol.ids import ObjectId, ProcessId, number_of, object_id, owner_of
from zray.protocol.purposes import Purpose

from .outbox import Outbox

Key = int | bytes


_REGISTERED = (outcome.STORED, outcome.HOLDING, outcome.ELSEWHERE)
"""Outcomes of what the node keeps for its owner."""


class References:
    """References of one process. All methods but drop() need the session's lock."""

    def __init__(
        self, process: ProcessId, node: ProcessId, results: dict[Key, bytes], outbox: Outbox
    ) -> None:
        self.process = process
        self.node = node
        self.results = results
        self.outbox = outbox
        self.garbage: deque[Key] = deque()
        self.extra: dict[Key, int] = {}
        """Local references beyond the first."""
        self.units: dict[Key, int] = {}
        """Units that the node counts for this process; absent: private."""
        self.registered: set[Key] = set()
        """Results that the node holds for this process, as objects or for what they contain."""
        self.voided: list[ObjectId] = []
        """Results to be given up that are not kept here: of failed tasks, of second executions."""
        self.contained: dict[Key, list[object]] = {}
        """References that a value put by this process holds."""
        self.views: dict[Key, int] = {}
        self.dropped: set[Key] = set()
        self.publish: set[int] = set()
        """Shared while pending: their outcome goes to the directory when it arrives."""
        self.located: dict[Key, int] = {}
        """What the node was asked for and has not answered, with the most urgent purpose."""
        self.adopted: set[Key] = set()
        """Own numbers that came home from elsewhere: only the node knows their value."""
        self.news: list[Key] = []
        """Whose outcome has come since the session last served those who wait for one."""
        self.waiting: tuple[Sized, ...] = ()
        """Set by the session: those who wait. Where nobody does, no news are kept."""
        self.free_private: Callable[[int], None] = lambda _number: None
        """Set by the store client: give the extent of a private object back."""
        self.register_private: Callable[[int, list[ObjectId]], None] = lambda _number, _held: None
        """Set by the store client: hand the extent of a private object to the node."""

    def id_of(self, key: Key) -> ObjectId:
        """Return the 16-byte id of a key."""
        return object_id(self.process, key) if isinstance(key, int) else key

    def key_of(self, identity: ObjectId) -> Key:
        """Return the key of a 16-byte id."""
        return number_of(identity) if owner_of(identity) == self.process else identity

    # -- local counting ------------------------------------------------------------------

    def add(self, key: Key) -> None:
        """Count one more local reference to an object that has one already."""
        self.extra[key] = self.extra.get(key, 0) + 1

    @property
    def holds_at_node(self) -> bool:
        """Whether the node keeps something for this process."""
        return bool(self.units or self.registered)

    def is_shared(self, key: Key) -> bool:
        """Return whether the node counts this process among the holders."""
        return key in self.units or key in self.registered

    def fetched(self, key: Key, place: bytes) -> bytes:
        """A HOLD was granted, for one more local reference; returns where the value lies."""
        if self.is_shared(key):
            self.add(key)
        self.units[key] = self.units.get(key, 0) + 1
        known = self.results.get(key)
        if known is None or known[0] == outcome.ELSEWHERE:
            self.results[key] = known = place
            self.heard((key,))
        return known

    def created(self, number: int) -> None:
        """CREATE_ACTOR counts as our first hold; no outcome of this number will come."""
        self.units[number] = 1
        self.adopted.add(number)

    def restore(self, key: Key) -> None:
        """Count a reference that arrived pickled; the first one takes a hold at the node."""
        if self.is_shared(key):
            self.add(key)
            return
        self.units[key] = 1
        if key in self.dropped:
            self.dropped.discard(key)  # It came home before its outcome, which comes by itself.
        elif isinstance(key, int):
            self.adopted.add(key)
        self.outbox.call(messages.HOLD, [self.id_of(key)], False)

    def collect(self) -> None:
        """Settle what was dropped since the last call."""
        garbage, releases = self.garbage, []
        voided, self.voided = self.voided, []
        while garbage:
            key = garbage.popleft()
            count = self.extra.get(key)
            if count is not None:
                if count == 1:
                    del self.extra[key]
                else:
                    self.extra[key] = count - 1
                continue
            found = self.results.pop(key, None)
            units = self.units.pop(key, 0)
            if isinstance(key, int):
                if found is None and key not in self.adopted:
                    self.dropped.add(key)
                elif key in self.registered:
                    self.registered.discard(key)
                    voided.append(self.id_of(key))
                elif found is not None and found[0] == outcome.STORED and not units:
                    self.free_private(key)
            if units:
                releases.append((self.id_of(key), units))
                self.located.pop(key, None)
                self.adopted.discard(key)
            if self.contained:
                self.contained.pop(key, None)
        if releases or voided:
            self.outbox.call(messages.RELEASE, releases, voided)

    def transfer(self, process: ProcessId, keep: Iterable[object]) -> list[list[bytes]]:
        """Take holds for a process that is about to be sent these references' values.

        Returns [object id, outcome] of each that lies in shared memory: it need not ask for those.
        """
        held: dict[bytes, bytes] = {}
        for ref in keep:
            key: Key | None = getattr(ref, "key", None)
            found = None if key is None else self.results.get(key)
            if key is not None and found is not None and found[0] == outcome.STORED:
                self.share(key)
                held[self.id_of(key)] = found
        if held:
            self.outbox.call(messages.TRANSFER, process, list(held))
        return [list(pair) for pair in held.items()]

    def accept(self, held: list[list[bytes]]) -> list[Key]:
        """Take over what transfer() says; each key returned is one local reference to drop."""
        keys = [self.key_of(identity) for identity, _found in held]
        for key, (_identity, found) in zip(keys, held, strict=True):
            self.fetched(key, found)
        return keys

    # -- views ----------------------------------------------------------------------------

    def view_opened(self, key: Key) -> Callable[[], None]:
        """Count an array over the segment; returns what to call when it is gone."""
        self.add(key)
        self.views[key] = self.views.get(key, 0) + 1

        def gone() -> None:
            count = self.views.get(key, 1)
            if count <= 1:
                self.views.pop(key, None)
            else:
                self.views[key] = count - 1
            self.garbage.append(key)

        return gone

    def unpin(self, identities: list[ObjectId]) -> list[ObjectId]:
        """Forget where these lie unless an array views them; returns the forgotten."""
        forgotten = []
        for identity in identities:
            key = self.key_of(identity)
            found = self.results.get(key)
            if found is None or key in self.located or self.views.get(key):
                continue  # In use, or news of its place are on their way and must stay true.
            if found[0] == outcome.STORED:
                self.results[key] = outcome.ELSEWHERE_OUTCOME
            forgotten.append(identity)
        return forgotten

    # -- what the node must know -----------------------------------------------------------

    def share(self, key: Key) -> None:
        """The reference escapes: make the directory the object's home (once)."""
        if key in self.units or not isinstance(key, int):
            return
        found = self.results.get(key)
        if found is not None and found[0] in (outcome.STORED, outcome.ELSEWHERE):
            if key not in self.registered:
                self.registered.add(key)
                self.register_private(key, self._ids_in(key))
            return
        self.units[key] = 1
        if found is None:
            self.publish.add(key)
            self.outbox.call(messages.SHARE, self.id_of(key), None, [], True)
            return
        self._publish(key, found, first=True)

    def arrived(self, number: int, found: bytes) -> None:
        """An outcome for one of this process's numbers is here: keep it, or let it go."""
        tag = found[0]
        if tag == outcome.STORED or tag == outcome.ELSEWHERE:
            self.registered.add(number)
        elif tag == outcome.HOLDING:
            self.registered.add(number)
            _contained, found = outcome.held(found)
        elif tag == outcome.ERROR:
            # An execution before this one may have died between making a result and saying so.
            self.voided.append(self.id_of(number))
        self.results[number] = found
        self.heard((number,))
        if number in self.publish:
            self.publish.discard(number)
            if tag != outcome.STORED and tag != outcome.ELSEWHERE:
                self._publish(number, found, first=False)
        if number in self.dropped:
            self.dropped.discard(number)
            self.garbage.append(number)

    def heard(self, keys: Iterable[Key]) -> None:
        """Outcomes of these are here: whoever waits looks at them alone, not at all it awaits."""
        if any(self.waiting):
            self.news.extend(keys)

    def arrived_again(self, number: int, found: bytes) -> None:
        """An outcome of a second execution: give it up unless the first is still here."""
        if found[0] in _REGISTERED and number not in self.registered:
            self.voided.append(self.id_of(number))

    def void(self, number: int) -> None:
        """A task or call has failed: it may have died between making its result and saying so."""
        self.voided.append(self.id_of(number))

    def _ids_in(self, key: int) -> list[ObjectId]:
        return [getattr(ref, "id", b"") for ref in self.contained.get(key, ())]

    def _publish(self, key: int, found: bytes, *, first: bool) -> None:
        self.outbox.call(messages.SHARE, self.id_of(key), found, self._ids_in(key), first)

    def locate(self, key: Key, purpose: int = Purpose.GET) -> bool:
        """Ask the node for a value only it knows; False where the value will come by itself."""
        if isinstance(key, int) and key not in self.adopted:
            found = self.results.get(key)
            if found is None or found[0] != outcome.ELSEWHERE:
                return False
        asked = self.located.get(key)
        if asked is None or purpose < asked:
            self.located[key] = purpose
            self.outbox.call(messages.LOCATE, [self.id_of(key)], int(purpose))
        return True

    def found(self, identity: ObjectId, outcome_bytes: bytes) -> None:
        """LOCATED: the node's answer."""
        key = self.key_of(identity)
        if outcome_bytes[0] != outcome.ELSEWHERE or self.located.get(key) == Purpose.PLACE:
            self.located.pop(key, None)  # Else it answers an earlier question: the value will come.
        if self.is_shared(key):
            self.results[key] = outcome_bytes
            self.heard((key,))

    # -- for people and tests --------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counts for status and tests."""
        return {
            "results": len(self.results),
            "shared": len(self.units),
            "views": sum(self.views.values()),
            "awaited": len(self.located),
            "dropped_early": len(self.dropped),
        }

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert all(count > 0 for count in self.extra.values()), "a count of no references"
        assert all(units > 0 for units in self.units.values()), "a count of no units"
        assert all(count > 0 for count in self.views.values()), "a count of no views"
        for number in self.publish:
            assert number not in self.results, f"{number:x} is here and not published"
        for key in self.dropped:
            assert key not in self.results, f"{key!r} is kept for nobody"
            assert not self.is_shared(key), f"{key!r} is dropped and held"
        assert self.adopted <= self.units.keys(), "adopted without a hold"
        assert self.registered <= self.results.keys(), "a result is registered and not here"
        for key, found in self.results.items():
            assert found[0] != outcome.HOLDING, f"the holds of {key!r} were not taken over"
            if isinstance(key, bytes) or found[0] == outcome.ELSEWHERE:
                assert self.is_shared(key), f"the place of {key!r} is known and not held"
