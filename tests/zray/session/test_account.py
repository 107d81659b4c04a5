"""What a session says of its objects, tasks and calls to people who ask what waits.

What    account.about() and account.held() in each state that a task or call passes through.
Never   opens a socket.
"""

from zray.protocol import outcome
from zray.protocol.ids import object_id
from zray.session import account
from zray.session.actors import ALIVE, ActorCall
from zray.session.session import Session

PROCESS, NODE, WORKER = b"process1", b"node----", b"worker-1"
ACTOR = object_id(PROCESS, 900)
SPEC = [b"hash", "work", {}, 1, 3, None, 0, {}, 0]


def new_session():
    session = Session(PROCESS, NODE, lambda _what, _reason: b"")
    task_class = session.tasks.declare(SPEC, shape=(), returns=1, max_retries=3)
    return session, task_class


def about(session, number):
    return account.about(session, object_id(PROCESS, number))


def test_a_task_is_gathered_then_the_nodes_then_ready():
    session, task_class = new_session()
    number = session.tasks.submit(task_class, b"", None)
    assert about(session, number) == {"state": "GATHERING", "name": "work"}
    session.flush()
    assert about(session, number) == {"state": "SUBMITTED", "name": "work", "first": number}
    session.tasks.results_arrived(number, 0, 1, [b"\x80value"], False)
    assert about(session, number) == {"state": "READY", "how": "a value"}
    session.results[number] = outcome.error(b"")
    assert about(session, number)["how"] == "error"


def test_a_task_without_its_arguments_names_them():
    session, task_class = new_session()
    awaited = session.tasks.submit(task_class, b"", None)
    session.flush()
    number = session.tasks.take_numbers()
    session.submit_held(task_class, number, b"", {awaited: [0]}, None)
    waits_for = [object_id(PROCESS, awaited)]
    said = {"name": "work", "actor": b"", "waits_for": waits_for}
    assert about(session, number) == {"state": "HELD", **said}
    assert account.held(session, 10) == [{"task": object_id(PROCESS, number), **said}]
    session.tasks.results_arrived(awaited, 0, 1, [b"\x80value"], False)
    session.after_arrival()
    assert account.held(session, 10) == []
    assert about(session, number)["state"] == "SUBMITTED"


def test_of_many_that_wait_a_bounded_number_is_named():
    session, task_class = new_session()
    awaited = session.tasks.submit(task_class, b"", None)
    session.flush()
    for _ in range(5):
        session.submit_held(task_class, session.tasks.take_numbers(), b"", {awaited: [0]}, None)
    assert len(account.held(session, 3)) == 3


def call(session, route, arguments=b""):
    number = session.tasks.take_numbers()
    session.actors.call(route, ActorCall(number, "rest@group", 1, arguments, None, 0))
    return number


def test_a_call_waits_for_its_actors_place_and_then_is_at_its_worker():
    session, _task_class = new_session()
    route = session.actors.route(ACTOR)
    first, second = call(session, route), call(session, route)
    assert about(session, first) == {"state": "WAITS_FOR_ACTOR", "name": "rest", "actor": ACTOR}
    session.actors.state_changed(ACTOR, ALIVE, WORKER, "ipc://w", 0, b"")
    said = about(session, second)
    assert (said["state"], said["worker"], said["ahead"]) == ("SENT", WORKER, 1)


def test_a_call_behind_one_without_arguments_names_that_one():
    session, _task_class = new_session()
    route = session.actors.route(ACTOR)
    first, second = call(session, route, None), call(session, route)
    said = about(session, second)
    assert said["state"] == "BEHIND"
    assert said["waits_for"] == [object_id(PROCESS, first)]


def test_what_nobody_here_has_heard_of_is_unknown():
    session, _task_class = new_session()
    assert about(session, 77) == {"state": "UNKNOWN"}
    assert account.about(session, b"somebody-elses--") == {"state": "UNKNOWN"}
