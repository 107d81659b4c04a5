"""Arguments in, outcomes out: where a worker's values become bytes and back.

What    load_arguments() decodes what a caller sent, fetching what lies in shared memory, here or
        on another node: all at once, and after it what the next tasks will need;
        make_outcome() encodes what user code returned, with the references inside it held
        for the caller before the result leaves.
Caller  actors/task_runner.py, actors/actor_runner.py.
Never   runs a task.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

from zray import errors
from zray.protocol import messages, outcome
from zray.protocol.ids import object_id
from zray.protocol.limits import INLINE_BYTES_MAX
from zray.protocol.purposes import Purpose
from zray.runtime import Runtime
from zray.serialization import blob
from zray.serialization.exceptions import encode_exception
from zray.session.references import Key

_loads = pickle.loads
_PLAIN_RESULTS = frozenset((int, float, bool, str, bytes, type(None)))
_dumps = pickle.dumps
_PICKLE = outcome.PICKLE


def remote_ids(filled: dict[Any, Any]) -> list[bytes]:
    """Return the objects among filled-in arguments that lie in a node's memory, each once."""
    kinds = (outcome.STORED, outcome.ELSEWHERE)
    return list(dict.fromkeys(each for each, found in filled.values() if found[0] in kinds))


class FailingItems(list[Any]):
    """Items of a map some of which are errors: a slice raises them when it comes to them."""

    def __init__(self, items: list[Any], failed: dict[int, BaseException]) -> None:
        super().__init__(items)
        self.failed = failed

    def __getitem__(self, index: Any) -> Any:
        """Return one item, or iterate over a slice."""
        return self._each(index) if isinstance(index, slice) else super().__getitem__(index)

    def _each(self, which: slice) -> Iterator[Any]:
        for position in range(*which.indices(len(self))):
            if position in self.failed:
                raise self.failed[position]
            yield super().__getitem__(position)


class Values:
    """The values of one worker."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.before_fetch: Callable[[], None] = lambda: None
        """Called where arguments are waited for that are on another node."""
        self.waited_s = 0.0
        """For arguments from other nodes, since somebody set it to zero."""

    def load_arguments(self, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs). Raises the error of an argument that could not be had."""
        value = self._load(data)
        if type(value) is tuple:
            return value, {}
        return tuple(value[0]), value[1]

    def _load(self, data: bytes) -> Any:
        if data[0] == _PICKLE:
            return _loads(data)
        if data[0] != outcome.ARGUMENTS:
            return blob.decode(data)
        inner, filled = outcome.arguments_parts(data)
        if not inner:
            ((identity, found),) = filled.values()
            return self.fetch(identity, found)
        value = self._load(inner)
        args, kwargs = (list(value), {}) if type(value) is tuple else (list(value[0]), value[1])
        brought = self._bring(filled) if len(filled) > 1 else ()
        try:
            for position, (identity, found) in filled.items():
                if isinstance(position, str):
                    kwargs[position] = self.fetch(identity, found)
                else:
                    args[position] = self.fetch(identity, found)
        finally:
            self.runtime.garbage.extend(brought)
        return [args, kwargs] if kwargs else tuple(args)

    def load_items(self, data: bytes) -> list[Any]:
        """Return the items of a map batch."""
        if data[0] != outcome.ARGUMENTS:
            value: list[Any] = blob.decode(data)
            return value
        inner, filled = outcome.arguments_parts(data)
        if not inner:
            ((identity, found),) = filled.values()
            items: list[Any] = self.fetch(identity, found)
            return items
        items = self.load_items(inner)
        failed: dict[int, BaseException] = {}
        brought = self._bring(filled) if len(filled) > 1 else ()
        for position, (identity, found) in filled.items():
            try:
                items[position] = self.fetch(identity, found)
            except Exception as error:  # That of the item's own task: raised at its turn.
                failed[position] = error
        self.runtime.garbage.extend(brought)
        return FailingItems(items, failed) if failed else items

    def fetch(self, identity: bytes, found: bytes) -> Any:
        """Return the value of an argument that is another object."""
        runtime = self.runtime
        if found[0] != outcome.STORED and found[0] != outcome.ELSEWHERE:
            return runtime.objects.value(identity, found)
        references = runtime.session.references
        key = references.key_of(identity)
        with runtime.lock:
            known = runtime.results.get(key) if references.is_shared(key) else None
            if known is not None:
                references.add(key)
        if known is None:
            known = self._hold(key, identity)
        try:
            if known[0] == outcome.ELSEWHERE:
                started = time.monotonic()
                runtime.locate([key], Purpose.ARGUMENT)
                self.before_fetch()
                runtime.await_keys([key], None, Purpose.ARGUMENT)
                known = runtime.results[key]
                self.waited_s += time.monotonic() - started
            return runtime.objects.value(key, known)
        finally:
            runtime.garbage.append(key)

    def _hold(self, key: Any, identity: bytes) -> bytes:
        """Take a hold of another process's object; returns its outcome, ELSEWHERE perhaps."""
        runtime = self.runtime
        references = runtime.session.references
        ((_identity, place),) = runtime.request(messages.HOLD, [identity], True)
        if place is None:
            raise errors.ObjectLostError(
                f"object {identity.hex()} is gone: its owner ended while the call was under way"
            )
        with runtime.lock:
            return references.fetched(key, place)

    def _bring(self, filled: dict[Any, Any]) -> list[Key]:
        """Take holds of all in one request, and have those that are elsewhere brought at a time.

        Returns keys, each one local reference to drop. Of what is gone fetch() will say so.
        """
        runtime = self.runtime
        references = runtime.session.references
        keys: list[Key] = []
        unknown: list[bytes] = []
        with runtime.lock:
            for identity in remote_ids(filled):
                key = references.key_of(identity)
                if references.is_shared(key) and key in runtime.results:
                    references.add(key)
                    keys.append(key)
                else:
                    unknown.append(identity)
        if unknown:
            answers = runtime.request(messages.HOLD, unknown, True)
            with runtime.lock:
                for identity, place in answers:
                    if place is not None:
                        key = references.key_of(identity)
                        references.fetched(key, place)
                        keys.append(key)
        runtime.locate(keys, Purpose.ARGUMENT)
        return keys

    # -- results ---------------------------------------------------------------------------------

    def make_outcome(self, value: Any, client: bytes, number: int) -> bytes:
        """Encode a result for ``client`` as its object ``number``."""
        if type(value) in _PLAIN_RESULTS:
            data = _dumps(value, 5)
            if len(data) <= INLINE_BYTES_MAX:
                return data
        encoded = blob.encode(value)
        held: list[bytes] = []
        runtime = self.runtime
        if encoded.refs:
            with runtime.lock:
                for ref in encoded.refs:
                    runtime.session.references.share(ref.key)
                    held.append(ref.id)
        if encoded.nbytes > INLINE_BYTES_MAX:
            return runtime.objects.write_result(encoded, object_id(client, number), client, held)
        data = blob.to_bytes(encoded)
        if held:
            with runtime.lock:
                runtime.session.outbox.call(messages.HOLD_FOR, object_id(client, number), held)
            return outcome.holding(held, data)
        return data

    def make_error(self, error: BaseException, where: str) -> bytes:
        """Encode what user code raised."""
        return outcome.error(
            encode_exception(error, where=where, pid=os.getpid(), node_id=self.runtime.node.hex())
        )
