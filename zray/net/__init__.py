"""Sockets: the only package that imports zmq.

What    mailbox.py (ZeroMQ: one ROUTER inbox a process, one DEALER a peer), edges.py (the direct
        ways between processes), channel.py (unix streams to the node: lifeline and calls),
        tokens.py (whom a process of a node believes), poller.py (epoll, or what is missing),
        wake.py (an eventfd that ends a poll), descriptors.py (how many are left).
        Between nodes: link_inbox.py (the one TCP port that receives), links.py (one DEALER a
        node), bulk_link.py (the port for chunks of objects), curve.py (who is a member: keys and
        ZAP), addresses.py (what to bind, what to tell others), connections.py (how many a port
        takes), gcs_link.py (between the GCS process and the head), probe.py (is somebody still
        there?), deliveries.py (what a node
        brings to its processes from those of others).
Caller  client, brokers, actors/zygote.
Never   knows what a message means.
"""
