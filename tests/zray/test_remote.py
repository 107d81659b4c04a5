"""Remote functions and actor classes before any node is there.

What    Decorating, options, refusals, pickling: none of it starts zray.
Never   starts a node: each test checks that none was.
"""

import inspect
import pickle
from math import inf

import cloudpickle
import pytest

import zray
from zray import errors
from zray.actor import ActorClass
from zray.remote_function import RemoteFunction, positional


@pytest.fixture(autouse=True)
def no_node():
    yield
    assert not zray.is_initialized()


def test_a_remote_function_looks_like_its_function():
    @zray.remote
    def work(x):
        """Do it."""
        return x

    assert isinstance(work, RemoteFunction)
    assert work.__name__ == "work"
    assert work.__doc__ == "Do it."
    assert work.__module__ == __name__
    assert inspect.unwrap(work)(3) == 3


def test_options_make_a_new_function_and_leave_the_old_one():
    @zray.remote(num_cpus=2)
    def work():
        return 1

    other = work.options(num_cpus=1, name="other")
    assert work._options.num_cpus == 2
    assert other._options.num_cpus == 1
    assert "other" in repr(other)
    assert other._code is work._code, "its bytes travel once"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: 0, (0, 0)),
        (lambda x, y=1: 0, (1, 2)),
        (lambda *x: 0, (0, inf)),
        (lambda x, /, *y, z=1: 0, (1, inf)),
        (lambda x, *, z=1: 0, (1, 1)),
    ],
)
def test_the_number_of_positional_arguments_is_known(function, expected):
    assert positional(function) == expected


def test_a_keyword_without_default_sends_every_call_to_the_slow_check():
    least, most = positional(lambda x, *, z: 0)
    assert least > most


def test_a_builtin_that_hides_its_signature_takes_anything():
    assert positional(dict.fromkeys)[0] >= 0
    assert zray.remote(max) is not None


def test_decorating_takes_one_function_or_options_only():
    with pytest.raises(TypeError):
        zray.remote(len, max)
    with pytest.raises(TypeError):
        zray.remote(3)
    with pytest.raises(errors.OptionError, match="keyword"):
        zray.method(3)
    with pytest.raises(errors.OptionError, match="nam_cpus"):
        zray.remote(nam_cpus=1)(len)


def test_a_class_without_the_base_is_wrapped_and_one_with_it_stays_a_type():
    @zray.remote
    class Plain:
        pass

    @zray.remote(num_cpus=1)
    class Derived(zray.Actor):
        @zray.method
        def value(self):
            return 4

    assert isinstance(Plain, ActorClass)
    assert isinstance(Derived, type)
    assert Derived().value() == 4
    assert Derived.options(num_cpus=2)._options.num_cpus == 2

    class Further(Derived):
        pass

    assert Further.options()._options.num_cpus is None, "options are not inherited"
    assert Derived.options()._options.num_cpus == 1


def test_a_class_that_derives_from_a_wrapped_one_is_told_what_to_do():
    @zray.remote
    class Plain:
        pass

    with pytest.raises(TypeError, match=r"zray\.Actor"):

        class Sub(Plain):
            pass


def test_remote_things_are_pickled_by_what_they_wrap():
    @zray.remote(num_cpus=3)
    def work(x):
        return x + 1

    @zray.remote
    class Derived(zray.Actor):
        def value(self):
            return 4

    again = pickle.loads(cloudpickle.dumps(work))
    assert again.__wrapped__(1) == 2
    assert again._options == work._options
    derived = pickle.loads(cloudpickle.dumps(Derived))
    assert derived().value() == 4


def test_names_of_ray_that_are_missing_say_why():
    with pytest.raises(AttributeError, match="core only"):
        zray.tune
    with pytest.raises(AttributeError, match="no_such_name"):
        zray.no_such_name
    assert "remote" in dir(zray)
