"""The actor and task runtime inside a worker process, imported as zray.actors.

What    Everything that runs user code: it takes calls in order, runs them, sends results back.
Caller  zray.launch and the node, by module name: python -m zray.actors. Nothing imports this.
Never   imports zray.brokers, decides where something runs, allocates shared memory.
Spec    docs/explanation/architecture.md.

Map (P = pure machine: events in, commands out; S = shell: sockets, files, processes)

    __main__.py     S  argument parsing; starts the zygote
    zygote.py       S  has imported everything and made no socket; forks a worker in 2 ms
    host.py         S  one per worker: inbox, lifeline, the loop around the executor
    executor.py     S  runs user code: in order, in threads or on an event loop

User code that runs here may call zray.get and .remote: the client of its process is the host's.
"""

# A user's own folder "actors" must never meet this one, and loading one file under two
# names would give every class in it a twin that isinstance does not recognise.
if __name__ != "zray.actors":
    raise ImportError(f"import zray.actors, not {__name__}: this folder is part of zray")
