"""Actors in the GCS: one living actor a name, whoever races for it, and death is for ever."""

import threading

import pytest

from zray.brokers.gcs.actor_table import ActorRecord, ActorTable, NameTaken
from zray.brokers.gcs.engine import LmdbStore
from zray.errors import GcsError


@pytest.fixture
def actors(tmp_path):
    with LmdbStore(tmp_path / "gcs") as store:
        yield ActorTable(store)


def record(number, name="", **fields):
    return ActorRecord(number.to_bytes(16, "big"), b"c" * 16, name=name, **fields)


def test_a_registered_actor_is_found_by_id_and_by_name(actors):
    counter = record(
        1,
        "counter",
        namespace="demo",
        job_id=b"job",
        detached=True,
        restarts_left=-1,
        options={"num_cpus": 1, "labels": ["a"]},
    )
    assert actors.register(counter) is None
    assert actors.get(counter.actor_id) == counter
    assert actors.get_by_name("counter", "demo") == counter
    assert actors.get_by_name("counter") is None
    assert actors.get(bytes(16)) is None


def test_a_name_that_is_taken_is_answered_with_its_holder_and_nothing_is_stored(actors):
    actors.register(record(1, "counter"))
    assert actors.register(record(2, "counter")) == NameTaken("counter", "", record(1).actor_id)
    assert actors.get(record(2).actor_id) is None
    assert actors.register(record(2, "counter", namespace="other")) is None


def test_a_request_that_is_repeated_changes_nothing(actors):
    actors.register(record(1, "counter"))
    actors.update(record(1).actor_id, state="alive")
    assert actors.register(record(1, "counter")) is None
    assert actors.get(record(1).actor_id).state == "alive"


def test_a_batch_gives_a_name_to_the_first_that_asks(actors):
    answers = actors.register_many([record(1, "a"), record(2, "a"), record(3), record(4, "b")])
    assert answers == [None, NameTaken("a", "", record(1).actor_id), None, None]
    assert [found.actor_id[-1] for found in actors.select()] == [1, 3, 4]


def test_concurrent_claims_of_a_name_have_one_winner(actors):
    ready = threading.Barrier(4)
    answers = {}

    def claim(number):
        ready.wait()
        answers[number] = [
            actors.register(record(100 * number + name, str(name))) for name in range(30)
        ]

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(30):
        winners = [number for number in answers if answers[number][name] is None]
        assert len(winners) == 1
        holder = record(100 * winners[0] + name).actor_id
        losers = {answers[number][name].actor_id for number in answers if number != winners[0]}
        assert losers == {holder}


def test_death_releases_the_name_in_the_same_step(actors):
    actors.register(record(1, "counter"))
    dead = actors.update(record(1).actor_id, state="dead", death_cause="killed")
    assert (dead.state, dead.death_cause) == ("dead", "killed")
    assert actors.get_by_name("counter") is None
    assert actors.register(record(2, "counter")) is None
    assert actors.get(record(1).actor_id) == dead


def test_the_dead_do_not_change_and_keep_their_first_cause(actors):
    actors.register(record(1))
    actors.update(record(1).actor_id, state="dead", death_cause="first")
    assert (
        actors.update(record(1).actor_id, state="dead", death_cause="second").death_cause == "first"
    )
    with pytest.raises(GcsError, match="is dead"):
        actors.update(record(1).actor_id, state="alive")


def test_the_second_death_of_an_actor_does_not_take_the_name_from_its_successor(actors):
    actors.register(record(1, "counter"))
    actors.update(record(1).actor_id, state="dead")
    actors.register(record(2, "counter"))
    actors.update(record(1).actor_id, state="dead")
    assert actors.get_by_name("counter").actor_id == record(2).actor_id


def test_an_update_that_makes_no_sense_is_refused(actors):
    with pytest.raises(GcsError, match="register it first"):
        actors.update(record(1).actor_id, state="alive")
    actors.register(record(1))
    with pytest.raises(GcsError, match="never change"):
        actors.update(record(1).actor_id, name="other")
    with pytest.raises(GcsError, match="not one of"):
        actors.update(record(1).actor_id, state="asleep")
    with pytest.raises(GcsError, match="zero"):
        actors.register(record(2, "a\0b"))


def test_concurrent_updates_of_different_fields_are_all_kept(actors):
    actors.register(record(1))

    def count(field):
        for value in range(1, 51):
            actors.update(record(1).actor_id, **{field: value})

    threads = [threading.Thread(target=count, args=(f,)) for f in ("incarnation", "worker_pid")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = actors.get(record(1).actor_id)
    assert (found.incarnation, found.worker_pid) == (50, 50)


def test_actors_are_selected_by_state_and_job(actors):
    actors.register_many([record(1, job_id=b"a"), record(2, job_id=b"b"), record(3, job_id=b"b")])
    actors.update(record(3).actor_id, state="alive")
    assert [found.actor_id[-1] for found in actors.select(job_id=b"b")] == [2, 3]
    assert [found.actor_id[-1] for found in actors.select(job_id=b"b", state="pending")] == [2]


def test_names_are_listed_by_namespace(actors):
    actors.register_many([record(1, "x", namespace="a"), record(2, "y", namespace="ab"), record(3)])
    assert actors.list_names() == [("a", "x", record(1).actor_id), ("ab", "y", record(2).actor_id)]
    assert actors.list_names("a") == [("a", "x", record(1).actor_id)]


def test_only_the_longest_dead_are_pruned(actors):
    actors.register_many([record(number) for number in range(1, 6)])
    for number in (4, 1, 3):
        actors.update(record(number).actor_id, state="dead")
    assert actors.prune(2) == 1
    assert actors.get(record(4).actor_id) is None
    assert [found.actor_id[-1] for found in actors.select(state="dead")] == [1, 3]
    assert actors.prune(2) == 0
