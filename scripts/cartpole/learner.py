"""The learner: an actor that holds the policy and improves it from finished episodes.

What    REINFORCE with a baseline per step, Adam as the optimiser; `improved` is the pure step.
Caller  train.py: one `Learner` per run; its calls run in the order they were sent.
Never   plays an episode, and never sees how the episodes were spread over workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from policy import Array, gradient, initial_weights
from rollout import Trajectory

import zray

DISCOUNT = 0.99
LEARNING_RATE = 0.02
MEAN_DECAY = 0.9
SQUARE_DECAY = 0.99


class LearnerState(NamedTuple):
    """Everything the next step depends on: the weights and Adam's two running means."""

    weights: Array
    gradient_mean: Array
    gradient_square_mean: Array
    step_count: int


def initial_state(seed: int) -> LearnerState:
    """Return the untrained state of `seed`."""
    weights = initial_weights(seed)
    return LearnerState(weights, np.zeros_like(weights), np.zeros_like(weights), 0)


def advantages(rewards: Sequence[Array]) -> list[Array]:
    """Return, per episode and step, how much better the rest of the episode went than usual.

    "Usual" is the mean discounted return, at that step, of all episodes that got so far. The
    result has mean 0 and standard deviation 1 over the whole generation.
    """
    steps_max = max(len(episode) for episode in rewards)
    reward = np.zeros((len(rewards), steps_max))
    played = np.zeros((len(rewards), steps_max), dtype=np.bool_)
    for row, episode in enumerate(rewards):
        reward[row, : len(episode)] = episode
        played[row, : len(episode)] = True
    to_go = np.zeros_like(reward)
    ahead = np.zeros(len(rewards))
    for step in reversed(range(steps_max)):
        ahead = reward[:, step] + DISCOUNT * ahead
        to_go[:, step] = ahead
    usual = (to_go * played).sum(axis=0) / played.sum(axis=0)
    advantage = (to_go - usual) * played
    spread = float(np.sqrt((advantage * advantage).sum() / played.sum()))
    # Episodes of all the same length say nothing about what was better: the spread is then 0.
    advantage /= max(spread, 1e-8)
    return [advantage[row, : len(episode)] for row, episode in enumerate(rewards)]


def improved(state: LearnerState, trajectories: Sequence[Trajectory]) -> LearnerState:
    """Return the state one Adam step further up the policy gradient of `trajectories`."""
    slope = gradient(
        state.weights,
        np.concatenate([trajectory.observations for trajectory in trajectories]),
        np.concatenate([trajectory.actions for trajectory in trajectories]),
        np.concatenate(advantages([trajectory.rewards for trajectory in trajectories])),
    )
    step_count = state.step_count + 1
    mean = MEAN_DECAY * state.gradient_mean + (1 - MEAN_DECAY) * slope
    square = SQUARE_DECAY * state.gradient_square_mean + (1 - SQUARE_DECAY) * slope * slope
    # Both running means start at zero; dividing by the weight they have seen so far undoes that.
    direction = mean / (1 - MEAN_DECAY**step_count)
    scale = np.sqrt(square / (1 - SQUARE_DECAY**step_count)) + 1e-8
    weights = state.weights + LEARNING_RATE * direction / scale
    return LearnerState(weights, mean, square, step_count)


class Learner(zray.Actor):
    """The actor: one `LearnerState`, replaced by every call of `improve`."""

    def __init__(self, seed: int) -> None:
        self._state = initial_state(seed)

    @zray.method
    def weights(self) -> Array:
        """Return the policy as it is now, float64 of shape (WEIGHTS_LEN,)."""
        return self._state.weights

    @zray.method
    def improve(self, *trajectories: Trajectory) -> Array:
        """Learn from one generation of episodes and return the new policy."""
        self._state = improved(self._state, trajectories)
        return self._state.weights
