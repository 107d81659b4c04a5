"""The tables of the GCS in LMDB, embedded in the node process.

What    Metadata behind compare-and-transact, lease and watch; the lineage ledger of this node;
        the ring of scheduling events.
Caller  the node process, in its own thread or in a thread beside it.
Never   opens a socket, reads a clock, unpickles a value; is used in a forked child.
Spec    docs/explanation/architecture.md, "The GCS and lineage".

Map (P = pure: data and rules; S = shell: files)

    catalog.py      S  all of it as the node uses it: writes gathered, batches packed
    store.py        P  the interface: Transaction, Lease, Watch, Store
    tables.py       P  functions, jobs, nodes and key-value over a Store; `Tables` has them all
    actor_table.py  P  actors and the names they hold, over a Store
    records.py      P  how a record is stored, and guarded updates
    engine.py       S  LmdbStore: the interface on one LMDB environment
    history.py      P  recent changes in memory, and the watches on them
    ledger.py       S  records, append-only, in segments with a byte cap
    lineage.py      S  a ledger for each job: what it has submitted
    events.py       S  scheduling events, a ring with a count cap
    environment.py  S  one LMDB directory: lock, fork guard, durability, typed errors

The GCS of a cluster is a process of its own; nodes drive a session with it:

    commands.py     P  the table of commands, with the checks of their fields
    rules.py        P  what each command does: (state, fields, now) -> (result, writes)
    machine.py      P  sessions: batches of commands, each exactly once, one commit a batch
    loads.py        P  the load table: which rows each who watches it was told of
    watchers.py     P  who watches which range, and what each was told
    replica.py      P  leases of nodes, their loads, the machine and the watchers together
    server.py       S  the process: poll loop round the replica
    relayed.py      P  who speaks to it: by a connection of its own, or brought by the head's node
    permissions.py  P  what the key of a client or a gateway may ask
    client.py       P  GcsSession: asks, repeats, beats, for a node's poll loop
    client_ranges.py P ranges that a session follows without a gap
    wire.py         P  messages between the two, packed and checked
"""
