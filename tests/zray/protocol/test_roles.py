"""Roles: who may claim which, and that every message of links says who may send it."""

from __future__ import annotations

import pytest

from zray.protocol import link_messages, messages
from zray.protocol.link_messages import LINK_MESSAGES
from zray.protocol.roles import LINK_SENDERS, Role, may_claim, may_send


def test_a_key_allows_its_own_role_and_lesser_ones() -> None:
    allowed = {(key, claimed) for key in Role for claimed in Role if may_claim(key, claimed)}
    assert allowed == {
        (Role.NODE, Role.NODE),
        (Role.NODE, Role.CLIENT),
        (Role.NODE, Role.GATEWAY),
        (Role.CLIENT, Role.CLIENT),
        (Role.CLIENT, Role.GATEWAY),
        (Role.GATEWAY, Role.GATEWAY),
    }


def test_every_message_of_links_says_who_may_send_it() -> None:
    kinds = {row.kind for row in LINK_MESSAGES}
    kinds |= {*link_messages.AS_CLIENT, *link_messages.AS_HOME}
    assert LINK_SENDERS.keys() == kinds
    for kind in kinds:
        assert may_send(Role.NODE, kind)
        if may_send(Role.GATEWAY, kind):
            assert may_send(Role.CLIENT, kind), "a gateway may not do more than a client"


def test_what_has_no_row_is_for_nodes() -> None:
    assert may_send(Role.NODE, 9999)
    assert not may_send(Role.CLIENT, 9999)


@pytest.mark.parametrize(
    "kind", [link_messages.LENT, link_messages.GCS_ANSWER, link_messages.FROM_WORKER]
)
def test_who_has_no_workers_speaks_of_none(kind: int) -> None:
    assert not may_send(Role.CLIENT, kind)


@pytest.mark.parametrize(
    "kind",
    [link_messages.CODE, link_messages.BORROW, link_messages.FOUND, messages.KILL_ACTOR],
)
def test_a_gateway_ships_no_code_no_task_and_no_value(kind: int) -> None:
    assert may_send(Role.CLIENT, kind)
    assert not may_send(Role.GATEWAY, kind)
