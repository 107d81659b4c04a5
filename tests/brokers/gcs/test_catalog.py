"""The catalog on a disk that is full, and at its end.

What    flush() with a ledger that cannot be written; what close() writes of whom.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from zray.brokers.gcs.catalog import _FAILURES_SHOWN, Catalog
from zray.brokers.gcs.lineage import Written
from zray.errors import GcsError

NODE, DRIVER, ACTOR = b"the-node", b"a-driver", b"a-driver-actor-1"
DETAILS = {
    **{"name": None, "namespace": "", "class": "Actor", "restarts": 0, "detached": True},
    "entrypoint": "main.py",
}


def opened(folder: Path, *, durable: bool = True) -> Catalog:
    return Catalog(str(folder), node=NODE, durable=durable, resources={"CPU": 10_000})


def test_a_ledger_that_cannot_be_written_does_not_end_the_node_and_is_tried_again(
    tmp_path, monkeypatch, capsys
):
    catalog = opened(tmp_path)
    failing = [True]
    flush = catalog.lineage.flush

    def full() -> list[Written]:
        if failing[0]:
            raise GcsError("no space left on device")
        return flush()

    monkeypatch.setattr(catalog.lineage, "flush", full)
    for _ in range(3 * _FAILURES_SHOWN):
        catalog.flush(time.time())
    assert catalog.statistics()["write_failures"] == 3 * _FAILURES_SHOWN
    told = capsys.readouterr().out
    assert told.count("no space left on device") == _FAILURES_SHOWN, "a log has an end"
    failing[0] = False
    catalog.flush(time.time())
    assert catalog.statistics()["write_failures"] == 3 * _FAILURES_SHOWN
    catalog.close(time.time())


def test_a_batch_that_cannot_be_recorded_is_queued_all_the_same(tmp_path, monkeypatch):
    catalog = opened(tmp_path)

    def full(_job: str, _records: list[bytes]) -> None:
        raise GcsError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(catalog.lineage, "append", full)
        catalog.tasks_submitted(DRIVER.hex(), DRIVER, [[1, 1, 1, 0, 1, 0, 1]], [b"arguments"])
    assert catalog.statistics()["write_failures"] == 1
    catalog.tasks_submitted(DRIVER.hex(), DRIVER, [[1, 2, 1, 0, 1, 0, 1]], [b"arguments"])
    assert catalog.statistics()["ledger_records"] == 1
    catalog.close(time.time())


@pytest.mark.parametrize("durable", [True, False])
def test_what_nobody_can_open_again_is_not_written_at_the_end(tmp_path, durable, monkeypatch):
    catalog = opened(tmp_path, durable=durable)
    catalog.job_started(DRIVER, 1, DETAILS, time.time())
    catalog.actor_created(ACTOR, b"class", DRIVER.hex(), DETAILS)
    written: list[int] = []
    write = catalog.write
    monkeypatch.setattr(catalog, "write", lambda: (written.append(1), write()))
    catalog.close(time.time())
    assert bool(written) is durable
    if durable:
        again = opened(tmp_path)
        (record,) = again.tables.actors.select()
        assert record.actor_id == ACTOR
        again.close(time.time())
