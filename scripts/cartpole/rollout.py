"""Episodes of CartPole-v1: the tasks that play the policy.

What    `rollout` plays one training episode; `evaluate` spreads fresh episodes over nested tasks.
Caller  train.py starts both for every generation and passes the weights as an ObjectRef.
Never   learns anything, and never lets one episode depend on which worker played another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from policy import Array, layers, probability, right_logit

import zray

CHUNK_LEN = 10
"""Evaluation episodes per nested task: milliseconds of work, which hides the cost of a task."""

# An angle of 0.2 rad already loses the episode; scaled up, it weighs like the other observations.
OBSERVATION_SCALE = np.array([1.0, 1.0, 5.0, 1.0])


class Trajectory(NamedTuple):
    """One finished episode, one row per step."""

    observations: Array
    actions: Array
    rewards: Array


def training_seeds(seed: int, generation: int, count: int) -> list[int]:
    """Return the seeds of a generation's `count` training episodes."""
    return _episode_seeds(seed, (0, generation), count)


def evaluation_seeds(seed: int, generation: int, count: int) -> list[int]:
    """Return `count` seeds to evaluate a generation on, which no other episode of the run has."""
    return _episode_seeds(seed, (1, generation), count)


def _episode_seeds(seed: int, purpose: tuple[int, int], count: int) -> list[int]:
    sequence = np.random.SeedSequence(seed, spawn_key=purpose)
    return [int(word) for word in sequence.generate_state(count, np.uint64)]


@functools.cache
def environment() -> Any:
    """Return this worker's environment, made once: making it costs as much as 30 steps."""
    return gymnasium.make("CartPole-v1")


def play(weights: Array, seed: int) -> Trajectory:
    """Play one episode, each action drawn with the probability that the policy gives it.

    Args:
        weights: the policy, float64 of shape (WEIGHTS_LEN,).
        seed: decides the starting state and every draw, and nothing else does.
    """
    env = environment()
    network = layers(weights)
    draws = np.random.default_rng((seed, 1)).random(env.spec.max_episode_steps)
    observations: list[Array] = []
    actions: list[float] = []
    rewards: list[float] = []
    raw, _ = env.reset(seed=seed)
    done = False
    while not done:
        observation = OBSERVATION_SCALE * raw
        right = probability(right_logit(network, observation))
        action = int(draws[len(actions)] < right)
        raw, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(float(action))
        rewards.append(float(reward))
        done = terminated or truncated
    return Trajectory(np.array(observations), np.array(actions), np.array(rewards))


@zray.remote
def rollout(weights: Array, seed: int) -> Trajectory:
    """Play one training episode as a task of its own: 10 steps or 500, whatever it comes to."""
    return play(weights, seed)


@zray.remote
def play_chunk(weights: Array, seeds: Sequence[int]) -> list[float]:
    """Play one episode per seed and return their total rewards in that order."""
    return [float(play(weights, seed).rewards.sum()) for seed in seeds]


@zray.remote
def evaluate(weights: Array, seeds: Sequence[int]) -> list[float]:
    """Return the total reward of one episode per seed, played by nested tasks.

    While it waits for them this task lends its CPU out, so one CPU is enough for any depth.
    """
    shared = zray.put(weights)
    chunks = [seeds[start : start + CHUNK_LEN] for start in range(0, len(seeds), CHUNK_LEN)]
    parts = zray.get([play_chunk.remote(shared, chunk) for chunk in chunks])
    return [total for part in parts for total in part]
