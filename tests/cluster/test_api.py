"""get, put, wait, map, cancel, kill, get_actor: what they return and what they refuse.

What    Every argument of the module-level functions, right and wrong; refs of maps; the node's
        word on itself; the timeline.
"""

import json
import os
import threading
import time

import numpy as np
import pytest

import zray
from tests.cluster.programs import PAUSE_S, Counter, double, wait_for
from tests.waiting import wait_until
from zray.api import runtime

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.node(namespace="api")]


@zray.remote
def fail(message):
    raise KeyError(message)


# -- get, put, wait --------------------------------------------------------------------------------


def test_get_takes_refs_of_every_origin_in_one_list():
    counter = Counter.remote()
    array = np.arange(100_000)
    refs = [double.remote(1), zray.put("x"), counter.add.remote(5), zray.put(array)]
    refs += [refs[0], double.map([1, 2, 3])[1]]
    one, text, five, got, again, four = zray.get(refs, timeout=20)
    assert (one, text, five, again, four) == (2, "x", 5, 2, 4)
    assert (got == array).all()


def test_get_of_an_empty_list_is_an_empty_list():
    assert zray.get([]) == []
    assert zray.get(()) == []


def test_get_with_timeout_zero_only_looks(tmp_path):
    ref = wait_for.remote(str(tmp_path / "go"))
    with pytest.raises(zray.exceptions.GetTimeoutError) as caught:
        zray.get(ref, timeout=0)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(zray.exceptions.GetTimeoutError, match="1 of 2"):
        zray.get([zray.put(1), ref], timeout=0)
    (tmp_path / "go").touch()
    assert zray.get(ref, timeout=20) == str(tmp_path / "go")
    assert zray.get(ref, timeout=0) == str(tmp_path / "go")


@pytest.mark.parametrize("wrong", [3, "ref", None, {"a": 1}, double, [3], [[]], b"x"])
def test_get_refuses_what_is_no_ref(wrong):
    with pytest.raises(TypeError, match="ObjectRef"):
        zray.get(wrong)


@pytest.mark.parametrize("call", [zray.get, lambda ref, timeout: zray.wait([ref], timeout=timeout)])
def test_a_timeout_is_a_number_of_seconds_that_is_not_negative(call):
    with pytest.raises(ValueError, match="0 or more"):
        call(zray.put(1), timeout=-1)
    with pytest.raises(TypeError, match="seconds"):
        call(zray.put(1), timeout="1")
    with pytest.raises(ValueError, match="0 or more"):
        call(zray.put(1), timeout=float("nan"))


def test_get_writable_gives_memory_of_its_own():
    ref = zray.put(np.zeros(100_000))
    mine = zray.get(ref, writable=True)
    mine[0] = 7
    assert zray.get(ref)[0] == 0


def test_put_of_a_ref_is_refused():
    with pytest.raises(TypeError, match="ref to a ref"):
        zray.put(zray.put(1))


def test_wait_splits_and_keeps_the_order(tmp_path):
    late = wait_for.remote(str(tmp_path / "go"))
    first, second = zray.put(1), double.remote(1)
    ready, waiting = zray.wait([late, first, second], num_returns=2, timeout=20)
    assert ready == [first, second]
    assert waiting == [late]
    assert zray.wait([late], timeout=0) == ([], [late])
    assert zray.wait([first, second, late], num_returns=1)[0] == [first]
    (tmp_path / "go").touch()
    assert zray.wait([late], timeout=20) == ([late], [])


def test_wait_counts_an_error_as_ready():
    ref = fail.remote("x")
    assert zray.wait([ref], timeout=20) == ([ref], [])


def test_wait_takes_generators():
    @zray.remote
    def count():
        yield 1
        yield 2

    generator = count.remote()
    assert zray.wait([generator], timeout=20)[0] == [generator]
    assert [zray.get(ref) for ref in generator] == [1, 2]


def test_wait_refuses_wrong_arguments():
    ref = zray.put(1)
    with pytest.raises(TypeError, match="list"):
        zray.wait(ref)
    with pytest.raises(TypeError, match="ObjectRefs"):
        zray.wait([1])
    with pytest.raises(ValueError, match="twice"):
        zray.wait([ref, ref])
    with pytest.raises(ValueError, match="num_returns"):
        zray.wait([ref], num_returns=2)
    with pytest.raises(ValueError, match="num_returns"):
        zray.wait([ref], num_returns=0)
    with pytest.raises(TypeError, match="num_returns"):
        zray.wait([ref], num_returns="1")
    with pytest.raises(TypeError, match="fetch_local"):
        zray.wait([ref], fetch_local=1)
    assert zray.wait([]) == ([], [])


# -- map -------------------------------------------------------------------------------------------


def test_the_refs_of_a_map_are_a_sequence_of_ordinary_refs():
    refs = double.map(range(5000))
    assert len(refs) == 5000
    assert zray.get(refs[17]) == 34
    assert zray.get(refs[-1]) == 9998
    assert zray.get(refs[10:13]) == [20, 22, 24]
    assert refs[17] is refs[17]
    assert zray.get(double.remote(refs[2048])) == 8192
    with pytest.raises(IndexError):
        refs[5000]
    ready, waiting = zray.wait(refs, num_returns=5000, timeout=20)
    assert len(ready) == 5000
    assert not waiting
    assert zray.get(list(refs)) == zray.get(refs) == [2 * i for i in range(5000)]


def test_a_map_goes_along_as_an_argument():
    @zray.remote
    def total(refs):
        return sum(zray.get(refs))

    assert zray.get(total.remote(double.map(range(10))), timeout=20) == 90
    assert zray.get(total.remote([*double.map(range(10))]), timeout=20) == 90


def test_map_takes_iterators_empty_ones_and_refs_among_its_items():
    assert zray.get(double.map(iter([1, 2]))) == [2, 4]
    assert zray.get(double.map(i for i in range(3))) == [0, 2, 4]
    assert zray.get(double.map([])) == []
    assert len(double.map([])) == 0
    assert zray.get(double.map([1, zray.put(2), double.remote(2)]), timeout=20) == [2, 4, 8]


def test_an_error_in_a_map_is_the_error_of_its_item_only():
    @zray.remote
    def inverse(x):
        return 1 / x

    refs = inverse.map([1, 0, 2, 0, 4])
    with pytest.raises(ZeroDivisionError):
        zray.get(refs, timeout=20)
    assert zray.get([refs[0], refs[2], refs[4]]) == [1, 0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        zray.get(refs[3])


def test_an_item_that_is_an_error_spoils_no_other_item():
    refs = double.map([1, fail.remote("spoiled"), 3])
    assert zray.get([refs[0], refs[2]], timeout=20) == [2, 6]
    with pytest.raises(KeyError, match="spoiled"):
        zray.get(refs[1], timeout=20)


def test_map_is_for_functions_of_one_argument_and_one_return():
    @zray.remote
    def add(x, y):
        return x + y

    with pytest.raises(TypeError, match="one argument"):
        add.map([1])
    with pytest.raises(zray.exceptions.OptionError, match="one return"):
        double.options(num_returns=2).map([1])


def test_get_of_a_map_that_is_late_says_how_many_are_missing(tmp_path):
    refs = wait_for.map([str(tmp_path / "go")] * 3)
    with pytest.raises(zray.exceptions.GetTimeoutError, match="3 of 3"):
        zray.get(refs, timeout=0.05)
    (tmp_path / "go").touch()
    assert len(zray.get(refs, timeout=20)) == 3


def test_a_map_dropped_before_it_is_done_leaves_nothing(tmp_path):
    current = runtime()

    def holds_nothing():
        zray.get(double.remote(0))
        current.flush()
        return not current.session.results and not current.session.tasks.batches

    wait_until(holds_nothing)
    refs = wait_for.map([str(tmp_path / "go")] * 8)
    kept = refs[3]
    del refs
    (tmp_path / "go").touch()
    assert zray.get(kept, timeout=20)
    del kept
    refs = double.map(range(10_000))
    zray.get(refs[5000], timeout=20)
    del refs
    wait_until(holds_nothing)


def test_ten_thousand_dropped_refs_leave_nothing():
    current = runtime()
    refs = [double.remote(i) for i in range(10_000)]
    del refs

    def holds_nothing():
        zray.get(double.remote(0))
        return len(current.session.results) <= 1 and not current.session.references.dropped

    wait_until(holds_nothing)


# -- cancel and kill -------------------------------------------------------------------------------


def test_a_queued_task_is_cancelled_before_it_begins(tmp_path):
    running = [wait_for.remote(str(tmp_path / "go")) for _ in range(2)]
    queued = [double.remote(i) for i in range(50)]
    for ref in queued:
        zray.cancel(ref)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(queued[-1], timeout=20)
    (tmp_path / "go").touch()
    zray.get(running, timeout=20)


def test_a_task_that_waits_for_its_arguments_is_cancelled(tmp_path):
    late = wait_for.remote(str(tmp_path / "go"))
    held = double.remote(late)
    zray.cancel(held)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(held, timeout=20)
    (tmp_path / "go").touch()
    assert zray.get(late, timeout=20)


def test_a_call_that_waits_for_its_arguments_is_cancelled_and_the_next_one_runs(tmp_path):
    late = wait_for.remote(str(tmp_path / "go"))
    counter = Counter.remote()
    held = counter.add.remote(late)
    after = counter.add.remote(1)
    zray.cancel(held)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(held, timeout=20)
    assert zray.get(after, timeout=20) == 1
    (tmp_path / "go").touch()
    zray.get(late, timeout=20)


def test_a_finished_task_keeps_its_value():
    ref = double.remote(4)
    assert zray.get(ref) == 8
    zray.cancel(ref)
    zray.cancel(ref, force=True)
    assert zray.get(ref) == 8


def test_force_ends_a_task_that_does_not_listen():
    @zray.remote
    def deaf():
        while True:
            try:
                while True:
                    time.sleep(PAUSE_S)
            except KeyboardInterrupt:
                continue

    ref = deaf.remote()
    with pytest.raises(zray.exceptions.GetTimeoutError):
        zray.get(ref, timeout=0.3)
    zray.cancel(ref, force=True)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(ref, timeout=20)


def test_cancel_refuses_what_it_cannot_cancel():
    counter = Counter.remote()
    with pytest.raises(TypeError, match="ObjectRef"):
        zray.cancel("ref")
    with pytest.raises(TypeError, match="kill"):
        zray.cancel(counter)
    with pytest.raises(TypeError, match="force"):
        zray.cancel(double.remote(1), force="yes")

    @zray.remote
    class Slow:
        def wait(self, path):
            while not os.path.exists(path):
                time.sleep(PAUSE_S)

    slow = Slow.remote()
    ref = slow.wait.remote("/nowhere")
    with pytest.raises(zray.exceptions.GetTimeoutError):
        zray.get(ref, timeout=0.3)
    with pytest.raises(ValueError, match="kill"):
        zray.cancel(ref, force=True)
    zray.kill(slow)


def test_kill_takes_handles_and_a_dead_actor_stays_dead():
    with pytest.raises(TypeError, match="handle"):
        zray.kill("counter")
    with pytest.raises(TypeError, match="cancel"):
        zray.kill(double.remote(1))
    counter = Counter.remote()
    zray.get(counter.add.remote())
    zray.kill(counter)
    zray.kill(counter)
    with pytest.raises(zray.exceptions.ActorDiedError):
        zray.get(counter.add.remote(), timeout=20)


def test_get_actor_finds_names_in_their_namespace():
    here = Counter.options(name="one").remote(1)
    there = Counter.options(name="one", namespace="elsewhere").remote(10)
    assert zray.get(zray.get_actor("one").add.remote()) == 2
    assert zray.get(zray.get_actor("one", "elsewhere").add.remote()) == 11
    assert zray.get_actor("one") == here
    with pytest.raises(zray.exceptions.NameTakenError, match="one"):
        Counter.options(name="one").remote()
    with pytest.raises(ValueError, match="nobody"):
        zray.get_actor("nobody")
    with pytest.raises(ValueError, match="not empty"):
        zray.get_actor("")
    assert zray.util.list_named_actors() == ["one"]
    assert zray.util.list_named_actors(all_namespaces=True) == [
        {"name": "one", "namespace": "api"},
        {"name": "one", "namespace": "elsewhere"},
    ]
    zray.kill(here)
    zray.kill(there)
    wait_until(lambda: not zray.util.list_named_actors(all_namespaces=True))


# -- what runs where -------------------------------------------------------------------------------


def test_the_base_class_makes_actors_and_plain_instances():
    class Tally(zray.Actor):
        def __init__(self, start):
            self.n = start

        @zray.method
        def add(self, k):
            self.n += k
            return self.n

    @zray.remote(max_restarts=1)
    class Fast(Tally):
        @zray.method(num_returns=2)
        def twice(self):
            return self.n, self.n

    assert Tally(3).add(4) == 7
    assert zray.get(Tally.remote(3).add.remote(4)) == 7
    assert zray.get(Tally.options(num_cpus=0).remote(1).add.remote(1)) == 2
    assert zray.get(Fast.remote(5).twice.remote()) == [5, 5]
    assert not hasattr(Tally.remote(1), "options")


def test_thirty_two_threads_share_one_session():
    counter = Counter.remote()
    problems = []

    def use(seed):
        try:
            for i in range(20):
                assert zray.get(double.remote(i)) == 2 * i
                assert zray.get(zray.put((seed, i))) == (seed, i)
                counter.add.remote(1)
            assert zray.get(double.map(range(50))) == [2 * i for i in range(50)]
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert not problems
    assert zray.get(counter.add.remote(0)) == 32 * 20


def test_a_module_of_zray_never_hides_a_function_of_the_same_name():
    import zray.actor
    import zray.remote_decorators
    import zray.trace

    assert callable(zray.remote)
    assert callable(zray.method)
    assert callable(zray.timeline)
    assert callable(zray.get_actor)


def test_the_timeline_is_a_chrome_trace(tmp_path):
    refs = [double.options(name=f"named-{i}").remote(i) for i in range(20)]
    zray.get(refs)
    zray.get(double.map(range(100)))

    def traced():
        spans = zray.timeline()
        return spans if any(span["name"] == "double" for span in spans) else None

    spans = wait_until(traced)
    for span in spans:
        assert {"ph", "name", "pid", "tid"} <= set(span)
        assert isinstance(span["tid"], int)
        if span["ph"] == "X":
            assert span["dur"] > 0
            assert span["ts"] > 1e15
            assert span["args"]["tasks"] >= 1
    assert {span["ph"] for span in spans} == {"M", "X", "i"}
    assert zray.timeline(str(tmp_path / "trace.json")) is None
    assert json.loads((tmp_path / "trace.json").read_text())
