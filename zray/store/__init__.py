"""The node's shared memory, as every process sees it.

What    segment.py: one sealed memory file, mapped writable for producers and read-only for
        readers. Which bytes belong to whom is decided elsewhere (brokers/allocator.py).
        lease_table.py: until when actors of which home may run here.
Caller  zray/objects.py, brokers/store.py.
Never   knows what the bytes mean.
"""
