"""The key-value table, from a driver and from a task.

What    put, get, delete, exists, keys over a real node.
Never   looks into LMDB.
"""

import pytest

import zray
from zray.util import kv

pytestmark = pytest.mark.node(num_cpus=1)


def test_a_value_is_found_until_it_is_deleted(node):
    assert kv.put("a", b"1")
    assert not kv.put("a", b"2"), "the key is not new"
    assert kv.get("a") == b"2"
    assert not kv.put("a", b"3", overwrite=False)
    assert kv.get("a") == b"2"
    assert kv.exists("a")
    assert kv.delete("a")
    assert not kv.delete("a")
    assert kv.get("a") is None
    assert not kv.exists("a")


def test_namespaces_keep_keys_apart_and_keys_come_in_order(node):
    for name in ("k2", "k1", "other"):
        kv.put(name, name.encode(), namespace="here")
    assert kv.keys("k", namespace="here") == [b"k1", b"k2"]
    assert kv.keys("k") == []


def test_a_task_sees_what_its_driver_put(node):
    @zray.remote
    def read(key):
        return kv.get(key)

    kv.put(b"shared", b"value")
    assert zray.get(read.remote(b"shared"), timeout=20) == b"value"


def test_a_value_that_is_no_bytes_is_refused(node):
    with pytest.raises(TypeError, match="bytes"):
        kv.put("a", "text")
