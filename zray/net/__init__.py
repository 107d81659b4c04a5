"""Sockets: the only package that imports zmq.

What    mailbox.py (ZeroMQ: one ROUTER inbox a process, one DEALER a peer), edges.py (the direct
        ways between processes), channel.py (unix streams to the node: lifeline and calls),
        tokens.py (whom a process of a node believes), poller.py (epoll, or what is missing),
        wake.py (an eventfd that ends a poll).
        gcs_link.py (between the GCS process and who uses it), poller.py (epoll, or what is
        missing), wake.py (an eventfd that ends a poll).
Caller  client, brokers/node, actors/zygote.
Never   knows what a message means.
"""
