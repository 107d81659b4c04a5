"""The actor and task runtime inside a worker process, imported as zray.actors.

What    Everything that runs user code: it takes calls in order, runs them, sends results back.
Caller  zray.launch and the node, by module name: python -m zray.actors. Nothing imports this.
Never   imports zray.brokers, decides where something runs, allocates shared memory.
Spec    docs/explanation/architecture.md.

Map (P = pure machine: events in, commands out; S = shell: sockets, files, processes)

    __main__.py      S  argument parsing; starts the zygote
    zygote.py        S  has imported everything and made no socket; forks a worker in 2 ms
    guards.py        S  stops workers whose lease is over
    host.py          S  one per worker: the loop, what arrives, what the node asks, the end
    work.py          P  the queue: ranges of tasks, calls, actors to start and to end
    task_runner.py   S  tasks, in the main thread
    interrupts.py    S  KeyboardInterrupt in a cancelled task, and nowhere else
    actor_runner.py  S  actors: birth, calls in order, cancels, the end
    lives.py         P  which life of an actor a call is meant for
    instance.py      P  one actor: its methods, groups, limits
    threads.py       S  methods of threaded actors
    event_loop.py    S  methods of async actors, and their worker's main loop
    streams.py       S  generators, with back-pressure
    values.py        S  arguments in, outcomes out
    prefetch.py      S  arguments of tasks that wait, asked for ahead
    outbound.py      S  results on their way out
    events.py        S  what ran here past the node, on its way to the timeline
    running.py       S  what runs and waits here, for people who ask
    context.py       S  what runs now, per thread and coroutine

User code that runs here may call zray.get and .remote: the client of its process is the host's.
"""

# A user's own folder "actors" must never meet this one, and loading one file under two
# names would give every class in it a twin that isinstance does not recognise.
if __name__ != "zray.actors":
    raise ImportError(f"import zray.actors, not {__name__}: this folder is part of zray")
