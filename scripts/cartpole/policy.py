"""The policy: a small neural network in numpy, and the gradient that improves it.

What    Pure functions of a flat weight vector: same numbers in, same numbers out, on any worker.
Caller  rollout.py asks for probabilities, learner.py for gradients; nothing here knows about zray.
Never   keeps state, draws a random number without a seed, or calls a multi-threaded BLAS kernel.

The network is 4 observations -> 16 tanh units -> 1 logit, the log-odds of pushing the cart right.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

OBSERVATION_LEN = 4
HIDDEN_LEN = 16
WEIGHTS_LEN = HIDDEN_LEN * (OBSERVATION_LEN + 2) + 1


class Layers(NamedTuple):
    """The weight vector cut into its layers; every field but the last is a view, not a copy."""

    hidden: Array
    hidden_bias: Array
    output: Array
    output_bias: float


def initial_weights(seed: int) -> Array:
    """Return random weights, float64 of shape (WEIGHTS_LEN,), that are the same for one seed."""
    random = np.random.default_rng(seed)
    hidden = random.normal(0.0, 0.5, HIDDEN_LEN * OBSERVATION_LEN)
    # A small output layer starts the policy near a fair coin, so that it explores both actions.
    output = random.normal(0.0, 0.3 / math.sqrt(HIDDEN_LEN), HIDDEN_LEN)
    return np.concatenate([hidden, np.zeros(HIDDEN_LEN), output, np.zeros(1)])


def layers(weights: Array) -> Layers:
    """Cut `weights`, shape (WEIGHTS_LEN,), into the network's layers."""
    hidden_end = HIDDEN_LEN * OBSERVATION_LEN
    bias_end = hidden_end + HIDDEN_LEN
    return Layers(
        weights[:hidden_end].reshape(HIDDEN_LEN, OBSERVATION_LEN),
        weights[hidden_end:bias_end],
        weights[bias_end:-1],
        float(weights[-1]),
    )


def right_logit(network: Layers, observation: Array) -> float:
    """Return the log-odds of pushing right for one `observation` of shape (4,)."""
    hidden = np.tanh(network.hidden @ observation + network.hidden_bias)
    return float(network.output @ hidden) + network.output_bias


def probability(logit: float) -> float:
    """Return the probability in [0, 1] that belongs to `logit`, without overflow at either end."""
    return 0.5 * (1.0 + math.tanh(0.5 * logit))


def gradient(weights: Array, observations: Array, actions: Array, advantages: Array) -> Array:
    """Return the policy gradient, mean over steps of advantage * d log p(action) / d weights.

    Args:
        weights: float64 of shape (WEIGHTS_LEN,).
        observations: what was seen, float64 of shape (steps, 4).
        actions: what was done, float64 of shape (steps,), 0.0 for left and 1.0 for right.
        advantages: how much better than expected it went, float64 of shape (steps,).
    """
    network = layers(weights)
    # einsum rather than @ for everything summed over steps: a BLAS product splits long sums by
    # its thread count, and then the last bits of the curve would depend on the machine's load.
    hidden = np.tanh(np.einsum("so,ho->sh", observations, network.hidden) + network.hidden_bias)
    logits = np.einsum("sh,h->s", hidden, network.output) + network.output_bias
    surprise = (actions - 0.5 * (1.0 + np.tanh(0.5 * logits))) * advantages / len(actions)
    to_hidden = surprise[:, None] * network.output * (1.0 - hidden * hidden)
    return np.concatenate(
        [
            np.einsum("sh,so->ho", to_hidden, observations).ravel(),
            to_hidden.sum(axis=0),
            np.einsum("s,sh->h", surprise, hidden),
            surprise.sum(keepdims=True),
        ]
    )


def digest(weights: Array) -> str:
    """Return 16 hex digits that change when any bit of `weights` does."""
    return hashlib.sha256(np.ascontiguousarray(weights).tobytes()).hexdigest()[:16]
