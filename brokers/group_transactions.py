"""What changes the table of placement groups.

What    Functions that return a transaction: comparisons that must hold, and what is written if they
        do. Each write of a coordinator compares that the term is still its own, so that of two
        nodes that think so only one decides.
Caller  brokers/placement_groups.py, brokers/coordination.py; brokers/group_store.py performs them.
Never   writes.
"""

from __future__ import annotations

from typing import Any

from zray.protocol.ids import GROUP_ID_BYTES, NodeId

from .group_table import RECORD, REMOVAL, SPEC, TERM, GroupSpec, Term, pack_record, spec_key
from .groups import GroupRecord

TABLE = "groups"

Transaction = tuple[list[list[Any]], list[list[Any]]]
"""Comparisons that must hold, and what is written if they do."""


def creation(spec: GroupSpec) -> Transaction:
    """Ask for a group; its name must be free."""
    compare = [[TABLE, spec_key(spec.group), "missing", None]]
    writes = [["put", TABLE, spec_key(spec.group), spec.pack()]]
    if spec.name:
        compare.append([TABLE, spec.name_key, "missing", None])
        writes.append(["put", TABLE, spec.name_key, spec.group])
    return compare, writes


def removal(group: bytes, reason: str) -> Transaction:
    """Ask for the end of a group."""
    compare = [[TABLE, spec_key(group), "exists", None]]
    return compare, [["put", TABLE, REMOVAL + group, reason.encode()]]


def freeing(spec: GroupSpec) -> Transaction:
    """Free the name of a group that ends, unless another one has it by now."""
    key = spec.name_key
    return [[TABLE, key, "value", spec.group]], [["delete", TABLE, key]]


def succession(before: Term | None, own: NodeId) -> tuple[Term, Transaction]:
    """Begin a term, after the one that is known."""
    term = Term(1 if before is None else before.epoch + 1, own)
    if before is None:
        compare = [[TABLE, TERM, "missing", None]]
    else:
        compare = [[TABLE, TERM, "value", before.pack()]]
    return term, (compare, [["put", TABLE, TERM, term.pack()]])


def decision(term: Term, record: GroupRecord) -> Transaction:
    """Write what a coordinator has decided, in its term only."""
    return _in(term), [["put", TABLE, RECORD + record.group, pack_record(record)]]


def forgetting(term: Term, group: bytes) -> Transaction:
    """Delete all that there is of a group."""
    assert len(group) == GROUP_ID_BYTES
    return _in(term), [["delete", TABLE, kind + group] for kind in (SPEC, RECORD, REMOVAL)]


def _in(term: Term) -> list[list[Any]]:
    return [[TABLE, TERM, "value", term.pack()]]
