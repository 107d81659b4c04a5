"""Every message of zray, in one table.

What    A message is one msgpack array [version, kind, payload_count, *fields], followed by
        payload_count frames that only the last reader opens. Rows say who sends it to whom,
        on which channel, with which fields.
        mailbox   ZeroMQ: DEALER of the sender to the ROUTER inbox of the receiver.
        calls     unix stream, process to node: in order, accepted bytes survive SIGKILL.
        lifeline  unix stream, node to process: read by a thread that never runs user code.
        zygote    unix stream between a node and the process that forks its workers.
Caller  zray/protocol/frames.py, the shells, docs/reference/protocol.md (generated).
Never   holds behaviour.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One row of the table."""

    kind: int
    name: str
    channel: str
    sender: str
    receiver: str
    fields: tuple[str, ...]
    text: str
    payload: str = ""
    since: int = 1


# -- mailbox ---------------------------------------------------------------------------------
SUBMIT = 1
RUN = 2
RESULTS = 3
MAP_RESULTS = 4
FINISHED = 5
CALL = 6
REPLIES = 7
ACTOR_STATE = 8
PROCESS_DIED = 9
RECONCILED = 10
TASK_FAILED = 11
LEASED = 12
START_ACTOR = 13
ACTOR_STARTED = 14
LOCATED = 16
YIELDED = 17
CONSUMED = 18
PING = 19
RECONCILE = 20
FORWARDED = 22
# -- calls (process to node) -------------------------------------------------------------------
HELLO = 32
DECLARE_CLASS = 33
PUT_FUNCTION = 34
GET_FUNCTION = 35
ALLOCATE = 36
FREE = 37
REGISTER = 38
SHARE = 39
HOLD = 40
HOLD_FOR = 41
LOCATE = 42
UNPINNED = 43
RELEASE = 55
TRANSFER = 58
BLOCKED = 44
UNBLOCKED = 45
CREATE_ACTOR = 46
WATCH_ACTOR = 47
KILL_ACTOR = 48
NAMED_ACTOR = 49
LIST_NAMED = 50
CANCEL = 51
RECLAIMED = 52
LEASE = 53
UNLEASE = 54
KV = 56
GROUP = 67
INSPECT = 57
STOP = 59
DRAIN_NODE = 70
ACTOR_EXIT = 60
GOODBYE = 61
FORWARD = 64
EVENTS = 62
ACTOR_ARGUMENTS = 63
STATE = 65
# -- lifeline (node to process) ------------------------------------------------------------------
WELCOME = 80
ANSWER = 81
RECLAIM = 82
INTERRUPT = 83
RECALL = 84
UNPIN = 85
EXIT = 86
LOG = 87
END_ACTOR = 88
RECLAIM_STORE = 89
EVENTS_WANTED = 90
STATE_WANTED = 93
# -- zygote ----------------------------------------------------------------------------------------
FORK = 96
FORKED = 97
CHILD_EXITED = 98
ZYGOTE_READY = 99
GUARD = 100

_M, _C, _L, _Z = "mailbox", "calls", "lifeline", "zygote"


def _told(kind: int, name: str, receiver: str, fields: tuple[str, ...], text: str) -> Message:
    """What a node tells one of its processes on its lifeline."""
    return Message(kind, name, _L, "node", receiver, fields, text)


MESSAGES: tuple[Message, ...] = (
    Message(
        SUBMIT,
        "SUBMIT",
        _M,
        "client",
        "node",
        ("batches",),
        "Task batches for the local scheduler: each [class_no, first, count, low, high, mode,"
        " retries], and of a task whose large arguments are elsewhere, their ids.",
        payload="one frame a batch",
    ),
    Message(
        RUN,
        "RUN",
        _M,
        "node or lease holder",
        "worker",
        (
            "client",
            "class_no",
            "class_spec",
            "first",
            "count",
            "low",
            "high",
            "mode",
            "gpus",
            "held",
        ),
        "Run items low..high of a batch; class_spec is null where the worker knows it; held: pairs"
        " [object, outcome] that a lease holder has transferred to it.",
        payload="the batch's arguments",
    ),
    Message(
        RESULTS,
        "RESULTS",
        _M,
        "worker",
        "client",
        ("first", "low", "count", "special"),
        "Outcomes of count tasks of batch `first` from item low; special: any not plain.",
        payload="msgpack array of outcomes",
    ),
    Message(
        MAP_RESULTS,
        "MAP_RESULTS",
        _M,
        "worker",
        "client",
        ("first", "low", "count"),
        "Values of count items of a map batch.",
        payload="one pickled list of values",
    ),
    Message(
        FINISHED,
        "FINISHED",
        _M,
        "worker",
        "node",
        ("reports",),
        "Reports [client, first, low, high, busy_us, items that failed]: these items are done.",
    ),
    Message(
        CALL,
        "CALL",
        _M,
        "client",
        "worker",
        ("calls", "incarnation"),
        "Calls of actors in this life, in order: [actor, number, method, returns, arguments].",
    ),
    Message(
        REPLIES,
        "REPLIES",
        _M,
        "worker",
        "client",
        ("numbers", "outcomes", "special"),
        "Outcomes of single calls, by object number.",
    ),
    Message(
        ACTOR_STATE,
        "ACTOR_STATE",
        _M,
        "node",
        "client",
        ("states",),
        "Each [actor, state, process, endpoint, incarnation, cause].",
    ),
    Message(
        PROCESS_DIED,
        "PROCESS_DIED",
        _M,
        "node",
        "client",
        ("process", "reason"),
        "A process that the receiver had dealings with has died.",
    ),
    Message(
        RECONCILED,
        "RECONCILED",
        _M,
        "node",
        "client",
        ("unknown",),
        "Of the tasks asked for, these the node does not have: [[first, item], ...].",
    ),
    Message(
        TASK_FAILED,
        "TASK_FAILED",
        _M,
        "node",
        "client",
        ("first", "items", "outcome"),
        "The node ends these items itself: crashed, cancelled or never runnable.",
    ),
    Message(
        LEASED,
        "LEASED",
        _M,
        "node",
        "client",
        ("class_no", "worker", "endpoint", "recalled"),
        "The client may send RUN to this idle worker itself; worker null: refused. recalled:"
        " others wait, the lease is for a turn.",
    ),
    Message(
        START_ACTOR,
        "START_ACTOR",
        _M,
        "node",
        "worker",
        ("actors",),
        "Each [actor, incarnation, class_id, options, arguments, owner].",
    ),
    Message(
        ACTOR_STARTED,
        "ACTOR_STARTED",
        _M,
        "worker",
        "node",
        ("started",),
        "Each [actor, incarnation, error or null]: its __init__ has ended.",
    ),
    Message(
        LOCATED,
        "LOCATED",
        _M,
        "node",
        "client",
        ("objects",),
        "Pairs [object, outcome]: answers to a LOCATE that had to wait.",
    ),
    Message(
        YIELDED,
        "YIELDED",
        _M,
        "worker",
        "client",
        ("number", "index", "outcome"),
        "Item `index` of a generator; outcome null: the generator has ended before it.",
    ),
    Message(
        CONSUMED,
        "CONSUMED",
        _M,
        "client",
        "worker",
        ("number", "index"),
        "The consumer has taken items up to index: the generator may run on.",
    ),
    Message(PING, "PING", _M, "process", "process", (), "Opens a connection, wakes a poll."),
    Message(
        RECONCILE,
        "RECONCILE",
        _M,
        "client",
        "node",
        ("tasks",),
        "Which of these [first, item] does the node still have?",
    ),
    Message(
        FORWARDED,
        "FORWARDED",
        _M,
        "node",
        "client",
        (),
        "From processes of other nodes.",
        payload="an envelope (zray/protocol/envelopes.py)",
    ),
    Message(
        HELLO,
        "HELLO",
        _C,
        "process",
        "node",
        ("process", "role", "pid", "details"),
        "First message of either unix connection: who is this.",
    ),
    Message(
        DECLARE_CLASS,
        "DECLARE_CLASS",
        _C,
        "client",
        "node",
        ("class_no", "spec"),
        "Batches name this function and these options by class_no from now on.",
    ),
    Message(
        PUT_FUNCTION,
        "PUT_FUNCTION",
        _C,
        "client",
        "node",
        ("function", "code"),
        "Code by content hash into the GCS.",
    ),
    Message(
        GET_FUNCTION,
        "GET_FUNCTION",
        _C,
        "worker",
        "node",
        ("function",),
        "Request: code by hash. Answered when it is there: [code, job]; job, at a worker's"
        " first request, is what its driver imports from.",
    ),
    Message(
        ALLOCATE,
        "ALLOCATE",
        _C,
        "process",
        "node",
        ("bytes",),
        "Request: an extent. Answer [offset, bytes, fresh, offsets of spare ones].",
    ),
    Message(FREE, "FREE", _C, "process", "node", ("offsets",), "Extents given back."),
    Message(
        REGISTER,
        "REGISTER",
        _C,
        "process",
        "node",
        ("object", "offset", "bytes", "contained", "holder"),
        "This extent holds this sealed object; it is the node's from now on.",
    ),
    Message(
        SHARE,
        "SHARE",
        _C,
        "process",
        "node",
        ("object", "outcome", "contained", "first"),
        "First: the reference escapes, the directory becomes its home (outcome null: pending)."
        " Later: here is the outcome.",
    ),
    Message(
        HOLD,
        "HOLD",
        _C,
        "process",
        "node",
        ("objects", "certain"),
        "The sender holds these; certain: a request, answered with those that are gone.",
    ),
    Message(
        HOLD_FOR,
        "HOLD_FOR",
        _C,
        "process",
        "node",
        ("object", "objects"),
        "A result on its way to its owner by itself holds these.",
    ),
    Message(
        TRANSFER,
        "TRANSFER",
        _C,
        "client",
        "node",
        ("process", "objects"),
        "The process holds one more unit of each, as if it had sent HOLD: arguments of a task"
        " that is about to go to it.",
    ),
    Message(
        RELEASE,
        "RELEASE",
        _C,
        "process",
        "node",
        ("deltas", "results"),
        "Pairs [object or actor, units]: references this process gives up; and what was made"
        " for it that it gives up, or has never had: once is enough, twice does no harm. Heeded"
        " after what any process wrote before it.",
    ),
    Message(
        FORWARD,
        "FORWARD",
        _C,
        "client",
        "node",
        ("envelope",),
        "For a process of another node (zray/protocol/envelopes.py).",
    ),
    Message(
        LOCATE,
        "LOCATE",
        _C,
        "process",
        "node",
        ("objects", "purpose"),
        "Answered by LOCATED on the mailbox, each when it is there (or, where the purpose is"
        " PLACE, when it is anywhere). purpose: 0 get, 1 argument, 2 prefetch, 3 place.",
    ),
    Message(
        UNPINNED,
        "UNPINNED",
        _C,
        "process",
        "node",
        ("objects",),
        "The sender has forgotten where these lie: they may move or spill.",
    ),
    Message(
        BLOCKED, "BLOCKED", _C, "worker", "node", (), "The running task waits: its CPU is free."
    ),
    Message(UNBLOCKED, "UNBLOCKED", _C, "worker", "node", (), "It runs again."),
    Message(
        CREATE_ACTOR,
        "CREATE_ACTOR",
        _C,
        "client",
        "node",
        ("actor", "class_id", "options", "arguments"),
        "A request where the actor has a name, one-way otherwise. arguments null: they follow in"
        " ACTOR_ARGUMENTS.",
    ),
    Message(
        ACTOR_ARGUMENTS,
        "ACTOR_ARGUMENTS",
        _C,
        "client",
        "node",
        ("actor", "arguments", "error"),
        "What the constructor of an actor waits for is there; arguments null: one of them is this"
        " error, and the actor will never start.",
    ),
    Message(
        WATCH_ACTOR,
        "WATCH_ACTOR",
        _C,
        "process",
        "node",
        ("actor",),
        "The sender has a handle: hold the actor, send its ACTOR_STATE.",
    ),
    Message(
        KILL_ACTOR,
        "KILL_ACTOR",
        _C,
        "process",
        "node",
        ("actor", "no_restart"),
        "End the actor now.",
    ),
    Message(
        NAMED_ACTOR,
        "NAMED_ACTOR",
        _C,
        "process",
        "node",
        ("name", "namespace"),
        "Request: [actor, class_id, options] or null.",
    ),
    Message(
        LIST_NAMED,
        "LIST_NAMED",
        _C,
        "process",
        "node",
        ("namespace",),
        "Request: names of living actors; namespace null: all.",
    ),
    Message(
        CANCEL,
        "CANCEL",
        _C,
        "process",
        "node",
        ("worker", "first", "item", "force", "recursive"),
        "Cancel a task of the sender; worker: whom it was sent to, where not to the node.",
    ),
    Message(
        RECLAIMED,
        "RECLAIMED",
        _C,
        "worker",
        "node",
        ("ranges",),
        "Ranges [client, first, low, high] that the worker has not begun.",
    ),
    Message(
        LEASE,
        "LEASE",
        _C,
        "client",
        "node",
        ("class_no",),
        "Ask for an idle worker to call directly.",
    ),
    Message(UNLEASE, "UNLEASE", _C, "client", "node", ("worker",), "Give it back."),
    Message(
        KV,
        "KV",
        _C,
        "process",
        "node",
        ("op", "arguments"),
        "Request: put, get, delete, exists, keys of the GCS key-value table.",
    ),
    Message(GROUP, "GROUP", _C, "process", "node", ("op", "arguments"), "Request: about groups."),
    Message(
        INSPECT,
        "INSPECT",
        _C,
        "process",
        "node",
        ("what", "arguments"),
        "Request: nodes, resources, actors, tasks, objects, workers, events, status.",
    ),
    Message(STOP, "STOP", _C, "process", "node", ("reason",), "End the node."),
    Message(
        DRAIN_NODE,
        "DRAIN_NODE",
        _C,
        "process",
        "node",
        ("node", "timeout_s", "force"),
        "Have a node, this one or another, leave its cluster.",
    ),
    Message(
        ACTOR_EXIT,
        "ACTOR_EXIT",
        _C,
        "worker",
        "node",
        ("actor", "cause"),
        "The actor ended itself, or was drained.",
    ),
    Message(
        GOODBYE,
        "GOODBYE",
        _C,
        "process",
        "node",
        (),
        "The EOF that follows is meant. A driver is answered: what its tasks printed is out.",
    ),
    Message(
        EVENTS,
        "EVENTS",
        _C,
        "worker",
        "node",
        ("events", "dropped", "question"),
        "What the worker ran that the node did not see: leased tasks, calls of actors. events: a"
        " packed array for the ring of events, or nothing; dropped: how many runs are in none;"
        " question: the EVENTS_WANTED that all of them answer, or null.",
    ),
    Message(STATE, "STATE", _C, "process", "node", ("question", "state"), "Answers STATE_WANTED."),
    _told(
        WELCOME,
        "WELCOME",
        "process",
        ("details",),
        "Node id, inbox, store capacity; carries the segment's two descriptors.",
    ),
    Message(
        ANSWER,
        "ANSWER",
        _C,
        "node",
        "process",
        ("error", "value"),
        "The answer to the request on this connection.",
    ),
    _told(
        RECLAIM,
        "RECLAIM",
        "worker",
        ("count",),
        "Give back up to count tasks not begun; null: all.",
    ),
    _told(
        INTERRUPT,
        "INTERRUPT",
        "worker",
        ("client", "first", "item", "recursive"),
        "Cancel a running or queued task.",
    ),
    _told(
        RECALL,
        "RECALL",
        "client",
        ("worker",),
        "The lease is wanted back as soon as its task has ended.",
    ),
    _told(
        UNPIN,
        "UNPIN",
        "process",
        ("objects",),
        "Forget where these lie unless they are in use; answer UNPINNED.",
    ),
    Message(EXIT, "EXIT", _L, "node", "process", ("reason",), "End now."),
    _told(LOG, "LOG", "driver", ("lines",), "Lines of workers: each [label, is_stderr, text]."),
    _told(
        END_ACTOR,
        "END_ACTOR",
        "worker",
        ("actor", "incarnation", "killed"),
        "End the actor, after what has arrived for it, or (killed) before that.",
    ),
    _told(
        RECLAIM_STORE,
        "RECLAIM_STORE",
        "process",
        (),
        "Memory is short: give idle extents back, register private objects.",
    ),
    _told(
        EVENTS_WANTED,
        "EVENTS_WANTED",
        "worker",
        ("question",),
        "Somebody asks what ran: send EVENTS now, the last of them with this number.",
    ),
    Message(
        STATE_WANTED, "STATE_WANTED", _L, "node", "process", ("question", "about"), "What runs?"
    ),
    Message(
        FORK,
        "FORK",
        _Z,
        "node",
        "zygote",
        ("process", "arguments"),
        "Fork a worker; carries its stdout and stderr.",
    ),
    Message(FORKED, "FORKED", _Z, "zygote", "node", ("process", "pid"), "It runs."),
    Message(
        CHILD_EXITED,
        "CHILD_EXITED",
        _Z,
        "zygote",
        "node",
        ("pid", "status"),
        "Reaped: wait status as of waitpid(2).",
    ),
    Message(
        ZYGOTE_READY,
        "ZYGOTE_READY",
        _Z,
        "zygote",
        "node",
        ("pid",),
        "Imports are done, forking takes 2 ms from here on.",
    ),
    Message(
        *(GUARD, "GUARD", _Z, "node", "zygote", ("process", "slot")),
        "This worker hosts actors: it stands still while its slot of the table of leases is over."
        " The first one carries that table.",
    ),
)

NAMES: dict[int, str] = {row.kind: row.name for row in MESSAGES}
