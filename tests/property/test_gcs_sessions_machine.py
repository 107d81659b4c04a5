"""Exactly once: two sessions and a GCS, over a network and crashes that do anything."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.brokers.gcs.gcs_world import Follower, World
from zray.brokers.gcs.commands import Command


class BadNetwork(RuleBasedStateMachine):
    """Two clients, a network that loses, repeats and reorders, and a GCS that crashes.

    Each client counts keys up by comparing: a command that was lost, done twice or done out of
    order breaks its chain. Both contend for names, and one follows everything by a watch.
    """

    @initialize()
    def begin(self):
        self.folder = tempfile.mkdtemp(prefix="gcs")
        self.world = World(self.folder, history_len_max=60)
        self.clients = [self.world.client(b"one"), self.world.client(b"two")]
        self.counts = Counter()
        self.done = Counter()
        self.claims = {}
        self.winners = {}
        self.acknowledged = {}
        self.follower = Follower()
        self.clients[1].session.watch("kv", b"", self.follower)

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            self.heal()
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    def heal(self):
        self.world.takes = lambda peer: True
        self.world.passes(12.0, step=0.25)
        assert self.done == self.counts, "an ask without an answer, or with two"
        for key, count in self.counts.items():
            assert self.world.store.get("kv", key).value == b"%d" % count
        for name, answers in self.claims.items():
            assert len(answers) == 2
            assert sorted(answers.values(), key=bool)[0] is None, "nobody holds the name"
            holder = next(who for who, answer in answers.items() if answer is None)
            assert set(answers.values()) == {None, holder}
            assert self.world.store.get("names", b"n\0" + name.encode()).value == holder
        expected = {key: entry.value for key, entry in self.world.store.scan("kv").entries}
        assert self.follower.state == expected
        assert not any(client.lost for client in self.clients)

    @rule(which=st.integers(0, 1), key=st.sampled_from((b"a", b"b")), times=st.integers(1, 3))
    def count_up(self, which, key, times):
        client = self.clients[which]
        place = key + client.name
        for _ in range(times):
            before = self.counts[place]
            self.counts[place] += 1
            compare = ["kv", place, "value", b"%d" % before]
            if not before:
                compare = ["kv", place, "missing", None]
            put_it = ["put", "kv", place, b"%d" % (before + 1)]

            def done(result, error, place=place, before=before):
                assert error is None, error
                assert result[0] is True, f"{place}: {before} was lost, repeated or early"
                self.done[place] += 1
                self.acknowledged[place] = before + 1

            client.session.ask(Command("TRANSACT", ([compare], [put_it], [])), done)

    @rule(which=st.integers(0, 1))
    def read_back(self, which):
        client = self.clients[which]
        place = b"a" + client.name
        least = self.counts[place]

        def done(result, error):
            assert error is None
            assert int(result[0] if result else 0) >= least, "a read before the writes before it"

        client.session.ask(Command("GET", ("kv", place)), done)

    @rule(name=st.sampled_from(("x", "y", "z")))
    def contend(self, name):
        if name in self.claims:
            return
        self.claims[name] = {}
        for client in self.clients:
            holder = client.name.ljust(16, b"_")

            def done(result, error, holder=holder):
                assert error is None
                assert holder not in self.claims[name], "answered twice"
                self.claims[name][holder] = result

            client.session.ask(Command("NAME_CLAIM", ("n", name, holder)), done)

    @rule(which=st.integers(0, 1))
    def flush(self, which):
        self.clients[which].session.flush()

    @rule(seconds=st.sampled_from((0.05, 0.3, 1.0)))
    def time_passes(self, seconds):
        self.world.now += seconds
        for client in self.clients:
            client.session.tick(self.world.now)

    def pick(self, data, items, keep):
        place = data.draw(st.integers(0, len(items) - 1))
        return items[place] if keep else items.pop(place)

    @precondition(lambda self: any(client.sent for client in self.clients))
    @rule(data=st.data(), twice=st.booleans())
    def arrives(self, data, twice):
        client = data.draw(st.sampled_from([one for one in self.clients if one.sent]))
        self.world.arrive(client.name, self.pick(data, client.sent, twice))

    @precondition(lambda self: self.world.coming)
    @rule(data=st.data(), twice=st.booleans())
    def is_answered(self, data, twice):
        peer, frame = self.pick(data, self.world.coming, twice)
        self.world.clients[peer].session.received(frame, self.world.now)

    @precondition(lambda self: any(client.sent for client in self.clients))
    @rule(data=st.data())
    def is_lost(self, data):
        client = data.draw(st.sampled_from([one for one in self.clients if one.sent]))
        self.pick(data, client.sent, False)

    @precondition(lambda self: self.world.coming)
    @rule(data=st.data())
    def answer_is_lost(self, data):
        self.pick(data, self.world.coming, False)

    @rule()
    def commits(self):
        self.world.run()

    @rule(takes=st.booleans())
    def network_is_full(self, takes):
        self.world.takes = lambda peer: takes

    @rule()
    def everything_works_for_a_moment(self):
        self.world.takes = lambda peer: True
        self.world.settle()

    @rule(after_commit=st.booleans(), on_its_way=st.booleans())
    def crashes(self, after_commit, on_its_way):
        """Before the commit, or between it and the answers; what was sent may still arrive."""
        before = list(self.world.coming)
        if after_commit:
            self.world.run()
        if not on_its_way:
            self.world.coming = before if after_commit else []
        self.world.open()
        for place, count in self.acknowledged.items():
            assert int(self.world.store.get("kv", place).value) >= count, "lost after its answer"

    @invariant()
    def holds(self):
        if hasattr(self, "world"):
            for client in self.clients:
                client.session.check()


TestBadNetwork = BadNetwork.TestCase
TestBadNetwork.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
