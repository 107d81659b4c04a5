"""Processes that are killed at random while they work.

What    load.py     the driver: a random mixture of everything, each get checked
        rounds.py   a node, one driver after the other, somebody is killed; what is left is counted
        test_rounds.py   15 rounds in every run of the suite
Caller  pytest; python -m tests.chaos.rounds --rounds 200 --seed 1
Never   kills what it has not started.
"""
