"""The commands of the GCS: fields that are refused, and what each rule does."""

from __future__ import annotations

import pytest

from zray.brokers.gcs import rules
from zray.brokers.gcs.actor_table import ActorRecord
from zray.brokers.gcs.commands import COMMANDS, Command, apply, check_command
from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.machine import Overlay
from zray.brokers.gcs.tables import FunctionTable, JobRecord, NodeRecord, code_hash
from zray.errors import GcsError, RemoteProtocolError
from zray.protocol.packing import packb, unpackb

NODE = b"node" + bytes(4)
DRIVER = b"nodedriv"
ACTOR = b"nodedriv" + bytes(8)
FOREIGN = b"elsedriv" + bytes(8)

GOOD = {
    "SESSION_OPEN": ["me"],
    "NOOP": [],
    "REFUSED": ["it is not for a gateway"],
    "JOIN": [NODE, {"control": "tcp://a:1"}, {"CPU": 2.0}, {"zone": "a"}, "host", 7, "node"],
    "LEAVE": [NODE, 1],
    "NODE_DIED": [NODE, 1, "silence"],
    "NAMES_FREE": [[NODE]],
    "PRUNE": [],
    "SESSION_END": [[bytes(16)]],
    "ACTOR_REGISTER": [{"actor_id": ACTOR, "class_id": b"c", "name": "a"}],
    "ACTOR_UPDATE": [ACTOR, {"state": "alive"}],
    "ACTOR_END": [ACTOR, True],
    "ACTOR_LOOKUP": [ACTOR],
    "ACTOR_LIST": [None, None, 10, b""],
    "JOB_START": [{"job_id": DRIVER, "entrypoint": "train.py"}],
    "JOB_FINISH": [DRIVER, "succeeded", 2.0, ""],
    "JOB_LIST": [10, b""],
    "NODE_LIST": [10, b""],
    "FUNCTION_CHUNK": [bytes(16), 1, b"x"],
    "FUNCTION_PUT": [code_hash(b"x"), 1, b"x"],
    "FUNCTION_DROP": [[bytes(16)]],
    "FUNCTION_GET": [bytes(16), 0],
    "FUNCTION_EXISTS": [bytes(16)],
    "KV_PUT": ["n", b"k", b"v", True],
    "KV_DELETE": ["n", b"k"],
    "KV_GET": ["n", b"k"],
    "KV_EXISTS": ["n", b"k"],
    "KV_KEYS": ["n", b"", 10, b""],
    "NAME_CLAIM": ["n", "a", ACTOR],
    "NAME_RELEASE": ["n", "a", ACTOR],
    "NAME_LOOKUP": ["n", "a"],
    "NAME_LIST": [None, 10, b""],
    "TRANSACT": [
        [["kv", b"k", "missing", None]],
        [["put", "kv", b"k", b"v"], ["delete", "groups", b"g"], ["get", "nodes", b"n"]],
        [],
    ],
    "GET": ["kv", b"k"],
    "RANGE": ["kv", b"", 10, b""],
    "RENEW": [1.5, 0.1, b"row"],
    "LOAD": [b"row"],
    "WATCH": ["load", b"", 0],
    "UNWATCH": ["nodes", b""],
}
# Nothing of these is any field of any command, but for the few that are left out below.
NEVER: tuple[object, ...] = (
    object(),
    -1,
    [1],
    {1: 2},
    b"x" * 501,
    "\0" * 3,
    1 << 63,
    [[]],
    {"no such": 1},
)
TAKES_ANY_TEXT = {"why", "client", "host", "cause", "namespace", "name", "message", "state"}
TAKES_ANY_BYTES = {"value", "chunk", "job_id", "load"}


@pytest.fixture
def store(tmp_path):
    with LmdbStore(tmp_path / "gcs") as opened:
        yield opened


@pytest.fixture
def run(store):
    """Run one command as the machine does; returns its result."""

    def do(name, *fields, now=1.0):
        given = Command(name, tuple(unpackb(packb(fields), strict_map_key=False)))
        check_command(given)
        overlay = Overlay(store)
        result, writes = apply(overlay, given, now)
        assert (result, writes) == apply(overlay, given, now), "not deterministic"
        assert COMMANDS[name].effect in ("write", "internal") or not writes
        overlay.write(writes)
        overlay.close()
        store.commit(overlay.changes)
        assert store.revision == overlay.revision
        return result

    return do


def test_there_is_an_example_of_every_command():
    assert GOOD.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", GOOD)
def test_well_formed_fields_pass(name):
    assert check_command(Command(name, tuple(GOOD[name]))).name == name


@pytest.mark.parametrize("name", [name for name, fields in GOOD.items() if fields])
def test_every_malformed_field_is_refused_by_its_name(name):
    for place, field in enumerate(COMMANDS[name].fields):
        for wrong in NEVER:
            if isinstance(wrong, str) and field in TAKES_ANY_TEXT:
                continue
            if isinstance(wrong, bytes) and field in TAKES_ANY_BYTES:
                continue
            if field in ("resources",) and wrong == {"no such": 1}:
                continue
            if field in ("stamp", "silent_s", "ended_at") and isinstance(wrong, int):
                continue
            if field in ("compare", "success", "failure") and wrong == []:
                continue
            fields = list(GOOD[name])
            fields[place] = wrong
            with pytest.raises(RemoteProtocolError, match=field):
                check_command(Command(name, tuple(fields)))


@pytest.mark.parametrize("name", GOOD)
def test_a_field_more_or_less_is_refused(name):
    fields = tuple(GOOD[name])
    for wrong in ((*fields, None), fields[:-1] if fields else (None,)):
        with pytest.raises(RemoteProtocolError, match="takes the fields"):
            check_command(Command(name, wrong))


def test_an_unknown_command_is_refused():
    with pytest.raises(RemoteProtocolError, match="'DROP'"):
        check_command(Command("DROP"))


@pytest.mark.parametrize("table", ["nodes", "epochs", "answers", "names", "_meta", "new"])
def test_a_transaction_may_not_write_typed_or_unknown_tables(table):
    for operation in (["put", table, b"k", b"v"], ["delete", table, b"k"]):
        with pytest.raises(RemoteProtocolError, match="success"):
            check_command(Command("TRANSACT", ([], [operation], [])))


# ----------------------------------------------------------------------------------------- nodes


def test_each_join_gives_a_higher_incarnation(run, store):
    assert run("JOIN", *GOOD["JOIN"], now=5.0) == 1
    assert run("JOIN", *GOOD["JOIN"]) == 2
    assert run("LEAVE", NODE, 2) is True
    assert run("JOIN", *GOOD["JOIN"]) == 3
    record = NodeRecord.unpack(store.get("nodes", NODE).value)
    assert (record.epoch, record.state, record.resources) == (3, "alive", {"CPU": 2.0})


def test_only_the_living_incarnation_of_a_node_can_end(run, store):
    run("JOIN", *GOOD["JOIN"])
    run("JOIN", *GOOD["JOIN"])
    assert run("NODE_DIED", NODE, 1, "late news") is False
    assert run("NODE_DIED", NODE, 2, "news") is True
    assert run("LEAVE", NODE, 2) is False
    assert run("LEAVE", b"nobody!!", 1) is False
    assert NodeRecord.unpack(store.get("nodes", NODE).value).state == "dead"


def test_a_dead_node_takes_its_actors_names_and_jobs_with_it_and_no_others(run, store):
    run("JOIN", *GOOD["JOIN"])
    run("ACTOR_REGISTER", {"actor_id": ACTOR, "class_id": b"c", "name": "here"})
    run("ACTOR_REGISTER", {"actor_id": FOREIGN, "class_id": b"c", "name": "there"})
    run("JOB_START", {"job_id": DRIVER})
    run("JOB_START", {"job_id": b"elsedriv"})
    run("NODE_DIED", NODE, 1, "silence", now=9.0)
    here = ActorRecord.unpack(store.get("actors", ACTOR).value)
    assert here.state == "dead"
    assert "silence" in here.death_cause
    assert run("NAME_LOOKUP", "", "here") is None
    assert run("NAME_LOOKUP", "", "there") == FOREIGN
    rival = {"actor_id": b"elseelse" + bytes(8), "class_id": b"c", "name": "here"}
    # It may live on for the rest of its lease.
    assert run("ACTOR_REGISTER", rival) == b""
    assert run("NAMES_FREE", [b"elseelse"]) == 0
    assert run("NAMES_FREE", [NODE]) == 1
    assert run("ACTOR_REGISTER", rival) is None
    assert run("NAMES_FREE", [NODE]) == 0
    ended = JobRecord.unpack(store.get("jobs", DRIVER).value)
    assert (ended.state, ended.ended_at) == ("failed", 9.0)
    assert JobRecord.unpack(store.get("jobs", b"elsedriv").value).state == "running"


def test_a_dead_node_with_more_actors_than_one_transaction_holds_ends_whole(run, store):
    run("JOIN", *GOOD["JOIN"])
    overlay = Overlay(store)
    for number in range(4200):
        record = {"actor_id": DRIVER + number.to_bytes(8, "big"), "class_id": b"c"}
        overlay.write(apply(overlay, Command("ACTOR_REGISTER", (record,)), 0.0)[1])
    overlay.close()
    store.commit(overlay.changes)
    assert run("NODE_DIED", NODE, 1, "silence") is True
    states = {ActorRecord.unpack(one.value).state for _, one in store.scan("actors").entries}
    assert states == {"dead"}


def test_pruning_keeps_the_living_and_the_newest_dead(run, store, monkeypatch):
    monkeypatch.setattr(rules, "_KEEP_DEAD_ACTORS", 2)
    ids = [DRIVER + number.to_bytes(8, "big") for number in range(5)]
    for actor_id in ids:
        run("ACTOR_REGISTER", {"actor_id": actor_id, "class_id": b"c"})
    for actor_id in (ids[3], ids[1], ids[0], ids[2]):
        run("ACTOR_UPDATE", actor_id, {"state": "dead"})
    assert run("PRUNE") == 2
    assert [key for key, _ in store.scan("actors").entries] == [ids[0], ids[2], ids[4]]


# ---------------------------------------------------------------------------------------- actors


def test_a_name_belongs_to_one_actor_until_it_dies(run):
    other = DRIVER + b"\1" * 8
    assert run("ACTOR_REGISTER", {"actor_id": ACTOR, "class_id": b"c", "name": "a"}) is None
    assert run("ACTOR_REGISTER", {"actor_id": ACTOR, "class_id": b"c", "name": "a"}) is None
    assert run("ACTOR_REGISTER", {"actor_id": other, "class_id": b"c", "name": "a"}) == ACTOR
    assert run("ACTOR_LOOKUP", other) is None
    assert run("ACTOR_UPDATE", ACTOR, {"state": "dead", "death_cause": "first"}) == "dead"
    assert run("ACTOR_UPDATE", ACTOR, {"state": "dead", "death_cause": "again"}) == "dead"
    assert ActorRecord.unpack(run("ACTOR_LOOKUP", ACTOR)).death_cause == "first"
    assert run("ACTOR_REGISTER", {"actor_id": other, "class_id": b"c", "name": "a"}) is None
    with pytest.raises(GcsError, match="dead"):
        run("ACTOR_UPDATE", ACTOR, {"state": "alive"})


def test_a_dead_actor_releases_no_name_that_another_holds_by_now(run):
    run("ACTOR_REGISTER", {"actor_id": ACTOR, "class_id": b"c", "name": "a", "namespace": "n"})
    assert run("NAME_RELEASE", "n", "a", FOREIGN) is False
    assert run("NAME_RELEASE", "n", "a", ACTOR) is True
    assert run("NAME_CLAIM", "n", "a", FOREIGN) is None
    assert run("NAME_CLAIM", "n", "a", FOREIGN) is None
    assert run("NAME_CLAIM", "n", "a", ACTOR) == FOREIGN
    run("ACTOR_UPDATE", ACTOR, {"state": "dead"})
    assert run("NAME_LOOKUP", "n", "a") == FOREIGN
    assert run("NAME_LIST", "n", 10, b"") == [[["n", "a", FOREIGN]], None]
    assert run("NAME_LIST", "m", 10, b"") == [[], None]


def test_lists_go_on_where_a_page_ended(run):
    ids = [DRIVER + number.to_bytes(8, "big") for number in range(7)]
    for number, actor_id in enumerate(ids):
        state = "alive" if number % 2 else "pending"
        run("ACTOR_REGISTER", {"actor_id": actor_id, "class_id": b"c", "state": state})
    found, after = [], b""
    while after is not None:
        records, after = run("ACTOR_LIST", "alive", None, 2, after)
        found += [ActorRecord.unpack(record).actor_id for record in records]
    assert found == ids[1::2]


# ------------------------------------------------------------------------ functions, jobs, tables


def test_a_function_is_there_once_all_chunks_are_and_never_changes(run, store, monkeypatch):
    monkeypatch.setattr(rules, "CHUNK_BYTES_MAX", 4)
    code = b"abcdefghij"
    name = code_hash(code)
    with pytest.raises(GcsError, match="chunk 1"):
        run("FUNCTION_PUT", name, 10, b"abcd")
    assert run("FUNCTION_CHUNK", name, 1, b"xxxx") is True
    assert run("FUNCTION_CHUNK", name, 2, b"ij") is True
    with pytest.raises(GcsError, match="hash"):
        run("FUNCTION_PUT", name, 10, b"abcd")
    assert run("FUNCTION_CHUNK", name, 1, b"efgh") is True
    assert run("FUNCTION_CHUNK", name, 7, b"zz") is True
    assert run("FUNCTION_EXISTS", name) is False
    assert run("FUNCTION_PUT", name, 10, b"abcd") is True
    assert run("FUNCTION_PUT", name, 10, b"abcd") is False
    assert run("FUNCTION_CHUNK", name, 1, b"evil") is False
    assert run("FUNCTION_CHUNK", name, 9, b"evil") is False
    assert [run("FUNCTION_GET", name, index)[1] for index in range(3)] == [b"abcd", b"efgh", b"ij"]
    assert FunctionTable(store).get(name) == code
    with pytest.raises(GcsError, match="no chunk 3"):
        run("FUNCTION_GET", name, 3)


def test_nodes_and_jobs_are_listed_page_by_page(run):
    for number in range(3):
        run("JOIN", b"node%04d" % number, *GOOD["JOIN"][1:])
        run("JOB_START", {"job_id": b"jobs%04d" % number})
    for name, record in (("NODE_LIST", NodeRecord), ("JOB_LIST", JobRecord)):
        first, after = run(name, 2, b"")
        rest, end = run(name, 2, after)
        assert end is None
        assert [record.unpack(one).pack() for one in (*first, *rest)] == [*first, *rest]
        assert (len(first), len(rest)) == (2, 1)


def test_a_job_keeps_its_first_end(run):
    assert run("JOB_START", {"job_id": DRIVER}) is True
    assert run("JOB_START", {"job_id": DRIVER}) is False
    assert run("JOB_FINISH", DRIVER, "failed", 2.0, "x") == "failed"
    assert run("JOB_FINISH", DRIVER, "succeeded", 3.0, "y") == "failed"
    with pytest.raises(GcsError, match="not known"):
        run("JOB_FINISH", b"nobody!!", "failed", 2.0, "x")


def test_keys_and_values(run):
    assert run("KV_PUT", "n", b"k", b"1", False) is True
    assert run("KV_PUT", "n", b"k", b"2", False) is False
    assert run("KV_GET", "n", b"k") == b"1"
    assert run("KV_PUT", "n", b"k", b"2", True) is False
    assert run("KV_GET", "n", b"k") == b"2"
    assert run("KV_EXISTS", "m", b"k") is False
    run("KV_PUT", "n", b"k2", b"", True)
    run("KV_PUT", "n2", b"k3", b"", True)
    assert run("KV_KEYS", "n", b"k", 1, b"") == [[b"k"], b"k"]
    assert run("KV_KEYS", "n", b"k", 1, b"k") == [[b"k2"], None]
    assert run("KV_DELETE", "n", b"k") is True
    assert run("KV_DELETE", "n", b"k") is False
    with pytest.raises(GcsError, match="zero character"):
        run("KV_PUT", "a\0b", b"k", b"", True)


def test_a_page_ends_at_its_bytes_and_has_at_least_one_row(run, monkeypatch):
    monkeypatch.setattr(rules, "ANSWER_BYTES_MAX", 100)
    for number in range(4):
        run("KV_PUT", "", b"%d" % number, b"v" * 60 * (1 + number), True)
    after, sizes = b"", []
    while True:
        _, rows, more = run("RANGE", "kv", b"", 10, after)
        sizes.append(len(rows))
        if not more:
            break
        after = rows[-1][0]
    assert sizes == [1, 1, 1, 1]


def test_a_transaction_does_one_branch_whole(run):
    missing = [["kv", b"k", "missing", None]]
    put = [["put", "kv", b"k", b"1"], ["put", "groups", b"g", b"2"]]
    seen = [["get", "kv", b"k"], ["get", "kv", b"none"]]
    assert run("TRANSACT", missing, put, seen) == [True, []]
    assert run("TRANSACT", missing, put, seen) == [False, [[b"1", 1, 1], None]]
    revision = [["kv", b"k", "revision", 1]]
    assert run("TRANSACT", revision, [["delete", "kv", b"k"]], [])[0] is True
    assert run("GET", "kv", b"k") is None
    assert run("GET", "groups", b"g") == [b"2", 1, 1]
    with pytest.raises(GcsError, match="one key twice"):
        run("TRANSACT", [], [put[0], put[0]], [])
    with pytest.raises(GcsError, match="comparison"):
        run("TRANSACT", [["kv", b"k", "value", 7]], [], [])


def test_a_transaction_whose_answer_could_not_be_kept_is_refused(run, monkeypatch):
    run("KV_PUT", "", b"k", b"v" * 200, True)
    monkeypatch.setattr(rules, "ANSWER_BYTES_MAX", 100)
    with pytest.raises(GcsError, match="read large values with GET"):
        run("TRANSACT", [], [["get", "kv", b"\0k"], ["put", "kv", b"x", b""]], [])
    assert run("GET", "kv", b"x") is None
