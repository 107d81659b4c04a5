"""Addresses of TCP ports: what is bound and what others are told.

What    Advertised addresses in every form, and what counts as this machine alone.
Caller  pytest.
Never   opens a port.
"""

import pytest

from zray.net.addresses import advertised, is_loopback


@pytest.mark.parametrize(
    ("advertise", "told"),
    [
        (None, "tcp://127.0.0.1:7"),
        ("node.example", "tcp://node.example:7"),
        ("node.example:99", "tcp://node.example:99"),
        ("10.1.2.3:99", "tcp://10.1.2.3:99"),
        ("fd00::1", "tcp://[fd00::1]:7"),
        ("[fd00::1]", "tcp://[fd00::1]:7"),
        ("[fd00::1]:99", "tcp://[fd00::1]:99"),
    ],
)
def test_the_advertised_address_is_what_others_dial(advertise, told):
    assert advertised("127.0.0.1", 7, advertise) == told


def test_the_loopback_is_an_address_and_not_a_name_somebody_resolves():
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.1", "localhost.example", ""]))
