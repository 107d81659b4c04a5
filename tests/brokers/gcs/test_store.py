"""The data classes of the store's interface refuse what no engine could keep."""

import pytest

from zray.brokers.gcs.store import Compare, Delete, Entry, Get, Put, Transaction
from zray.errors import GcsError


@pytest.mark.parametrize("make", [Delete, Get, lambda table, key: Put(table, key, b"")])
def test_a_key_has_1_to_500_bytes(make):
    make("kv", b"k" * 500)
    with pytest.raises(GcsError, match=r"501 bytes.*hash"):
        make("kv", b"k" * 501)
    with pytest.raises(GcsError, match="0 bytes"):
        make("kv", b"")


def test_the_tables_of_the_engine_itself_cannot_be_named():
    with pytest.raises(GcsError, match="underscore"):
        Put("_meta", b"revision", b"")


def test_a_value_is_bounded(monkeypatch):
    monkeypatch.setattr(Entry, "VALUE_BYTES_MAX", 10)
    Put("kv", b"k", bytes(10))
    with pytest.raises(GcsError, match="object store"):
        Put("kv", b"k", bytes(11))


@pytest.mark.parametrize(
    ("op", "operand"), [("exists", b""), ("value", None), ("revision", b"1"), ("larger", 1)]
)
def test_a_comparison_refuses_an_operand_that_it_cannot_use(op, operand):
    with pytest.raises(GcsError, match="comparison"):
        Compare("kv", b"k", op, operand)


def test_a_transaction_may_name_a_key_once_only():
    with pytest.raises(GcsError, match="twice"):
        Transaction((), (Put("kv", b"k", b"1"), Delete("kv", b"k")))
    Transaction((), (Put("kv", b"k", b"1"), Delete("kw", b"k")))


def test_a_transaction_is_bounded():
    puts = tuple(Put("kv", b"%d" % index, b"") for index in range(4097))
    Transaction((), puts[:4096])
    with pytest.raises(GcsError, match="split it"):
        Transaction((), puts)
