"""A replica and its clients without sockets, on a network that only does what it is told."""

from __future__ import annotations

from zray.brokers.gcs.client import GcsSession
from zray.brokers.gcs.commands import Command
from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.replica import Replica


class Client:
    """A session, what it has sent that has not arrived, and what it was told."""

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.sent = []
        self.lost = []
        self.ids = 0
        self.session = GcsSession(
            send=self.send, new_id=self.new_id, now=world.now, on_lost=self.lost.append
        )
        self.is_connected = True

    def new_id(self):
        self.ids += 1
        return self.name.ljust(15, b"_") + bytes([self.ids])

    def send(self, frame):
        self.sent.append(frame)
        return True

    def start(self, name, *fields, timeout_s=30.0):
        got = []
        self.session.ask(Command(name, fields), lambda *done: got.append(done), timeout_s=timeout_s)
        return got

    def ask(self, name, *fields):
        got = self.start(name, *fields)
        self.session.flush()
        self.world.settle()
        ((result, error),) = got
        if error is not None:
            raise error
        return result

    def join(self, node):
        got = []
        self.session.join(
            node, lambda *done: got.append(done), addresses={}, resources={}, labels={}
        )
        self.session.flush()
        self.world.settle()
        ((incarnation, error),) = got
        assert error is None, error
        return incarnation


class World:
    """One replica and its clients, with a network that only does what it is told."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.options = options
        self.now = 100.0
        self.clients = {}
        self.coming = []
        self.takes = lambda peer: True
        self.lives = 0
        self.store = None
        self.open()

    def open(self):
        if self.store is not None:
            self.store.close(sync=False)
        self.lives += 1
        self.store = LmdbStore(self.folder, **self.options)
        self.replica = Replica(self.store, boot=b"boot%04d" % self.lives, now=self.now)

    def client(self, name=b"one"):
        self.clients[name] = Client(self, name)
        return self.clients[name]

    def post(self, peer, frame):
        if not self.takes(peer):
            return False
        self.coming.append((peer, frame))
        return True

    def run(self):
        self.replica.run(self.now, 1e9 + self.now, self.post)
        self.replica.check()

    def arrive(self, peer, frame):
        self.replica.received(peer, frame, self.now)

    def settle(self):
        """A good network: everything arrives, in order, until nothing is on its way."""
        for _ in range(1000):
            for client in self.clients.values():
                if client.is_connected:
                    client.session.flush()
                    sent, client.sent = client.sent, []
                    for frame in sent:
                        self.arrive(client.name, frame)
            self.run()
            coming, self.coming = self.coming, []
            for peer, frame in coming:
                if self.clients[peer].is_connected:
                    self.clients[peer].session.received(frame, self.now)
            if not coming and not any(
                client.sent for client in self.clients.values() if client.is_connected
            ):
                return
        raise AssertionError("the GCS and its clients never come to rest")

    def passes(self, seconds, step=0.05):
        """Time goes on, with everybody at work."""
        until = self.now + seconds
        while self.now < until:
            self.now += step
            for client in self.clients.values():
                client.session.tick(self.now)
                client.session.check()
            self.settle()

    def close(self):
        self.store.close(sync=False)


class Follower:
    """What a watch has told, put together."""

    def __init__(self):
        self.state = {}
        self.resets = 0
        self.revisions = []

    def __call__(self, update):
        if update.reset:
            self.state = {}
            self.resets += 1
        else:
            self.revisions += [change.revision for change in update.changes]
        for change in update.changes:
            if change.value is None:
                self.state.pop(change.key, None)
            else:
                self.state[change.key] = change.value
