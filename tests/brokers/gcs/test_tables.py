"""Functions, jobs, nodes and key-value over a real store."""

import msgpack
import pytest

from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.store import Delete, Put, Transaction
from zray.brokers.gcs.tables import FunctionTable, JobRecord, NodeRecord, Tables, code_hash
from zray.errors import GcsError


@pytest.fixture
def tables(tmp_path):
    with LmdbStore(tmp_path / "gcs") as store:
        yield Tables(store)


# ------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
def test_code_of_any_length_comes_back_as_it_was(tables, size, monkeypatch):
    monkeypatch.setattr(FunctionTable, "CHUNK_BYTES", 1024)
    code = bytes(index % 251 for index in range(size))
    name = code_hash(code)
    assert tables.functions.get(name) is None
    assert tables.functions.put(name, code)
    assert tables.functions.get(name) == code
    assert tables.functions.exists(name)


def test_code_is_stored_in_chunks_of_one_mebibyte(tables):
    code = bytes(2_500_000)
    tables.functions.put(code_hash(code), code)
    sizes = [len(entry.value) for _, entry in tables.store.scan("functions").entries]
    assert len(sizes) == 3
    assert max(sizes) <= (1 << 20) + 32


def test_code_that_is_there_is_not_written_again(tables):
    name = code_hash(b"code")
    assert tables.functions.put(name, b"code")
    revision = tables.store.revision
    assert not tables.functions.put(name, b"code")
    assert tables.store.revision == revision


def test_code_under_a_wrong_hash_is_refused(tables):
    with pytest.raises(GcsError, match="does not have the hash"):
        tables.functions.put(code_hash(b"other"), b"code")


def test_a_missing_chunk_is_noticed(tables, monkeypatch):
    monkeypatch.setattr(FunctionTable, "CHUNK_BYTES", 10)
    code = bytes(range(50))
    name = code_hash(code)
    tables.functions.put(name, code)
    tables.store.transact(Transaction((), (Delete("functions", name + b"\0\2"),)))
    with pytest.raises(GcsError, match="put it again"):
        tables.functions.get(name)
    assert tables.functions.delete(name)
    assert not tables.functions.delete(name)
    assert tables.functions.put(name, code)
    assert tables.functions.get(name) == code


# ------------------------------------------------------------------------------------------ jobs


def test_a_job_ends_once(tables):
    job = JobRecord(b"job", driver_id=b"driver", driver_pid=7, entrypoint="main.py", started_at=1.0)
    assert tables.jobs.add(job)
    assert not tables.jobs.add(job)
    assert tables.jobs.get(b"job") == job
    ended = tables.jobs.finish(b"job", "failed", ended_at=2.0, message="killed")
    assert (ended.state, ended.ended_at, ended.message) == ("failed", 2.0, "killed")
    assert tables.jobs.finish(b"job", "succeeded", ended_at=3.0) == ended
    assert tables.jobs.all() == [ended]


def test_a_job_that_is_unknown_or_ends_in_no_state_is_refused(tables):
    assert tables.jobs.get(b"job") is None
    with pytest.raises(GcsError, match="add it first"):
        tables.jobs.finish(b"job", "failed", ended_at=1.0)
    tables.jobs.add(JobRecord(b"job"))
    with pytest.raises(GcsError, match="running"):
        tables.jobs.finish(b"job", "running", ended_at=1.0)


def test_a_record_of_another_schema_is_refused(tables):
    packed = msgpack.packb([99, b"job"])
    tables.store.transact(Transaction((), (Put("jobs", b"job", packed),)))
    with pytest.raises(GcsError, match="schema 99"):
        tables.jobs.get(b"job")


def test_a_record_is_a_msgpack_array_with_its_schema_first():
    assert msgpack.unpackb(JobRecord(b"job", entrypoint="main.py").pack())[:5] == [
        1,
        b"job",
        b"",
        0,
        "main.py",
    ]


# ----------------------------------------------------------------------------------------- nodes


def test_each_registration_of_a_node_has_a_higher_epoch_even_after_its_lease_ended(tables):
    node = NodeRecord(b"node", addresses={"control": "tcp://10.0.0.1:1"}, resources={"CPU": 2.0})
    lease = tables.store.grant_lease(5.0, now=0.0)
    assert tables.nodes.register(node, lease).epoch == 1
    assert tables.nodes.get(b"node").resources == {"CPU": 2.0}
    tables.store.expire_leases(5.0)
    assert tables.nodes.get(b"node") is None
    assert tables.nodes.register(node).epoch == 2
    assert tables.nodes.register(NodeRecord(b"other")).epoch == 1
    assert [record.epoch for record in tables.nodes.all()] == [2, 1]


def test_a_node_is_marked_dead_without_losing_its_record(tables):
    assert not tables.nodes.mark_dead(b"node")
    tables.nodes.register(NodeRecord(b"node", host="here"))
    assert tables.nodes.mark_dead(b"node")
    record = tables.nodes.get(b"node")
    assert (record.state, record.host) == ("dead", "here")


# ------------------------------------------------------------------------------------- key-value


def test_put_says_whether_the_key_is_new_and_keeps_it_unless_told_to_overwrite(tables):
    assert tables.kv.put(b"key", b"1")
    assert not tables.kv.put(b"key", b"2", overwrite=False)
    assert tables.kv.get(b"key") == b"1"
    assert not tables.kv.put(b"key", b"3")
    assert tables.kv.get(b"key") == b"3"
    assert tables.kv.exists(b"key")
    assert tables.kv.delete(b"key")
    assert not tables.kv.delete(b"key")
    assert not tables.kv.exists(b"key")
    assert tables.kv.get(b"key") is None


def test_namespaces_do_not_see_each_other(tables):
    tables.kv.put(b"bc", b"1", namespace="a")
    tables.kv.put(b"c", b"2", namespace="ab")
    assert tables.kv.get(b"bc", namespace="a") == b"1"
    assert tables.kv.get(b"c", namespace="a") is None
    assert tables.kv.keys(namespace="ab") == [b"c"]
    with pytest.raises(GcsError, match="zero"):
        tables.kv.put(b"key", b"", namespace="a\0b")


def test_keys_are_listed_by_prefix_in_order(tables):
    for key in (b"b", b"a2", b"a1", b"\0"):
        tables.kv.put(key, b"")
    assert tables.kv.keys() == [b"\0", b"a1", b"a2", b"b"]
    assert tables.kv.keys(b"a") == [b"a1", b"a2"]


def test_an_empty_key_and_value_are_as_good_as_any(tables):
    assert tables.kv.put(b"", b"")
    assert tables.kv.get(b"") == b""


def test_a_key_that_is_too_long_is_refused_with_the_bound(tables):
    tables.kv.put(b"k" * 499, b"")
    with pytest.raises(GcsError, match="500 bytes"):
        tables.kv.put(b"k" * 500, b"")
