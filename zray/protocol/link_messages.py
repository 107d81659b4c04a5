"""Every message between two nodes, in one table like that of zray/protocol/messages.py.

What    link      ZeroMQ over TCP with CURVE: a DEALER of the sender to the one ROUTER of the
                  receiver, in order for each pair of nodes. Where a node does for its processes
                  what a process does for itself, the message is the same as on their own
                  streams: to another node, a node is a client.
Caller  brokers/, docs/reference/protocol.md (generated).
Never   holds behaviour.
"""

from zray.protocol.messages import (
    ACTOR_STATE,
    HOLD,
    KILL_ACTOR,
    PROCESS_DIED,
    RELEASE,
    WATCH_ACTOR,
    Message,
)

LINK_HELLO = 112
RELAY = 114
BORROW = 115
LENT = 116
GIVE_BACK = 117
WANTED_BACK = 118
TO_WORKER = 119
TELL_WORKER = 120
END_WORKER = 121
FROM_WORKER = 122
WORKER_DIED = 123
CODE_WANTED = 124
CODE = 125
STORED_AT = 126
LOCATE_FOREIGN = 127
FOUND = 128
HOLDS_COUNTED = 129
COPY_GONE = 130
TAKE_OVER = 134
DRAIN = 135
LEAVING = 136
LINEAGE = 131
LINEAGE_KEPT = 132
LINEAGE_ENDED = 133
OUTPUT = 140
JOB_ENDED = 150
SUSPECTED = 151
STOPPED = 152
HOST_RENEW = 153
HOST_RENEWED = 154
HOSTS_ENDED = 155
OFFER = 156
QUERY = 160
QUERY_ROWS = 161
QUERY_NEXT = 162
GROUP_ASK = 163
GROUP_SAID = 164
GROUP_GONE = 165
GCS_CALL = 170
GCS_ANSWER = 171
ROSTER = 180

_N = "link"


def _row(kind: int, name: str, fields: tuple[str, ...], text: str, payload: str = "") -> Message:
    return Message(kind, name, _N, "node", "node", fields, text, payload=payload)


LINK_MESSAGES: tuple[Message, ...] = (
    _row(
        LINK_HELLO,
        "LINK_HELLO",
        ("details",),
        "The first message of a stream: who we are, where we are reached, what we have.",
    ),
    _row(
        RELAY,
        "RELAY",
        (),
        "What processes of ours say to processes of yours, in order.",
        payload="envelopes (zray/protocol/envelopes.py)",
    ),
    _row(
        OFFER,
        "OFFER",
        ("row",),
        "Nothing waits here and something waits with you: our row of the load table, to BORROW by.",
    ),
    _row(
        BORROW,
        "BORROW",
        ("request", "placement", "resources", "environment", "for_actor", "patient"),
        "Lend us a worker that holds these resources, for a job of ours; placement: what must be"
        " free for it. patient: nobody else can, so the request may wait its turn.",
    ),
    _row(
        LENT,
        "LENT",
        ("request", "worker", "pid", "gpus", "load"),
        "This worker takes its work from you from now on; null: there is none to spare, as our row"
        " of the load table says.",
    ),
    _row(
        GIVE_BACK,
        "GIVE_BACK",
        ("worker", "spent"),
        "We need it no more; it has nothing to do. spent: nor is it to do anything else.",
    ),
    _row(
        WANTED_BACK,
        "WANTED_BACK",
        ("worker", "if_idle"),
        "Give it back when it has nothing to do; if_idle: or keep it, if it has.",
    ),
    _row(
        TO_WORKER,
        "TO_WORKER",
        ("worker",),
        "For the mailbox of a worker that is lent to us.",
        payload="header and payloads",
    ),
    _row(TELL_WORKER, "TELL_WORKER", ("worker", "packed"), "For the lifeline of such a worker."),
    _row(END_WORKER, "END_WORKER", ("worker",), "Kill such a worker."),
    _row(
        FROM_WORKER,
        "FROM_WORKER",
        ("worker", "packed"),
        "What a worker that is lent to you has told its node of its work.",
    ),
    _row(
        WORKER_DIED, "WORKER_DIED", ("worker", "reason"), "A worker that is lent to you has died."
    ),
    _row(SUSPECTED, "SUSPECTED", ("worker",), "A worker that is lent to us does not answer."),
    _row(STOPPED, "STOPPED", ("worker",), "It was stopped: others may do what it has not begun."),
    _row(
        HOST_RENEW,
        "HOST_RENEW",
        ("stamp",),
        "Workers of ours host actors of yours: may they go on? stamp: our clock, in seconds.",
    ),
    _row(
        HOST_RENEWED,
        "HOST_RENEWED",
        ("stamp", "lease_s"),
        "For so long, from when you asked; then they stand still until you have a new lease.",
    ),
    _row(HOSTS_ENDED, "HOSTS_ENDED", (), "All our workers are dead: replace what they hosted."),
    _row(JOB_ENDED, "JOB_ENDED", ("job",), "A driver of ours is gone: nothing of its job goes on."),
    _row(
        TAKE_OVER,
        "TAKE_OVER",
        ("objects",),
        "We are leaving. Each [object, what its value contains] that we keep for you: bring it"
        " home, then RELEASE it.",
    ),
    _row(
        DRAIN,
        "DRAIN",
        ("timeout_s", "force"),
        "Leave, once nothing would be lost with you, within that time; force: then in any case.",
    ),
    _row(
        LEAVING,
        "LEAVING",
        ("waits_for",),
        "We are leaving, and wait for these, sentences for people; null: we stay.",
    ),
    _row(
        LINEAGE,
        "LINEAGE",
        ("incarnation", "job", "positions"),
        "Keep a copy of what a job has submitted here: where each blob begins, and where they end.",
        payload="blobs as they lie in the ledger",
    ),
    _row(
        LINEAGE_KEPT,
        "LINEAGE_KEPT",
        ("job", "position"),
        "What lies below this position of a job of yours is on our disk.",
    ),
    _row(
        LINEAGE_ENDED,
        "LINEAGE_ENDED",
        ("incarnation", "job"),
        "A job of ours has ended: its copy can go.",
    ),
    _row(
        OUTPUT,
        "OUTPUT",
        ("job", "lines"),
        "What workers of ours have printed for a job of yours: lines as in LOG.",
    ),
    _row(
        GROUP_ASK,
        "GROUP_ASK",
        ("what", "group", "attempt", "wanted"),
        "The coordinator of placement groups says PREPARE, COMMIT, CANCEL or REMOVE; wanted: of"
        " PREPARE, [bundle, units by resource] each.",
    ),
    _row(
        GROUP_SAID,
        "GROUP_SAID",
        ("what", "group", "attempt", "ok"),
        "To it: PREPARED, COMMITTED or RELEASED; or INQUIRED: what became of this attempt?",
    ),
    _row(
        GROUP_GONE,
        "GROUP_GONE",
        ("group", "reason"),
        "A placement group is removed: what runs in it on workers that are lent to you ends now.",
    ),
    _row(
        ROSTER,
        "ROSTER",
        ("roster",),
        "The list of keys as the authority has it now (zray/net/roster.py), for who has an older"
        " one.",
    ),
    _row(CODE_WANTED, "CODE_WANTED", ("function", "job"), "A worker of ours is to run this."),
    _row(
        CODE,
        "CODE",
        ("function", "code", "job"),
        "The pickled function or class, and where its job imports from.",
    ),
    _row(
        STORED_AT,
        "STORED_AT",
        ("object", "nbytes", "holder"),
        "We keep an object of your process, or (nbytes -1) what its value contains, until you"
        " RELEASE it.",
    ),
    _row(
        LOCATE_FOREIGN,
        "LOCATE_FOREIGN",
        ("objects", "purpose"),
        "Answer with FOUND, when it is there. purpose: as in LOCATE.",
    ),
    _row(
        FOUND,
        "FOUND",
        ("objects",),
        "Each [object, outcome or null, nbytes, nodes that have it or are getting it].",
    ),
    _row(HOLDS_COUNTED, "HOLDS_COUNTED", ("count",), "So many more HOLDs of yours are counted."),
    _row(
        COPY_GONE,
        "COPY_GONE",
        ("objects",),
        "We have no copy of these any more, or could not get one.",
    ),
    _row(
        QUERY,
        "QUERY",
        ("request", "what", "arguments"),
        "A question of somebody here about your node: tasks, actors, why something waits, a log.",
    ),
    _row(
        QUERY_ROWS,
        "QUERY_ROWS",
        ("request", "rows", "more", "error", "received_at", "sent_at"),
        "A page of the answer; more: QUERY_NEXT gets the next one. The times are of your clock, in"
        " seconds since 1970, for the difference between the clocks.",
    ),
    _row(QUERY_NEXT, "QUERY_NEXT", ("request",), "The next page; none is sent unasked."),
    _row(
        GCS_CALL,
        "GCS_CALL",
        ("offset", "nbytes"),
        "To the head: what our session says to the GCS; a frame of so many bytes, from here on.",
        payload="a piece of the frame (brokers/gcs/wire.py)",
    ),
    _row(
        GCS_ANSWER,
        "GCS_ANSWER",
        ("offset", "nbytes"),
        "From the head: what the GCS says to your session; a frame of so many bytes, from here on.",
        payload="a piece of the frame (brokers/gcs/wire.py)",
    ),
)

AS_CLIENT = (HOLD, RELEASE, WATCH_ACTOR, KILL_ACTOR)
"""Of calls: what a node may send to another on behalf of its processes."""
UNFENCED = frozenset(
    (
        *(OFFER, CODE_WANTED, CODE, LOCATE_FOREIGN, FOUND, COPY_GONE, HOLDS_COUNTED, HOLD),
        *(GCS_CALL, GCS_ANSWER, ROSTER),
        *(LINEAGE, LINEAGE_KEPT, LINEAGE_ENDED, DRAIN, LEAVING),
        *(QUERY, QUERY_ROWS, QUERY_NEXT),
        *(HOST_RENEW, HOST_RENEWED, HOSTS_ENDED),
        *(GROUP_ASK, GROUP_SAID, GROUP_GONE),
    )
)
"""Nobody gives up a reference because of these: they need not wait until HOLDs are counted."""
AS_HOME = (ACTOR_STATE, PROCESS_DIED)
"""What a home node tells another, which tells its processes."""
