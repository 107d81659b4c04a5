"""The node process and the tables of the GCS, imported as zray.brokers.

What    Everything that runs in a node: it takes calls in, places them, and keeps the books.
Caller  zray.launch, by module name: python -m zray.brokers. Nothing imports this package.
Never   imports zray.actors, the client or user code; unpickles a byte of a user's value.
Spec    docs/explanation/architecture.md.

Map (P = pure machine: events in, commands out; S = shell: sockets, files, processes)

    __main__.py     S  argument parsing; starts the node
    node_process.py S  start, report and end of the process around it
    node.py         S  the router loop: messages in, machines, commands out
    reception.py    S  new connections: HELLO, who may stay
    peers.py        S  the processes that are connected
    validation.py   S  fields of a message, checked before a rule sees them
    field_checks.py P  what a field may be: the pieces of such checks
    node_mailbox.py S  rules of messages from the inbox
    node_calls.py   S  rules of calls from the unix streams
    node_commands.py S what a machine's command does
    node_outcomes.py S outcomes that the node itself reports
    deaths.py       S  what follows from the death of a process
    shared_tables.py S what a program finds from anywhere: the interface, and a lone node's own
    shared_tables.py S what is found from anywhere: of this node alone, or of the cluster
    event_queries.py S  questions for events wait here for the workers' newest
    inspection.py   S  what a node tells people of itself
    state_questions.py S what processes ask of the whole cluster, merged
    queries.py      S  questions to nodes, in pages, with a deadline for each
    gathering.py    P  who has answered a question, who is waited for, who said nothing
    node_answers.py S  what a node answers of itself, whoever asks
    state_rows.py   S  its rows of the state API
    task_rows.py    S  those of tasks and events, many in one block
    gcs_rows.py     S  those that only the GCS has
    row_filters.py  P  which rows a question asks for
    process_questions.py S questions to the processes of this node: what runs, what waits
    explaining.py   S  why something waits, as far as this node knows
    waiting.py      S  of that, why a task or actor has no worker
    why_walk.py     P  the way from what waits to what it waits for; deadlocks
    health.py       S  what is wrong
    scheduler.py    P  tasks: ready queue, workers, credit, retries
    scheduler_account.py P  its books: counts and invariants
    leases.py       P  workers lent to clients that work synchronously
    rebalancing.py  P  work taken back from workers that do not get to it
    task_queues.py  P  what waits for a worker, by shape
    scheduling.py   P  what the scheduler is told, what it keeps, what it commands
    dispatcher.py   P  actors: placement, incarnations, names, restart budget
    directory.py    P  objects: who holds, who refers, what is lost
    draining.py     S  a node that is to leave without anybody's loss
    evacuation.py   P  what a node that leaves keeps for others goes home
    sharing.py      P  what it keeps of an object, and what it commands
    allocator.py    P  shared-memory extents: lease, recycle, seal
    resources.py    P  CPU, GPU, memory and custom amounts, in 1/10000
    store.py        S  the shared-memory segments behind the allocator's decisions
    spill.py        S  files of objects that did not fit
    workers.py      S  zygote and worker processes: start, reap, lifelines
    printed_lines.py S what workers print, on its way to drivers
    output.py       S  log files of a node that stays, bounded
    log_stream.py   S  its standard output, whose disk may be full
    gcs/               tables of this node in LMDB: compare-and-transact, lease, watch

Among other nodes:

    cluster.py      S  the links, and what goes over them for this node's processes
    code_elsewhere.py  S  code of functions, from and to the homes of the jobs that run it
    membership.py   P  who is a member: the GCS's table, the links, this node's own lease
    host_leases.py  P  until when actors may run where they are: no copy beside an older one
    actor_fences.py P  what waits until a host out of reach has certainly stopped
    hosting.py      S  these two, the page that the zygote looks at, the messages
    next_life.py    S  a node that was declared dead comes back as another one
    gcs_process.py  S  the GCS process beside the head node
    gcs_relay.py    S  the sessions of other nodes, carried between their links and the GCS process
    gcs_frames.py   P  frames to and from the GCS in pieces that a link carries
    gcs_connection.py S this node's session with the GCS process
    gcs_tables.py   S  the shared tables, asked of the GCS
    relays.py       S  what processes of two nodes say to each other, passed on
    link_rules.py   S  rules of messages from other nodes
    link_validation.py P fields of messages of other nodes, and of whom they may speak
    roster_sharing.py S which keys count, told from the head to all
    link_roles.py   P  what clients and gateways may say on links
    refusals.py     S  who is not let in, by us or by others, and why
    borrowing.py    P  workers of other nodes that run this node's tasks and actors
    lending.py      P  workers of this node that work for others
    offering.py     P  an idle node tells one that waits
    loans.py        S  workers lent and borrowed, as messages
    load.py         P  what is known of the load of all nodes
    placement.py    P  which node a request goes to
    lineage_copying.py P which nodes keep copies of this node's lineage, and what they lack
    lineage_copies.py S the copies, sent and kept
    locality.py     P  where the inputs of a task are
    objects_elsewhere.py S  objects of and at other nodes: holds, pulls, serving
    gateway_calls.py S what gateways' processes say, opened before it is brought on
    hold_fence.py   P  what is said to a node waits until what is held was counted
    unreached_pulls.py P  pulls that wait for the link to who has the object
    bulk.py         S  the bulk thread: chunks of objects between segments and sockets
    transfer.py     P  the transfer machine, both its sides together
    transfer_pulls.py P  its pulling side: which chunk is asked from whom
    transfer_serving.py P  its serving side: who is sent which chunk
    transferring.py P  what the transfer machine commands

Placement groups:

    placement_groups.py S  what is asked of them here, and what is reserved here
    coordination.py S  who coordinates them, and what that node does for all
    groups.py       P  the coordinator: prepare, decide, commit
    group_plan.py   P  where the bundles of a group go
    group_table.py  P  the table of them, as every node follows it
    group_transactions.py P  what changes the table
    group_store.py  P  where the table is: in this node, or in the GCS
    gcs_group_store.py P  the latter
    group_states.py P  which groups the scheduler may wait for, and which are gone
    reservations.py P  a node's bundles: prepared, committed, open, leaving
    bundles.py      P  the accounts of open bundles, from which tasks and actors draw

The machines import each other and zray.protocol, and nothing that has a clock or a socket.
"""

# A user's own folder "brokers" must never meet this one, and loading one file under two
# names would give every class in it a twin that isinstance does not recognise.
if __name__ != "zray.brokers":
    raise ImportError(f"import zray.brokers, not {__name__}: this folder is part of zray")
