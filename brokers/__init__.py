"""The node process and the tables of the GCS, imported as zray.brokers.

What    Everything that runs in a node: it takes calls in, places them, and keeps the books.
Caller  zray.launch, by module name: python -m zray.brokers. Nothing imports this package.
Never   imports zray.actors, the client or user code; unpickles a byte of a user's value.
Spec    docs/explanation/architecture.md.

Map (P = pure machine: events in, commands out; S = shell: sockets, files, processes)

    __main__.py     S  argument parsing; starts the node
    node.py         S  the router loop: messages in, machines, commands out
    reception.py    S  new connections: HELLO, who may stay
    peers.py        S  the processes that are connected
    validation.py   S  fields of a message, checked before a rule sees them
    node_mailbox.py S  rules of messages from the inbox
    node_calls.py   S  rules of calls from the unix streams
    node_commands.py S what a machine's command does
    event_queries.py S  questions for events wait here for the workers' newest
    inspection.py   S  what a node tells people of itself
    scheduler.py    P  tasks: ready queue, workers, credit, retries
    scheduler_account.py P  its books: counts and invariants
    leases.py       P  workers lent to clients that work synchronously
    task_queues.py  P  what waits for a worker, by shape
    scheduling.py   P  what the scheduler is told, what it keeps, what it commands
    dispatcher.py   P  actors: placement, incarnations, names, restart budget
    directory.py    P  objects: who holds, who refers, what is lost
    allocator.py    P  shared-memory extents: lease, recycle, seal
    resources.py    P  CPU, GPU, memory and custom amounts, in 1/10000
    store.py        S  the shared-memory segments behind the allocator's decisions
    spill.py        S  files of objects that did not fit
    workers.py      S  zygote and worker processes: start, reap, lifelines
    output.py       S  log files of a node that stays, bounded
    gcs/               tables of this node in LMDB: compare-and-transact, lease, watch

The machines import each other and zray.protocol, and nothing that has a clock or a socket.
"""

# A user's own folder "brokers" must never meet this one, and loading one file under two
# names would give every class in it a twin that isinstance does not recognise.
if __name__ != "zray.brokers":
    raise ImportError(f"import zray.brokers, not {__name__}: this folder is part of zray")
