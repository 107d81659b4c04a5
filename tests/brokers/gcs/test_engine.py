"""The store on LMDB: transactions, scans, leases, watches, and what survives which failure."""

import os
import random
import subprocess
import sys
import textwrap
import threading

import pytest

from tests.waiting import wait_until
from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.store import Change, Compare, Delete, Entry, Get, Put, Transaction
from zray.errors import ForkedProcessError, GcsCompactedError, GcsError, GcsUnavailableError


@pytest.fixture
def store(tmp_path):
    with LmdbStore(tmp_path / "gcs") as opened:
        yield opened


def put(store, key, value, lease_id=0, table="kv"):
    return store.transact(Transaction((), (Put(table, key, value, lease_id),)))


def delete(store, key, table="kv"):
    return store.transact(Transaction((), (Delete(table, key),)))


def start(script, *arguments, root):
    """Start a Python process that can import zray, its output a pipe of lines."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


# ---------------------------------------------------------------------------------- transactions


def test_a_put_is_read_back_with_its_revisions(store):
    put(store, b"a", b"1")
    put(store, b"b", b"2")
    put(store, b"a", b"3")
    assert store.get("kv", b"a") == Entry(b"3", create_revision=1, modify_revision=3)
    assert store.get("kv", b"missing") is None
    assert store.get("no such table", b"a") is None
    assert store.revision == 3


def test_a_key_that_was_deleted_and_put_again_has_a_new_create_revision(store):
    put(store, b"a", b"1")
    delete(store, b"a")
    assert store.get("kv", b"a") is None
    put(store, b"a", b"2")
    assert store.get("kv", b"a") == Entry(b"2", create_revision=3, modify_revision=3)


@pytest.mark.parametrize(
    ("op", "operand", "holds_when_missing", "holds_for_entry"),
    [
        ("exists", None, False, True),
        ("missing", None, True, False),
        ("value", b"1", False, True),
        ("value", b"2", False, False),
        ("revision", 0, True, False),
        ("revision", 1, False, True),
        ("revision", 2, False, False),
    ],
)
def test_each_comparison_holds_exactly_when_it_should(
    store, op, operand, holds_when_missing, holds_for_entry
):
    put(store, b"a", b"1")
    for key, expected in ((b"missing", holds_when_missing), (b"a", holds_for_entry)):
        compare = Compare("kv", key, op, operand)
        assert store.transact(Transaction((compare,))).succeeded is expected


def test_one_failed_comparison_runs_the_failure_branch_alone(store):
    put(store, b"a", b"1")
    result = store.transact(
        Transaction(
            (Compare("kv", b"a", "exists"), Compare("kv", b"b", "exists")),
            (Put("kv", b"a", b"success"),),
            (Put("kv", b"c", b"failure"), Get("kv", b"a")),
        )
    )
    assert not result.succeeded
    assert result.previous == (None, Entry(b"1", 1, 1))
    assert store.get("kv", b"a").value == b"1"
    assert store.get("kv", b"c") == Entry(b"failure", 2, 2)


def test_the_changes_of_one_transaction_share_a_revision(store):
    result = store.transact(Transaction((), (Put("kv", b"a", b"1"), Put("names", b"b", b"2"))))
    assert result.revision == 1
    assert store.get("kv", b"a").modify_revision == 1
    assert store.get("names", b"b").modify_revision == 1


def test_what_changes_nothing_takes_no_revision(store):
    put(store, b"a", b"1")
    assert delete(store, b"missing").revision == 1
    assert store.transact(Transaction((), (Get("kv", b"a"),))).revision == 1
    failed = Transaction((Compare("kv", b"a", "missing"),), (Put("kv", b"a", b"2"),))
    assert store.transact(failed).revision == 1
    assert store.revision == 1


def test_transactions_of_a_batch_see_those_before_them(store):
    claim = [
        Transaction(
            (Compare("kv", b"k", "missing"),), (Put("kv", b"k", b"%d" % n),), (Get("kv", b"k"),)
        )
        for n in range(3)
    ]
    results = store.transact_many(claim)
    assert [result.succeeded for result in results] == [True, False, False]
    assert results[2].previous == (Entry(b"0", 1, 1),)
    assert [result.revision for result in results] == [1, 1, 1]


def test_a_batch_is_one_commit(store):
    before = store.statistics().commits
    store.transact_many([Transaction((), (Put("kv", b"%d" % n, b""),)) for n in range(100)])
    assert store.statistics().commits == before + 1
    assert store.revision == 100


def test_concurrent_claims_of_one_key_have_one_winner(store):
    ready = threading.Barrier(4)
    winners = []

    def claim(who):
        ready.wait()
        for name in range(50):
            key = b"%d" % name
            transaction = Transaction((Compare("kv", key, "missing"),), (Put("kv", key, who),))
            if store.transact(transaction).succeeded:
                winners.append((key, who))

    threads = [threading.Thread(target=claim, args=(b"%d" % who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 50
    assert {key: store.get("kv", key).value for key, _ in winners} == dict(winners)


# ----------------------------------------------------------------------------------------- scans


def test_a_scan_returns_a_prefix_in_key_order(store):
    for key in (b"b2", b"a", b"b1", b"c", b"b"):
        put(store, key, key)
    snapshot = store.scan("kv", b"b")
    assert [key for key, _ in snapshot.entries] == [b"b", b"b1", b"b2"]
    assert (snapshot.revision, snapshot.more) == (5, False)
    assert len(store.scan("kv").entries) == 5
    assert store.scan("kv", b"d").entries == ()
    assert store.scan("no such table").entries == ()


def test_a_limited_scan_is_continued_after_its_last_key(store):
    for number in range(10):
        put(store, b"k%d" % number, b"")
    seen, after = [], b""
    while True:
        snapshot = store.scan("kv", b"k", 4, after=after)
        seen.append([key for key, _ in snapshot.entries])
        if not snapshot.more:
            break
        after = seen[-1][-1]
    assert [len(part) for part in seen] == [4, 4, 2]
    assert [key for part in seen for key in part] == [b"k%d" % number for number in range(10)]


# ---------------------------------------------------------------------------------------- leases


def test_the_keys_of_a_lease_go_with_it(store):
    lease = store.grant_lease(5.0, now=100.0)
    put(store, b"bound", b"1", lease)
    put(store, b"free", b"2")
    assert store.expire_leases(104.9) == ()
    changes = store.expire_leases(105.0)
    assert changes == (Change(3, "kv", b"bound", None, create_revision=1),)
    assert [key for key, _ in store.scan("kv").entries] == [b"free"]
    assert store.expire_leases(1000.0) == ()


def test_a_lease_kept_alive_gets_its_full_time_again(store):
    lease = store.grant_lease(5.0, now=100.0)
    put(store, b"bound", b"1", lease)
    assert store.keep_alive(lease, 104.0) == 109.0
    assert store.expire_leases(108.9) == ()
    assert len(store.expire_leases(109.0)) == 1


def test_a_lease_that_ended_is_refused_everywhere(store):
    lease = store.grant_lease(5.0, now=0.0)
    store.revoke_lease(lease)
    with pytest.raises(GcsError, match="grant a new one"):
        store.keep_alive(lease, 1.0)
    with pytest.raises(GcsError, match="grant a new one"):
        store.revoke_lease(lease)
    with pytest.raises(GcsError, match="grant a new one"):
        store.transact_many(
            [
                Transaction((), (Put("kv", b"a", b""),)),
                Transaction((), (Put("kv", b"b", b"", lease),)),
            ]
        )
    assert store.revision == 0


def test_a_key_put_again_without_the_lease_outlives_it(store):
    first, second = store.grant_lease(5.0, now=0.0), store.grant_lease(50.0, now=0.0)
    for key in (b"freed", b"moved", b"deleted"):
        put(store, key, b"1", first)
    put(store, b"freed", b"2")
    put(store, b"moved", b"2", second)
    delete(store, b"deleted")
    put(store, b"deleted", b"2")
    assert store.expire_leases(10.0) == ()
    assert store.get("kv", b"deleted").value == b"2"
    assert store.get("kv", b"freed").value == b"2"
    assert [change.key for change in store.expire_leases(50.0)] == [b"moved"]


def test_after_a_restart_every_lease_has_its_full_time_again(tmp_path):
    with LmdbStore(tmp_path) as store:
        lease = store.grant_lease(5.0, now=100.0)
        put(store, b"bound", b"1", lease)
    with LmdbStore(tmp_path) as store:
        assert store.expire_leases(7.0) == ()
        assert store.expire_leases(11.9) == ()
        assert [change.key for change in store.expire_leases(12.0)] == [b"bound"]
        assert store.grant_lease(5.0, now=12.0) > lease
    with LmdbStore(tmp_path) as store, pytest.raises(GcsError):
        store.keep_alive(lease, 0.0)


# --------------------------------------------------------------------------------------- watches


def test_a_watch_sees_each_change_of_its_range_once_and_in_order(store):
    put(store, b"a1", b"before")
    watch = store.watch("kv", b"a")
    put(store, b"a1", b"1")
    put(store, b"b", b"other prefix")
    put(store, b"a1", b"other table", table="names")
    delete(store, b"a1")
    assert watch.events() == [
        Change(2, "kv", b"a1", b"1", create_revision=1),
        Change(5, "kv", b"a1", None, create_revision=1),
    ]
    assert watch.events() == []


def test_a_watch_from_the_revision_after_a_scan_has_no_gap(store):
    put(store, b"a", b"1")
    snapshot = store.scan("kv")
    put(store, b"b", b"2")
    watch = store.watch("kv", from_revision=snapshot.revision + 1)
    put(store, b"c", b"3")
    assert [change.key for change in watch.events()] == [b"b", b"c"]


def test_watching_from_a_compacted_revision_says_to_scan_first(store):
    for number in range(5):
        put(store, b"a", b"%d" % number)
    store.compact(3)
    assert store.compacted_revision == 3
    with pytest.raises(GcsCompactedError, match="scan") as caught:
        store.watch("kv", from_revision=3)
    assert caught.value.oldest_revision == 4
    assert [change.revision for change in store.watch("kv", from_revision=4).events()] == [4, 5]
    assert store.get("kv", b"a").value == b"4"


def test_the_future_cannot_be_compacted(store):
    put(store, b"a", b"1")
    with pytest.raises(GcsError, match="future"):
        store.compact(2)


def test_what_is_older_than_the_opening_is_compacted(tmp_path):
    with LmdbStore(tmp_path) as store:
        put(store, b"a", b"1")
    with LmdbStore(tmp_path) as store:
        with pytest.raises(GcsCompactedError):
            store.watch("kv", from_revision=1)
        watch = store.watch("kv", from_revision=2)
        put(store, b"a", b"2")
        assert [change.value for change in watch.events()] == [b"2"]


def test_a_watch_that_is_too_slow_is_told_so(tmp_path):
    with LmdbStore(tmp_path, history_len_max=8) as store:
        watch = store.watch("kv")
        for number in range(9):
            put(store, b"a", b"%d" % number)
        with pytest.raises(GcsCompactedError, match="behind"):
            watch.events()


def test_the_memory_of_the_history_is_bounded(tmp_path):
    with LmdbStore(tmp_path, history_bytes_max=100_000) as store:
        for _ in range(50):
            put(store, b"a", bytes(10_000))
            assert store.statistics().history_bytes <= 100_000
        assert store.watch("kv", from_revision=store.revision).events()


# ------------------------------------------------------------------------- opening and surviving


def test_a_store_opened_again_has_all_it_had(tmp_path):
    with LmdbStore(tmp_path, durability="disk") as store:
        put(store, b"a", b"1")
        put(store, b"b", b"2", table="names")
    with LmdbStore(tmp_path, durability="disk") as store:
        assert store.revision == 2
        assert store.get("kv", b"a") == Entry(b"1", 1, 1)
        assert put(store, b"a", b"3").revision == 3


def test_a_directory_that_is_open_is_refused_and_the_message_names_the_pid(tmp_path):
    with LmdbStore(tmp_path), pytest.raises(GcsUnavailableError, match=f"pid {os.getpid()};"):
        LmdbStore(tmp_path)
    LmdbStore(tmp_path).close()


HOLDER = """
    import sys
    from zray.brokers.gcs.engine import LmdbStore
    store = LmdbStore(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_directory_open_elsewhere_is_free_when_its_holder_is_killed(tmp_path, pytestconfig):
    with start(HOLDER, tmp_path, root=pytestconfig.rootpath) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(GcsUnavailableError, match=f"pid {holder.pid};"):
            LmdbStore(tmp_path)
        holder.kill()
        holder.wait()
    LmdbStore(tmp_path).close()


WRITER = """
    import sys
    from zray.brokers.gcs.engine import LmdbStore
    from zray.brokers.gcs.store import Put, Transaction
    store = LmdbStore(sys.argv[1], durability=sys.argv[2])
    lease = store.grant_lease(5.0, 0.0)
    number = store.revision
    while True:
        number += 1
        value = b"%d" % number * 50
        key = b"%d" % (number % 97)
        puts = Put("left", key, value), Put("right", key, value), Put("bound", b"k", value, lease)
        revision = store.transact(Transaction((), puts)).revision
        print(revision, flush=True)
"""


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_kill_minus_nine_at_any_moment_loses_nothing_that_was_acknowledged(
    tmp_path, durability, pytestconfig
):
    acknowledged = 0
    for life in range(4):
        with start(WRITER, tmp_path, durability, root=pytestconfig.rootpath) as writer:
            for _ in range(random.Random(life).randrange(1, 300)):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
            # Lines that were in the pipe are acknowledgements too.
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split("\n")[:-1])])
        with LmdbStore(tmp_path, durability=durability) as store:
            assert store.revision >= acknowledged
            left, right = store.scan("left"), store.scan("right")
            assert left.entries == right.entries
            assert max(entry.modify_revision for _, entry in left.entries) == store.revision
            store.expire_leases(0.0)
            assert [change.key for change in store.expire_leases(5.0)] == [b"k"]


def test_a_forked_child_cannot_use_the_store_and_does_the_parent_no_harm(tmp_path):
    with LmdbStore(tmp_path) as store:
        put(store, b"a", b"1")
        pid = os.fork()
        if pid == 0:
            outcome = 1
            try:
                store.close()
                for use in (
                    lambda: store.get("kv", b"a"),
                    lambda: put(store, b"a", b"child"),
                    store.statistics,
                ):
                    with pytest.raises(ForkedProcessError, match="forked child"):
                        use()
                outcome = 0
            finally:
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        put(store, b"a", b"2")
        assert store.get("kv", b"a") == Entry(b"2", 1, 2)


FORKING = """
    import os, sys
    from zray.brokers.gcs.engine import LmdbStore
    from zray.brokers.gcs.store import Put, Transaction
    store = LmdbStore(sys.argv[1])
    for number in range(20):
        store.transact(Transaction((), (Put("kv", b"%d" % number, bytes(5000)),)))
        if os.fork() == 0:
            sys.exit()
        os.wait()
    assert len(store.scan("kv").entries) == 20
"""


def test_a_forked_child_that_ends_in_order_closes_nothing_of_the_parent(tmp_path, pytestconfig):
    with start(FORKING, tmp_path, root=pytestconfig.rootpath) as process:
        assert process.wait() == 0
    with LmdbStore(tmp_path) as store:
        assert store.revision == 20


def test_a_forked_child_does_not_keep_the_directory_locked(tmp_path):
    store = LmdbStore(tmp_path)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    store.close()
    # The child drops its copy of the lock in a hook that may run a moment later.
    wait_until(lambda: opens(tmp_path), what="the directory to be free")
    os.close(write_end)
    os.waitpid(pid, 0)


def opens(path):
    try:
        LmdbStore(path).close()
    except GcsUnavailableError:
        return False
    return True


def test_a_closed_store_says_so_and_may_be_closed_again(tmp_path):
    store = LmdbStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(GcsUnavailableError, match="closed"):
        store.get("kv", b"a")


def test_a_full_map_refuses_the_change_whole_and_stays_usable(tmp_path):
    with LmdbStore(tmp_path, map_bytes=1 << 20) as store:
        put(store, b"small", b"1")
        two = Transaction((), (Put("kv", b"small", b"2"), Put("kv", b"big", bytes(2 << 20))))
        watch = store.watch("kv")
        with pytest.raises(GcsUnavailableError, match="map_bytes"):
            store.transact(two)
        assert store.get("kv", b"small") == Entry(b"1", 1, 1)
        assert watch.events() == []
        assert put(store, b"small", b"3").revision == 2


FULL_DISK = """
    import resource, sys
    from zray.brokers.gcs.engine import LmdbStore
    from zray.brokers.gcs.store import Put, Transaction
    from zray.errors import GcsUnavailableError
    store = LmdbStore(sys.argv[1], durability="disk")
    store.transact(Transaction((), (Put("kv", b"a", b"1"),)))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        store.transact(Transaction((), (Put("kv", b"a", b"2"), Put("kv", b"big", bytes(4 << 20)))))
    except GcsUnavailableError as error:
        assert "room on the disk" in str(error), error
    else:
        sys.exit("the disk took more than its limit")
    assert store.get("kv", b"a").value == b"1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert store.transact(Transaction((), (Put("kv", b"a", b"3"),))).revision == 2
    store.close()
    assert LmdbStore(sys.argv[1]).get("kv", b"a").value == b"3"
"""


def test_a_full_disk_refuses_the_change_whole_and_the_store_recovers(tmp_path, pytestconfig):
    with start(FULL_DISK, tmp_path, root=pytestconfig.rootpath) as process:
        assert process.wait() == 0


def test_a_flipped_bit_in_a_value_is_noticed(tmp_path):
    with LmdbStore(tmp_path) as store:
        put(store, b"a", b"unmistakable")
    data = tmp_path / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"unmistakable", b"unmistakaple"))
    with LmdbStore(tmp_path) as store:
        with pytest.raises(GcsError, match="checksum"):
            store.get("kv", b"a")
        with pytest.raises(GcsError, match="checksum"):
            store.scan("kv")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"\xff" * 8192 + content[8192:],
        lambda content: content[:8192],
        lambda content: content[:100],
    ],
    ids=["overwritten head", "cut to its head", "cut inside its head"],
)
def test_a_damaged_file_is_a_typed_error_that_says_what_to_do(tmp_path, damage):
    with LmdbStore(tmp_path) as store:
        put(store, b"a", bytes(20_000))
    data = tmp_path / "data.mdb"
    data.write_bytes(damage(data.read_bytes()))
    with pytest.raises(GcsError, match="Move the directory away"):
        LmdbStore(tmp_path)
    # The lock must not outlive the failed opening.
    data.unlink()
    LmdbStore(tmp_path).close()


def test_a_store_that_was_not_synced_before_the_machine_went_down_is_not_trusted(tmp_path):
    store = LmdbStore(tmp_path)
    put(store, b"a", b"1")
    store.close(sync=False)
    LmdbStore(tmp_path).close(sync=False)
    (tmp_path / "unsynced").write_text("the boot before this one")
    with pytest.raises(GcsError, match="machine went down"):
        LmdbStore(tmp_path)


def test_a_store_that_was_closed_in_order_is_trusted_after_a_reboot(tmp_path):
    LmdbStore(tmp_path).close()
    assert not (tmp_path / "unsynced").exists()


def test_a_directory_that_cannot_be_made_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GcsUnavailableError, match="give a directory"):
        LmdbStore(tmp_path / "file" / "gcs")


def test_a_backup_opens_as_a_store_of_its_own(store, tmp_path):
    put(store, b"a", b"1")
    store.backup(tmp_path / "copy")
    put(store, b"a", b"2")
    with LmdbStore(tmp_path / "copy") as copy:
        assert (copy.get("kv", b"a"), copy.revision) == (Entry(b"1", 1, 1), 1)


def test_statistics_count_entries_by_table(store):
    put(store, b"a", b"1")
    put(store, b"b", b"1")
    put(store, b"a", b"1", table="names")
    store.sync()
    assert store.statistics().entries == {"kv": 2, "names": 1}
