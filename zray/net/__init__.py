"""Sockets: the only package that imports zmq.

What    mailbox.py (ZeroMQ: one ROUTER inbox a process, one DEALER a peer), edges.py (the direct
        ways between processes), channel.py (unix streams to the node: lifeline and calls),
        tokens.py (whom a process of a node believes), poller.py (epoll, or what is missing),
        wake.py (an eventfd that ends a poll), descriptors.py (how many are left).
        Between nodes: guarded_port.py (a TCP port that only members reach), link_inbox.py (the one
        for messages), bulk_link.py (the one for chunks of objects), links.py (one DEALER a node),
        curve.py (a member's keys, and ZAP), roster.py (the list of all keys), key_files.py (their
        file), listeners.py (a port whose key changes), connections.py (how many a port takes),
        addresses.py (what to bind, what to tell others), gcs_link.py (between the GCS process and
        the head), probe.py (is somebody still there?), trial.py (would they let us in?),
        versions.py (of what is installed), deliveries.py (what a node brings to its processes
        from those of others).
Caller  client, brokers, actors/zygote.
Never   knows what a message means.
"""
