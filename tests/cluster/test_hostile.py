"""Bytes that no zray process would send, at every door of a running node.

What    Random and truncated frames, wrong versions, absurd fields, ids of others, floods and half
        connections, from strangers and from a member that has said HELLO. A task runs through
        the same node before and after, and its log holds no traceback of our own.
Never   goes easy because the sender is a process of the same user.
"""

import contextlib
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zray
from tests.cluster.observing import ask
from tests.cluster.programs import double
from tests.waiting import wait_until
from zray import api
from zray.brokers.node_calls import CALL_RULES
from zray.brokers.node_mailbox import MAILBOX_RULES
from zray.net import channel, mailbox, tokens
from zray.net.edges import Edges
from zray.node_directory import new_process
from zray.protocol import frames, messages
from zray.protocol.limits import (
    ANSWERS_BYTES_MAX,
    CHANNEL_MESSAGE_BYTES_MAX,
    HELLO_BYTES_MAX,
    PROTOCOL_VERSION,
    UNNAMED_CONNECTIONS_MAX,
)
from zray.protocol.messages import MESSAGES

pytestmark = pytest.mark.node(object_store_memory=64 << 20)
FIELDS = {row.kind: row.fields for row in MESSAGES}
# STOP ends the node and GOODBYE means an EOF: obeying these is right.
CALLS = sorted(CALL_RULES.keys() - {messages.STOP, messages.GOODBYE})


class Member:
    """A process that has said HELLO, and says whatever it likes from then on."""

    def __init__(self, directory: str, role: str = "driver") -> None:
        self.identity = new_process(directory)
        self.directory = directory
        path = os.path.join(directory, "node.sock")
        self.lifeline = channel.connect(path)
        self.lifeline.socket.settimeout(10)
        details = {"log": False, "path": [], "cwd": None, "namespace": "", "entrypoint": "hostile"}
        self.lifeline.send(frames.pack(messages.HELLO, self.identity, role, os.getpid(), details))
        welcome = self.lifeline.receive()
        assert welcome is not None
        self.welcome = frames.unpack(welcome)[3]
        self.calls = channel.connect(path)
        self.calls.socket.settimeout(10)
        self.calls.send(frames.pack(messages.HELLO, self.identity, "calls", os.getpid(), {}))
        self.context = mailbox.new_context()
        routing_id = tokens.routing_id(self.welcome["secret"], self.identity)
        self.peers = mailbox.Peers(self.context, routing_id)
        self.peers.connect(self.welcome["node"], self.welcome["endpoint"])

    def mail(self, *frames_: bytes) -> None:
        self.peers.send(self.welcome["node"], frames_[0], list(frames_[1:]))

    def answered(self) -> bool:
        """Ask for the status behind all that was sent; answers to the rest are skipped."""
        self.calls.send(frames.pack(messages.INSPECT, "status", {}))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            reply = self.calls.receive()
            assert reply is not None, "the node has closed the connection"
            value = frames.unpack(reply)[4]
            if isinstance(value, dict) and "malformed_messages" in value:
                return True
        return False

    def close(self) -> None:
        self.calls.close()
        self.lifeline.close()
        self.peers.close()
        self.context.destroy(0)


@pytest.fixture(scope="module")
def node(node):
    """Return the module's node in its own words: pid, directory, counts at the start."""
    return ask("status")


@pytest.fixture(autouse=True)
def works_before_and_after(node) -> Iterator[None]:
    process = psutil.Process(node["pid"])
    assert zray.get(double.remote(4), timeout=20) == 8
    memory = process.memory_info().rss
    yield
    assert zray.get([double.remote(i) for i in range(100)], timeout=20) == list(range(0, 200, 2))
    wait_until(
        lambda: process.memory_info().rss < memory + (200 << 20),
        10,
        what="the node's memory to come back",
    )
    text = Path(node["directory"], "node.log").read_text(errors="replace")
    assert "Traceback" not in text, text[text.index("Traceback") :][:3000]


@pytest.fixture
def member(node) -> Iterator[Member]:
    made = Member(node["directory"])
    yield made
    made.close()


def malformed() -> int:
    count: int = ask("status")["malformed_messages"]
    return count


def wait_for_one_driver() -> None:
    """Wait until every member is gone, with all that it had."""
    try:
        wait_until(lambda: ask("status")["drivers"] == 1)
    except AssertionError:
        raise AssertionError(f"still here: {ask('jobs')}, {ask('status')}") from None


# -- the unix socket -------------------------------------------------------------------------------


def connect(node) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(os.path.join(node["directory"], "node.sock"))
    return sock


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


ID = b"12345678"
"""Stands for an id of a process of the node, which has no id yet."""
STRANGE_HELLOS = [
    b"\0",
    os.urandom(300),
    framed(b""),
    framed(os.urandom(100)),
    framed(b"\xc1"),
    framed(msgpack.packb([PROTOCOL_VERSION + 1, messages.HELLO, 0, ID, "driver", 1, {}])),
    framed(msgpack.packb([PROTOCOL_VERSION, messages.SUBMIT, 0, []])),
    framed(msgpack.packb([PROTOCOL_VERSION, messages.HELLO, 0, ID, "driver"])),
    framed(msgpack.packb({"version": 1})),
    framed(msgpack.packb(7)),
    framed(b"\x91" * 100_000),
    framed(b"\xdd\xff\xff\xff\xff"),
    *(
        framed(frames.pack(messages.HELLO, *fields))
        for fields in [
            (b"short", "driver", 1, {}),
            ("text", "driver", 1, {}),
            (None, "driver", 1, {}),
            (ID, "king", 1, {}),
            (ID, 7, 1, {}),
            (ID, ["driver"], 1, {}),
            (ID, "worker", 1, {}),
            (ID, "calls", 1, {}),
            (ID, "driver", "1", {}),
            (ID, "driver", -1, {}),
            (ID, "driver", 1, None),
            (ID, "driver", 1, {"path": 7}),
            (ID, "driver", 1, {1: 2}),
            (ID, "driver", 1, {"cwd": [1]}),
            (ID, "driver", 1, {"path": [b"x", 1]}),
        ]
    ),
    struct.pack("<I", HELLO_BYTES_MAX + 1),
    struct.pack("<I", 0xFFFFFFFF),
    b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64,
]


@pytest.mark.parametrize("data", STRANGE_HELLOS, ids=range(len(STRANGE_HELLOS)))
def test_a_connection_that_says_anything_but_a_right_hello_is_closed_and_counted(node, data):
    before = malformed()
    with connect(node) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data.replace(ID, new_process(node["directory"])))
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    wait_until(lambda: malformed() > before)


def test_a_process_whose_id_is_of_another_node_is_refused(node):
    """Its home would be told of its objects, and its messages would go to that node."""
    before, own = malformed(), api.runtime().node
    neighbour = own[:3] + bytes((own[3] ^ 1,)) + ID[:4]
    for identity in (bytes(4) + ID[:4], neighbour, own):
        for role in ("driver", "observer", "worker", "calls"):
            with connect(node) as sock:
                sock.sendall(framed(frames.pack(messages.HELLO, identity, role, os.getpid(), {})))
                assert sock.recv(100) == b""
    assert malformed() == before + 12
    said = Path(node["directory"], "node.log").read_text(errors="replace")
    assert "HELLO with an id that is not of this node" in said


def test_nobody_takes_the_place_of_a_process_that_is_here(node, member):
    before = malformed()
    for identity, role in [
        (member.identity, "driver"),
        (member.identity, "calls"),
        (api.runtime().process, "driver"),
        (member.identity, "worker"),
    ]:
        with connect(node) as sock:
            sock.sendall(framed(frames.pack(messages.HELLO, identity, role, 1, {})))
            assert sock.recv(100) == b""
    assert malformed() == before + 4
    assert member.answered()


HELLO_FOR_CALLS = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    sock.sendall(bytes.fromhex(sys.argv[2]))
    assert sock.recv(100) == b""
"""


def test_nobody_writes_calls_in_the_name_of_a_process_that_has_just_come(node):
    path = os.path.join(node["directory"], "node.sock")
    identity, before = new_process(node["directory"]), malformed()
    with contextlib.closing(channel.connect(path)) as lifeline:
        lifeline.send(frames.pack(messages.HELLO, identity, "driver", os.getpid(), {"log": False}))
        assert lifeline.receive() is not None
        hello = framed(frames.pack(messages.HELLO, identity, "calls", os.getpid(), {}))
        subprocess.run(
            [sys.executable, "-c", HELLO_FOR_CALLS, path, hello.hex()], check=True, timeout=20
        )
        assert malformed() == before + 1


def test_half_open_connections_do_not_keep_others_out(node):
    process = psutil.Process(node["pid"])
    before = process.num_fds()
    half = [connect(node) for _ in range(UNNAMED_CONNECTIONS_MAX + 50)]
    for sock in half[::2]:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(b"\x40\0\0\0half a message")
    assert zray.get(double.remote(3), timeout=20) == 6
    wait_until(lambda: process.num_fds() <= before + UNNAMED_CONNECTIONS_MAX + 10)
    for sock in half:
        sock.close()
    wait_until(lambda: process.num_fds() <= before + 4)


def test_descriptors_that_strangers_and_members_send_are_closed(node, member):
    process = psutil.Process(node["pid"])
    with open(os.devnull, "rb") as file, connect(node) as sock:
        assert member.answered()
        before = process.num_fds()
        for stream in (sock, member.calls.socket, member.lifeline.socket):
            stream.sendall(struct.pack("<I", 1000))
            for _ in range(20):
                socket.send_fds(stream, [b"\x01"], [file.fileno()] * 4)
        wait_until(lambda: process.num_fds() <= before + 3)


WITHOUT_DESCRIPTORS = """
import json, os, resource, socket
import zray
from tests.waiting import wait_until
from zray import api

context = zray.init(num_cpus=1)
double = zray.remote(lambda x: 2 * x)
assert zray.get(double.remote(4), timeout=20) == 8
folder = context.address
pid = json.load(open(f"{folder}/node.json"))["pid"]
before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
count = len(os.listdir(f"/proc/{pid}/fd"))
resource.prlimit(pid, resource.RLIMIT_NOFILE, (count + 3, before[1]))
half = []
for _ in range(30):
    half.append(socket.socket(socket.AF_UNIX))
    half[-1].connect(f"{folder}/node.sock")
wait_until(lambda: "ulimit" in open(f"{folder}/node.log").read())
assert zray.get(double.remote(5), timeout=20) == 10
resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
for each in half:
    each.close()
connected = api.connect(folder)
connected.close()
assert zray.get(double.remote(6), timeout=20) == 12
zray.shutdown()
"""


def test_a_node_without_descriptors_refuses_and_recovers():
    # A node of its own: the limit is on the number of a descriptor, so gaps would make it vague.
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("stream", ["calls", "lifeline"])
def test_a_member_with_an_oversize_length_prefix_is_disconnected(node, member, stream):
    sock = getattr(member, stream).socket
    sock.sendall(struct.pack("<I", CHANNEL_MESSAGE_BYTES_MAX + 1) + b"x" * 1000)
    assert sock.recv(1 << 16) == b""
    wait_for_one_driver()


def test_a_large_message_right_behind_hello_is_no_stranger(node):
    member = Member(node["directory"])
    value = os.urandom(5 * HELLO_BYTES_MAX)
    member.calls.send(frames.pack(messages.KV, "put", ["n", b"key", value, True]))
    assert member.calls.receive() is not None
    member.calls.send(frames.pack(messages.KV, "get", ["n", b"key"]))
    # The answer is larger than the socket's buffer: the node must not wait for its reader.
    assert zray.get(double.remote(2), timeout=20) == 4
    reply = member.calls.receive()
    member.close()
    assert reply is not None
    assert frames.unpack(reply)[4] == value


def test_a_member_that_asks_and_never_reads_is_disconnected(node):
    process = psutil.Process(node["pid"])
    member = Member(node["directory"])
    value = bytes(16 << 20)
    member.calls.send(frames.pack(messages.KV, "put", ["n", b"large", value, True]))
    assert member.calls.receive() is not None
    before = malformed()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(2 * ANSWERS_BYTES_MAX // len(value)):
            member.calls.send(frames.pack(messages.KV, "get", ["n", b"large"]))
    wait_until(lambda: malformed() == before + 1)
    assert process.memory_info().rss < 2 * ANSWERS_BYTES_MAX
    member.close()
    wait_for_one_driver()


# -- the mailbox -----------------------------------------------------------------------------------


def test_random_bytes_of_a_stranger_at_the_inbox_are_dropped(node, member):
    context = mailbox.new_context()
    stranger = mailbox.Peers(context, os.urandom(8))
    stranger.connect(b"node", ask("status") and member.welcome["endpoint"])
    for size in (0, 1, 10, 1000, 100_000):
        stranger.send(b"node", os.urandom(size), [os.urandom(size), b""])
        stranger.send(b"node", frames.pack(messages.SUBMIT, [], payloads=0))
    wait_until(lambda: malformed() >= 10)
    stranger.close()
    context.destroy(0)


def test_frames_that_do_not_fit_their_header_are_counted(node, member):
    before = malformed()
    member.mail(b"")
    member.mail(os.urandom(50), b"payload")
    member.mail(frames.pack(messages.SUBMIT, [[0, 1, 1, 0, 1, 0, 3]], payloads=1))
    member.mail(frames.pack(messages.SUBMIT, [], payloads=0), b"unannounced")
    member.mail(frames.pack(messages.RUN, *[None] * len(FIELDS[messages.RUN])))
    wait_until(lambda: malformed() >= before + 5)
    assert member.answered()


# -- fields ----------------------------------------------------------------------------------------

BYTES = st.one_of(
    st.binary(max_size=20), st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16)
)
NUMBERS = st.one_of(st.integers(-5, 5), st.integers(-(1 << 63), (1 << 64) - 1))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=8), BYTES)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.lists(st.binary(min_size=16, max_size=16), max_size=3)
RESOURCES = st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "x"]), NUMBERS, max_size=2)
ENVIRONMENT = st.dictionaries(st.sampled_from(["A", "ZRAY_JOB"]), st.text(max_size=4), max_size=2)
ROWS = st.lists(
    st.lists(
        st.one_of(NUMBERS, st.binary(min_size=8, max_size=8), st.none()), min_size=2, max_size=7
    ),
    max_size=3,
)
SPEC = st.tuples(
    st.binary(max_size=16),
    st.text(max_size=5),
    RESOURCES,
    NUMBERS,
    NUMBERS,
    st.none(),
    NUMBERS,
    ENVIRONMENT,
    NUMBERS,
).map(list)
DETAILS = st.fixed_dictionaries(
    {
        "name": st.one_of(st.none(), st.sampled_from(["same", "other"])),
        "namespace": st.just("n"),
        "class": st.text(max_size=4),
        "restarts": NUMBERS,
        "detached": st.just(False),
        "isolation": st.sampled_from(["process", "shared", "what"]),
        "env": ENVIRONMENT,
        "placement": RESOURCES,
        "resources": RESOURCES,
        "pending": NUMBERS,
        "methods": VALUES,
    }
)
NEARLY_RIGHT = {
    "objects": OBJECTS,
    "contained": OBJECTS,
    "object": OBJECTS.map(lambda ids: (ids or [b""])[0]),
    "actor": st.binary(min_size=16, max_size=16),
    "rows": ROWS,
    "batches": ROWS,
    "reports": ROWS,
    "deltas": st.lists(st.tuples(st.binary(min_size=16, max_size=16), NUMBERS), max_size=3),
    "ranges": ROWS,
    "tasks": ROWS,
    "started": ROWS,
    "spec": SPEC,
    "options": DETAILS,
    "bytes": NUMBERS,
    "offset": NUMBERS,
    "offsets": st.lists(NUMBERS, max_size=4),
    "process": st.binary(min_size=8, max_size=8),
    "holder": st.binary(min_size=8, max_size=8),
    "worker": st.one_of(st.none(), st.binary(min_size=8, max_size=8)),
    "what": st.sampled_from(["status", "objects", "events", "tasks", "why", "no such"]),
    "op": st.sampled_from(["put", "get", "delete", "exists", "keys", "drop"]),
    "arguments": st.one_of(
        st.binary(max_size=8),
        st.lists(SCALARS, max_size=4),
        st.dictionaries(st.text(max_size=6), SCALARS, max_size=2),
    ),
    "first": NUMBERS,
    "item": NUMBERS,
    "class_no": st.integers(0, 2),
    "certain": st.booleans(),
    "name": st.text(max_size=4),
    "namespace": st.one_of(st.none(), st.text(max_size=4)),
    "function": st.binary(max_size=16),
    "code": st.binary(max_size=64),
    "outcome": st.one_of(st.none(), st.binary(min_size=1, max_size=8)),
}


def fields_of(kind: int) -> st.SearchStrategy[list]:
    return st.tuples(
        *(
            st.one_of(NEARLY_RIGHT.get(name, VALUES), NEARLY_RIGHT.get(name, VALUES), VALUES)
            for name in FIELDS[kind]
        )
    ).map(list)


UNPACKABLE = (OverflowError, ValueError, TypeError, UnicodeEncodeError)


def packable(fields: list) -> bytes | None:
    with contextlib.suppress(*UNPACKABLE):
        return frames.pack(messages.PING, *fields)
    return None


@contextlib.contextmanager
def sender_of_absurd_things(node) -> Iterator[Member]:
    """Yield a member with one class; it must be answered after all that it has sent."""
    sender = Member(node["directory"])
    sender.calls.send(
        frames.pack(messages.DECLARE_CLASS, 0, [b"f", "f", {"CPU": 10000}, 1, 0, None, 0, {}, 0])
    )
    try:
        yield sender
        assert sender.answered()
    finally:
        sender.close()
    wait_for_one_driver()


FUZZ = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("kind", CALLS, ids=[messages.NAMES[kind] for kind in CALLS])
def test_absurd_fields_of_a_call_do_not_stop_the_node(node, kind):
    with sender_of_absurd_things(node) as sender:

        @FUZZ
        @given(fields_of(kind))
        def send(fields):
            with contextlib.suppress(*UNPACKABLE):
                sender.calls.send(frames.pack(kind, *fields))

        send()


@pytest.mark.parametrize("kind", sorted(MAILBOX_RULES), ids=messages.NAMES.get)
def test_absurd_fields_in_the_mailbox_do_not_stop_the_node(node, kind):
    with sender_of_absurd_things(node) as sender:

        @FUZZ
        @given(fields_of(kind), st.lists(st.binary(max_size=30), max_size=3))
        def send(fields, payloads):
            with contextlib.suppress(*UNPACKABLE):
                sender.mail(frames.pack(kind, *fields, payloads=len(payloads)), *payloads)

        send()


def test_a_member_cannot_touch_extents_and_objects_of_others(node, member):
    import numpy as np

    ref = zray.put(np.full(1 << 20, 7, "u1"))
    zray.get(double.remote(ref), timeout=20)
    row = next(row for row in ask("objects") if row["bytes"] >= 1 << 20)
    identity = bytes.fromhex(row["object_id"])
    for offset in range(0, 8 << 20, 4096):
        member.calls.send(frames.pack(messages.FREE, [offset]))
    member.calls.send(frames.pack(messages.REGISTER, identity, 0, 4096, [], member.identity))
    member.calls.send(frames.pack(messages.UNPINNED, [identity]))
    member.mail(frames.pack(messages.RELEASE, [[identity, 5]], [identity]))
    assert member.answered()
    assert (zray.get(ref) == 7).all()
    others = [zray.put(np.full(1 << 20, 9, "u1")) for _ in range(20)]
    assert (zray.get(ref) == 7).all()
    del others


# -- the inboxes of drivers and workers ------------------------------------------------------------


def inboxes() -> list[str]:
    return [api.runtime().process.hex(), *(row["worker"] for row in ask("workers"))]


def test_garbage_of_a_member_at_a_drivers_and_a_workers_edge_is_counted_not_obeyed(node, member):
    directory, identity = member.directory, member.identity
    ways = Edges(
        mailbox.Inbox(member.context, mailbox.ipc_endpoint(directory, identity.hex())),
        member.peers,
        identity,
        on_stuck=lambda: None,
    )
    ways.authorize(member.welcome["secret"], member.welcome["node"])
    kinds = [row.kind for row in MESSAGES if row.channel == "mailbox"]
    for name in inboxes():
        peer = bytes.fromhex(name)
        ways.connect(peer, mailbox.ipc_endpoint(directory, name))
        assert ways.send(peer, b"", [])
        ways.send(peer, os.urandom(200), [b"x"])
        for kind in kinds:
            for value in (None, -1, 1 << 63, [], [[]], {}, "text", b"bytes", [[1, 2, 3]]):
                header = frames.pack(kind, *[value] * len(FIELDS[kind]), payloads=1)
                ways.send(peer, header, [b"\xc1"])
        assert zray.get(double.remote(2), timeout=20) == 4
        assert ways.knows(peer)
    assert zray.get([double.remote(i) for i in range(200)], timeout=20) == list(range(0, 400, 2))
    ways.close()


def test_garbage_at_an_edge_is_refused(node):
    for name in inboxes():
        path = os.path.join(node["directory"], name + ".e")
        for data in (b"", os.urandom(64), os.urandom(5000), b"\xff" + bytes(8) + b"\x7f\x03"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(path)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(data)
                assert zray.get(double.remote(2), timeout=20) == 4


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def results_of(number: int, path: str) -> tuple[bytes, bytes]:
    """Return a RESULTS for task ``number`` whose value is a trap."""
    value = pickle.dumps(Trap(path), 5)
    header = frames.pack(messages.RESULTS, number, 0, 1, False, payloads=1)
    return header, msgpack.packb([value])


@zray.remote
def wait_for(path):
    wait_until(lambda: os.path.exists(path), 20)
    return "of the task"


def framed_by_zmtp(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return bytes((flags | 2,)) + struct.pack(">Q", len(body)) + body
    return bytes((flags, len(body))) + body


def test_results_of_a_stranger_are_not_believed(node, tmp_path):
    """It is of the same user and knows every path, and whose results are awaited."""
    runtime = api.runtime()
    trap, go = str(tmp_path / "trap"), str(tmp_path / "go")
    ref = wait_for.remote(go)
    header, payload = results_of(ref.key, trap)
    worker = bytes.fromhex(ask("workers")[0]["worker"])
    before = runtime.inbox.malformed
    context = mailbox.new_context()
    strangers = []
    for identity in (runtime.node, worker, runtime.process, os.urandom(8), os.urandom(72)):
        strangers.append(mailbox.Peers(context, identity))
        strangers[-1].connect(b"driver", runtime.inbox.endpoint)
        strangers[-1].send(b"driver", header, [payload])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(os.path.join(node["directory"], runtime.process.hex() + ".e"))
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
        identity = b"\x05READY\x08Identity" + struct.pack(">I", 8) + worker
        sock.sendall(greeting + framed_by_zmtp(4, identity))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(framed_by_zmtp(1, header) + framed_by_zmtp(0, payload))

        def refused() -> bool:
            ready, _pending = zray.wait([ref], timeout=0.05)
            assert not ready
            return runtime.inbox.malformed == before + len(strangers) + 1

        wait_until(refused)
    open(go, "w").close()
    assert zray.get(ref, timeout=20) == "of the task"
    assert not os.path.exists(trap)
    for stranger in strangers:
        stranger.close()
    context.destroy(0)


def test_nobody_speaks_to_the_node_in_the_name_of_another(node, member):
    before = malformed()
    context = mailbox.new_context()
    strangers = []
    for identity in (member.identity, api.runtime().process):
        strangers.append(mailbox.Peers(context, identity))
        strangers[-1].connect(b"node", member.welcome["endpoint"])
        for _ in range(3):
            strangers[-1].send(b"node", frames.pack(messages.PING))
    wait_until(lambda: malformed() == before + 6)
    member.mail(frames.pack(messages.PING))
    assert member.answered()
    assert malformed() == before + 6
    for stranger in strangers:
        stranger.close()
    context.destroy(0)
