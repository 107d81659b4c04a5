"""Every bound, timeout and size, in one place, with its unit in its name.

What    Constants, and asserts that hold them in proportion to each other.
Caller  every package; docs/reference/limits.md is generated from this file.
Never   holds a value that a user sets: those are options (zray/options.py).
"""

PROTOCOL_VERSION = 1
"""First element of every header. A peer with another version is refused at HELLO."""

INLINE_BYTES_MAX = 64 * 1024
"""Values up to this size ride inside messages; larger ones go to shared memory."""

BATCH_TASKS_MAX = 128
"""Tasks in one batch: one message, one queue entry. 128 hides the cost of the message."""

BATCH_BYTES_MAX = 256 * 1024
"""A batch is closed early when its arguments reach this size: splitting it stays cheap."""

MAP_CHUNK_TASKS = 2048
"""Items of f.map() in one batch: 2048 x 0.1 us of work still spreads over workers."""

LINGER_US = 2_000
"""A batch that nobody flushes waits at most this long for company."""

QUIET_US = 300
"""A call after this much silence is sent at once: nobody is about to join it."""

RESULT_LINGER_US = 300
"""A finished task's result waits at most this long for company before it is sent."""

WORKER_BACKLOG_US = 5_000
"""Work queued at one worker ahead of it, by the estimate of its function."""

WORKER_BACKLOG_TASKS_MAX = 4096
"""Tasks queued at one worker, whatever their estimate."""

TASK_ESTIMATE_US = 500
"""Estimated duration of a function that has not run yet."""

RECLAIM_TIMEOUT_S = 1.0
"""A worker that has not given tasks back by then is looked at: it may have been stopped."""

LEASE_IDLE_S = 0.2
"""A lease on a worker that its caller has not used for this long is given back."""

LEASE_TURN_S = 0.003
"""How long a caller keeps a leased worker that others wait for: some forty short calls."""

RELEASE_LINGER_S = 0.25
"""References dropped by a process that does nothing else are given up at most this much later."""

BLOCKED_AFTER_S = 0.001
"""A worker that waits in get longer than this lends its CPU out; at once where it waits for a task
of its own that the node has and no worker is known to have begun."""

WORKER_IDLE_S = 5.0
"""Idle workers beyond the number of CPUs are ended after this long."""

WORKER_START_TIMEOUT_S = 30.0
"""A forked worker that has not said HELLO by then is killed and replaced."""

WORKER_STARTS_FAILED_MAX = 8
"""So many workers in a row that die while they start, and the node ends: it can run nothing."""

WORKERS_MAX = 4000
"""Worker processes of one node, blocked ones included."""

NODE_START_TIMEOUT_S = 15.0
"""zray.init() gives up on a node that has not reported ready by then."""

NODE_JOIN_TIMEOUT_S = 10.0
"""A node that is to join others gives up when none of them has answered by then."""

SHUTDOWN_GRACE_S = 2.0
"""Workers get this long to end by themselves before SIGKILL."""

GOODBYE_TIMEOUT_S = 2.0
"""A driver that leaves waits this long for the last lines its tasks have printed."""

RECONCILE_GRACE_S = 0.02
"""Wait for results still on their way before asking what a dead worker left undone."""

STORE_FULL_WAIT_S = 2.0
"""An allocation waits this long for spilling and releases before it fails."""

CHANNEL_MESSAGE_BYTES_MAX = 256 * 1024 * 1024
"""Largest message on a lifeline; a longer length prefix is a broken peer."""

MAILBOX_MESSAGE_BYTES_MAX = 512 * 1024 * 1024
"""Largest frame a mailbox accepts (ZMQ_MAXMSGSIZE)."""

EDGE_MESSAGE_BYTES_MAX = 512 * 1024 * 1024
"""Largest frame on an edge; a longer one is a broken peer."""

CALLS_BYTES_MAX = 1024 * 1024
"""Arguments in one CALL, but for those of its last one: what waited for an actor goes in many."""

ENVELOPE_BYTES_MAX = 1024 * 1024
"""Of a message to a process of another node, how much goes in one piece."""

HELLO_BYTES_MAX = 1024 * 1024
"""Largest first message of a connection: until then nobody knows who is there."""

HELLO_TIMEOUT_S = 10.0
"""A connection that has not said HELLO by then is closed."""

UNNAMED_CONNECTIONS_MAX = 256
"""Connections that have not said HELLO yet; the oldest makes way for one more."""

IPC_PATH_BYTES_MAX = 107
"""Length of a unix socket path that every kernel accepts."""

FUNCTION_BYTES_WARN = 10 * 1024 * 1024
"""Exported code larger than this is reported to the user."""

FUNCTION_BYTES_MAX = 100 * 1024 * 1024
"""Exported code larger than this is refused: put() the data and pass its ref."""

OUTPUT_BACKLOG_BYTES_MAX = 4 * 1024 * 1024
"""Printed lines that wait for a driver which does not read; beyond it they are dropped, counted."""

LOG_BYTES_MAX = 16 * 1024 * 1024
"""A log file of a node that stays is moved aside at this size, one older one is kept."""

GENERATOR_BACKLOG_MAX = 64
"""Items a generator task runs ahead of its consumer unless an option says otherwise."""

ACTOR_BACKLOG_BYTES_MAX = 1 << 30
"""Arguments of unanswered calls of one process to one actor; beyond it calls are refused."""

EDGE_BACKLOG_BYTES_MAX = 64 * 1024 * 1024
"""Results that a worker keeps for callers who do not read; beyond it, it begins nothing more."""

UNREAD_S = 0.1
"""A process that expects results and waits for none takes in those that have come this often."""

INBOX_MESSAGES_MAX = 256
"""Messages of one sender in a receiver's mailbox; what is beyond them stays with the sender."""

ANSWERS_BYTES_MAX = 512 * 1024 * 1024
"""Answers that a process has not read; beyond it the node disconnects it."""

LIFELINE_BACKLOG_BYTES_MAX = 1024 * 1024
"""Of a lifeline that is not read; beyond it requests that will be repeated are not sent."""

GATEWAY_CALL_BYTES_MAX = 16 * 1024 * 1024
"""Arguments of one call of a gateway: they go with the message, never over the bulk port."""

LINEAGE_BYTES_MAX = 1 << 30
"""Lineage kept per job, unless a setting says otherwise; beyond it the oldest segment is dropped
and counted."""

LINEAGE_COPIES = 1
"""Other nodes that keep a copy of a node's lineage, unless a setting says otherwise."""

LINEAGE_MESSAGE_BYTES_MAX = 256 * 1024
"""Lineage on its way to a node that keeps a copy; the next comes when this one is kept."""

EVENTS_MAX = 1_000_000
"""Scheduling events kept per node; beyond it the oldest go, and are counted."""

EVENTS_LINGER_S = 0.5
"""A worker tells the node what it ran past it at most this much later."""

EVENTS_UNSENT_MAX = 16384
"""Such events that a worker keeps until then, a quarter of them for runs longer than 1 ms; what it
runs beyond them is counted, not kept."""

EVENTS_BATCH_MAX = 512
"""Events in one EVENTS."""

EVENTS_BATCH_BYTES_MAX = 1024 * 1024
"""Packed events in one EVENTS."""

BUNDLES_MAX = 1000
"""Bundles of one placement group."""

EVENTS_ANSWER_S = 0.25
"""Whoever asks for events waits at most this long for workers that do not answer."""

QUERY_ANSWER_S = 2.0
"""Whoever asks about the cluster waits at most this long for a node that says nothing; the answer
names it."""

QUERY_TIMEOUT_S = 30.0
"""The answer to such a question is given by then, however many pages it has."""

QUERIES_MAX = 256
"""Such questions that a node has open at a time, and answers that it keeps for others to fetch."""

QUERY_PAGE_BYTES = 256 * 1024
"""Rows of an answer that go over a link in one message."""

QUERY_ROWS_MAX = 100_000
"""Rows of one answer, whatever limit was asked for."""

PROCESS_STATE_S = 0.5
"""A process that has not said by then what runs in it is said not to answer."""

PROCESS_STATE_BYTES_MAX = 256 * 1024
"""What a process says of itself: stacks are cut to fit."""

WHY_STEPS_MAX = 64
"""Steps that the answer to `why` has."""

assert BATCH_BYTES_MAX >= INLINE_BYTES_MAX, "one task must fit into a batch"
assert MAILBOX_MESSAGE_BYTES_MAX > BATCH_BYTES_MAX + INLINE_BYTES_MAX
assert BATCH_TASKS_MAX <= MAP_CHUNK_TASKS <= WORKER_BACKLOG_TASKS_MAX
assert QUIET_US < LINGER_US < WORKER_BACKLOG_US
assert EVENTS_BATCH_MAX * 1024 < EVENTS_BATCH_BYTES_MAX, "a name of 200 characters and 100 bytes"
assert EVENTS_BATCH_MAX <= EVENTS_UNSENT_MAX < EVENTS_MAX
assert INLINE_BYTES_MAX < ENVELOPE_BYTES_MAX < EDGE_MESSAGE_BYTES_MAX
assert CHANNEL_MESSAGE_BYTES_MAX < ANSWERS_BYTES_MAX, "who asks once reads one answer"
assert EVENTS_ANSWER_S < PROCESS_STATE_S < QUERY_ANSWER_S < QUERY_TIMEOUT_S
assert RECONCILE_GRACE_S < 0.1, "a lost task is late by at most 100 ms"
assert FUNCTION_BYTES_WARN < FUNCTION_BYTES_MAX <= CHANNEL_MESSAGE_BYTES_MAX
