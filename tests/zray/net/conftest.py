"""Fixtures of links.

What    Keys in a folder, both ends of a link, a link whose handshake is done.
Caller  pytest.
Never   leaves a descriptor or a thread behind.
"""

import pytest
import zmq

from tests.zray.net.link_ends import THERE, Ends
from zray.net.curve import ClusterKeys


@pytest.fixture(scope="session")
def thread_that_frees():
    """Start pyzmq's thread for what is not copied: it belongs to the process, not to a test."""
    context = zmq.Context()
    one, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    one.bind("inproc://warm")
    other.connect("inproc://warm")
    one.send(bytes(100_000), copy=False)
    other.recv()
    context.destroy(0)


@pytest.fixture
def keys(tmp_path):
    return ClusterKeys.create(str(tmp_path / "keys"))


@pytest.fixture
def make_ends(thread_that_frees, no_leaks, keys):
    made = []

    def make(*arguments, **options):
        made.append(Ends(*(arguments or (keys,)), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def ends(make_ends):
    return make_ends()


@pytest.fixture
def link(ends):
    made = ends.links()
    made.connect(THERE, ends.inbox.address)
    ends.until(lambda: made.is_connected(THERE), "the handshake")
    return made
