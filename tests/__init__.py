"""The tests of zray: folders mirror the tree, or name a kind of test.

What    zray/ brokers/ actors/   one file a module; machines only, no sockets
        property/ transcripts/   Hypothesis against models; messages as reviewed text
        sim/                     the real machines on a virtual clock and a seeded network
        cluster/ chaos/          real processes; and what is left when they are killed
        house/                   sizes, arrows, packaging, messages, docs: the style, as tests
        conftest.py (limits, fixtures), waiting.py (wait_until), leaks.py, watchdog.py,
        outbox.py (what a client's machines want sent)
Caller  scripts/test. The head of a test module therefore names no caller, and says Never only
        where it forbids itself more than this page does.
Never   sleeps for a fixed time: tests.waiting.wait_until polls a condition up to a deadline;
        measures: scripts/bench does.
"""
