"""The client session: what a driver or worker has asked for and what it knows.

What    Pure machines that share one Outbox and one table of outcomes:
        outbox.py (what is to be sent), references.py (who in this process refers to what),
        tasks.py (batches, leases, retries), actors.py (calls in order, incarnations),
        streams.py (generators), session.py (the door: one rule per message),
        account.py (what waits for what, for people).
Caller  zray/client.py, tests/sim.
Never   opens a socket, reads a clock, starts a thread, pickles.
"""
