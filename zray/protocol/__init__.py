"""The floor of zray: names, numbers and messages that every process shares.

What    ids.py (who and which), messages.py (the table of messages on one node),
        link_messages.py (between nodes), envelopes.py (between processes of two nodes),
        chunks.py (between bulk ports), roles.py (of keys, and who may send which messages),
        frames.py (messages to bytes and back), packing.py (msgpack, typed), outcome.py (what
        became of a task), purposes.py (why an object is asked for), limits.py (every bound),
        units.py (amounts of resources), labels.py (of nodes, and what selects by them),
        state_classes.py (what the state API can list), release.py (which one this is).
Caller  everything above: session, client, brokers, actors.
Never   opens a socket, reads a clock, draws a random number.
"""
