"""Values, functions and exceptions to bytes and back.

What    collector.py (which ObjectRefs a value contains), blob.py (the one byte layout of a value),
        data.py (values that nobody unpickles, from who may not ship code),
        reducers.py (picklers for types that plain pickle does badly or not at all),
        exceptions.py (what a task raised), functions.py (code by content hash),
        inspect.py (which member of a value cannot be pickled).
Caller  zray/client.py, actors/executor.py, zray/util.py.
Never   opens a socket or shared memory: it reads and writes the buffers it is handed.
"""
