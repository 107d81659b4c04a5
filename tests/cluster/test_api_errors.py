"""What a wrong program is told, at the line that is wrong.

What    Calls that don't fit, options, resources, values and functions that can't be sent, errors
        of tasks and actors as they reach the driver.
Never   accepts an error that does not name what is at fault.
"""

import threading
import time
import warnings

import numpy as np
import pytest

import zray
from zray import errors

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.node(resources={"licence": 1})]
PAUSE_S = 0.005


@zray.remote
def add(x, y=1, *, scale=1):
    return (x + y) * scale


@zray.remote
class Counter:
    def __init__(self, start, *, step=1):
        self.n = start
        self.step = step

    def add(self, k):
        self.n += k * self.step
        return self.n


def iter_forever():
    while True:
        yield 1


# -- calls that do not fit -------------------------------------------------------------------------


def test_remote_things_are_not_called_directly():
    with pytest.raises(TypeError, match=r"add\.remote"):
        add(1)
    with pytest.raises(TypeError, match=r"Counter\.remote"):
        Counter(1)
    with pytest.raises(TypeError, match=r"add\.remote"):
        Counter.remote(1).add(2)
    assert add.__wrapped__(1, 2) == 3
    assert Counter.__wrapped__(1).add(2) == 3


def test_arguments_that_do_not_fit_are_refused_where_the_call_is_made():
    for call in (
        lambda: add.remote(),
        lambda: add.remote(1, 2, 3),
        lambda: add.remote(1, z=2),
        lambda: add.remote(1, x=2),
        lambda: Counter.remote(),
        lambda: Counter.remote(1, 2),
        lambda: Counter.remote(1, stop=2),
    ):
        with pytest.raises(TypeError, match="argument"):
            call()
    assert zray.get(add.remote(1, scale=3)) == 6
    assert zray.get(add.remote(x=1)) == 2


def test_a_method_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="subtract"):
        Counter.remote(1).subtract


def test_what_is_remote_already_or_async_is_not_decorated():
    with pytest.raises(TypeError, match="remote already"):
        zray.remote(add)
    with pytest.raises(TypeError, match="async"):

        @zray.remote
        async def later():
            return 1

    with pytest.raises(TypeError):
        zray.remote(1, 2)
    with pytest.raises(TypeError, match="derive"):

        class Sub(Counter):
            pass


# -- options and resources -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("task", {"num_cpu": 1}, "num_cpus"),
        ("task", {"max_restarts": 1}, "max_restarts"),
        ("actor", {"max_retries": 1}, "max_retries"),
        ("task", {"num_cpus": -1}, "num_cpus"),
        ("task", {"num_returns": "dynamic"}, "streaming"),
        ("task", {"retry_exceptions": "all"}, "retry_exceptions"),
        ("actor", {"lifetime": "forever"}, "lifetime"),
        ("actor", {"recovery": "replay"}, "journal"),
        ("actor", {"get_if_exists": True}, "name"),
        ("task", {"placement_group": object()}, "placement"),
        ("task", {"runtime_env": {"conda": "x"}}, "env_vars"),
        ("task", {"speculate": True}, "speculate"),
        ("method", {"num_cpus": 1}, "num_cpus"),
    ],
)
def test_a_wrong_option_is_named(kind, options, named):
    take = {"task": add.options, "actor": Counter.options, "method": zray.method}[kind]
    with pytest.raises(errors.OptionError, match=named):
        take(**options)


def test_a_task_that_can_never_run_says_so_at_once():
    with pytest.raises(errors.TaskUnschedulableError, match="99 CPU") as caught:
        add.options(num_cpus=99).remote(1)
    assert caught.value.request == {"CPU": 99}
    assert caught.value.capacity["CPU"] == 2
    with pytest.raises(errors.ActorUnschedulableError, match="99 CPU"):
        Counter.options(num_cpus=99).remote(1)
    with pytest.raises(errors.TaskUnschedulableError, match="GPU"):
        add.options(num_gpus=1).remote(1)
    with pytest.raises(errors.UnknownResourceError, match="licence"):
        add.options(resources={"license": 1}).remote(1)
    with pytest.raises(errors.UnschedulableError, match="licence"):
        add.options(resources={"licence": 2}).map([1])


# -- what cannot be sent ---------------------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled_is_named():
    with pytest.raises(errors.SerializationError, match="lock"):
        add.remote({"settings": {"lock": threading.Lock()}})
    with pytest.raises(errors.SerializationError):
        Counter.remote(threading.Lock())
    with pytest.raises(errors.SerializationError):
        Counter.remote(1).add.remote(iter_forever())
    with pytest.raises(errors.SerializationError):
        add.map([1, threading.Lock()])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_closure_that_cannot_be_pickled_is_named():
    guard = threading.Lock()

    @zray.remote
    def guarded():
        with guard:
            return 1

    with pytest.raises(errors.SerializationError, match="guard"):
        guarded.remote()

    @zray.remote
    class Guarded:
        def use(self):
            return guard

    with pytest.raises(errors.SerializationError, match="guard"):
        Guarded.remote()


def test_a_huge_closure_is_warned_of_and_then_refused():
    large = np.ones(12 << 20, dtype=np.uint8)

    @zray.remote
    def uses():
        return int(large[0])

    with pytest.warns(UserWarning, match=r"zray\.put"):
        assert zray.get(uses.remote()) == 1

    huge = np.ones(101 << 20, dtype=np.uint8)

    @zray.remote
    def refused():
        return huge

    with pytest.raises(errors.SerializationError, match="100 MiB"):
        refused.remote()


def test_a_result_that_cannot_be_pickled_is_the_error_of_its_task_only():
    @zray.remote
    def make(fine):
        return fine if fine else threading.Lock()

    good, bad = make.remote(7), make.remote(0)
    with pytest.raises(errors.SerializationError, match=r"make|lock"):
        zray.get(bad, timeout=20)
    assert zray.get(good, timeout=20) == 7
    refs = make.map([1, 0, 2])
    assert zray.get([refs[0], refs[2]], timeout=20) == [1, 2]
    with pytest.raises(errors.SerializationError):
        zray.get(refs[1], timeout=20)


def test_an_exception_that_cannot_be_pickled_still_tells_its_story():
    class Stubborn(Exception):
        def __init__(self, code, lock):
            super().__init__("stubborn")
            self.code = code
            self.lock = lock

    @zray.remote
    def fail():
        raise Stubborn(3, threading.Lock())

    with pytest.raises(errors.TaskError, match="Stubborn"):
        zray.get(fail.remote(), timeout=20)


# -- errors of tasks and actors --------------------------------------------------------------------


class Refused(ValueError):
    """A user's own error."""

    def __init__(self, code):
        super().__init__(f"refused with {code}")
        self.code = code

    def __reduce__(self):
        return Refused, (self.code,)


def test_an_error_keeps_its_type_its_fields_and_the_remote_traceback():
    @zray.remote
    def outer(code):
        def inner_place():
            raise Refused(code)

        inner_place()

    for _ in range(2):
        with pytest.raises(Refused, match="refused with 7") as caught:
            zray.get(outer.remote(7), timeout=20)
        assert caught.value.code == 7
        assert isinstance(caught.value, errors.TaskError)
        assert "inner_place" in str(caught.value)
        assert "task_runner" not in str(caught.value)


def test_an_error_travels_through_tasks_that_take_it():
    @zray.remote
    def fail():
        raise Refused(1)

    @zray.remote
    def gets(refs):
        return zray.get(refs[0])

    ref = fail.remote()
    for victim in (
        add.remote(ref),
        add.remote(1, y=ref),
        gets.remote([ref]),
        Counter.remote(1).add.remote(ref),
        Counter.remote(ref).add.remote(1),
    ):
        with pytest.raises((Refused, errors.ActorDiedError)):
            zray.get(victim, timeout=20)


def test_an_actor_whose_init_fails_is_dead_and_says_why():
    @zray.remote
    class Broken:
        def __init__(self):
            raise Refused(9)

        def use(self):
            return 1

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(errors.ActorDiedError, match="refused with 9"):
            zray.get(broken.use.remote(), timeout=20)


def test_num_returns_that_do_not_match_are_the_error_of_the_task():
    @zray.remote(num_returns=2)
    def three():
        return 1, 2, 3

    with pytest.raises(ValueError, match="3 values"):
        zray.get(three.remote(), timeout=20)


def test_no_warning_is_given_for_a_program_that_is_right():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zray.get(add.remote(1)) == 2
        time.sleep(PAUSE_S)
