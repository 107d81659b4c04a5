"""The CartPole demonstration: its mathematics in this process, its program in a real one.

What    Gradient, advantages, determinism and files first; then runs of train.py with its options.
Caller  pytest; the program's runs are short, and one solves an easy target.
Never   compares times, and never trains to the real target: scripts/demo does that.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CARTPOLE = ROOT / "scripts" / "cartpole"
RUN_TIMEOUT_S = 60.0
MODULES = ("policy", "rollout", "learner", "plot")


@pytest.fixture(scope="module")
def cartpole() -> Iterator[SimpleNamespace]:
    """The demonstration's modules, imported as train.py imports them: by their bare names."""
    sys.path.insert(0, str(CARTPOLE))
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
    yield SimpleNamespace(**modules)
    sys.path.remove(str(CARTPOLE))
    for name in MODULES:
        del sys.modules[name]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CARTPOLE / "train.py"), *options],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        env=environment(),
        check=False,
    )


def environment() -> dict[str, str]:
    path = [entry for entry in (os.environ.get("PYTHONPATH"), str(ROOT)) if entry]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def test_one_seed_gives_one_policy_and_another_seed_another(cartpole: SimpleNamespace) -> None:
    policy = cartpole.policy
    assert policy.digest(policy.initial_weights(3)) == policy.digest(policy.initial_weights(3))
    assert policy.digest(policy.initial_weights(3)) != policy.digest(policy.initial_weights(4))


def test_probability_is_one_half_at_zero_and_finite_at_any_logit(
    cartpole: SimpleNamespace,
) -> None:
    probability = cartpole.policy.probability
    assert probability(0.0) == 0.5
    assert probability(-1e6) == 0.0
    assert probability(1e6) == 1.0
    assert probability(1.0) == pytest.approx(1 / (1 + np.exp(-1.0)))


def test_gradient_agrees_with_finite_differences(cartpole: SimpleNamespace) -> None:
    policy = cartpole.policy
    random = np.random.default_rng(0)
    weights = policy.initial_weights(1) + 0.1 * random.normal(size=policy.WEIGHTS_LEN)
    observations = random.normal(size=(7, policy.OBSERVATION_LEN))
    actions = random.integers(0, 2, 7).astype(np.float64)
    advantages = random.normal(size=7)

    def objective(at: np.ndarray) -> float:
        total = 0.0
        for observation, action, advantage in zip(observations, actions, advantages, strict=True):
            right = policy.probability(policy.right_logit(policy.layers(at), observation))
            total += advantage * float(np.log(right if action else 1.0 - right))
        return total / 7

    step = 1e-6
    numeric = [
        (objective(weights + step * axis) - objective(weights - step * axis)) / (2 * step)
        for axis in np.eye(policy.WEIGHTS_LEN)
    ]
    exact = policy.gradient(weights, observations, actions, advantages)
    np.testing.assert_allclose(exact, numeric, atol=1e-8)


def test_advantages_have_mean_zero_and_reward_the_longer_episode(
    cartpole: SimpleNamespace,
) -> None:
    short, long = cartpole.learner.advantages([np.ones(3), np.ones(9)])
    both = np.concatenate([short, long])
    assert (len(short), len(long)) == (3, 9)
    assert both.mean() == pytest.approx(0.0)
    assert both.std() == pytest.approx(1.0)
    assert short.max() < 0.0 < long[:3].min()


def test_episodes_of_one_length_have_no_advantage(cartpole: SimpleNamespace) -> None:
    for advantage in cartpole.learner.advantages([np.ones(5), np.ones(5)]):
        np.testing.assert_array_equal(advantage, np.zeros(5))


def test_an_episode_depends_on_its_seed_alone_and_not_on_the_one_before(
    cartpole: SimpleNamespace,
) -> None:
    play, weights = cartpole.rollout.play, cartpole.policy.initial_weights(0)
    first = play(weights, 11)
    other = play(weights, 12)
    again = play(weights, 11)
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(first.observations[0], other.observations[0])
    assert len(first.observations) == len(first.actions) == len(first.rewards)


def test_no_evaluation_episode_shares_a_seed_with_any_other(cartpole: SimpleNamespace) -> None:
    rollout = cartpole.rollout
    seeds = [
        seed
        for generation in range(20)
        for make in (rollout.training_seeds, rollout.evaluation_seeds)
        for seed in make(0, generation, 100)
    ]
    assert len(set(seeds)) == len(seeds)


def test_ten_generations_make_the_policy_twice_as_good(cartpole: SimpleNamespace) -> None:
    state = cartpole.learner.initial_state(0)
    means = []
    for generation in range(10):
        seeds = cartpole.rollout.training_seeds(0, generation, 32)
        played = [cartpole.rollout.play(state.weights, seed) for seed in seeds]
        means.append(sum(len(trajectory.rewards) for trajectory in played) / len(played))
        state = cartpole.learner.improved(state, played)
    assert means[-1] > 2 * means[0]


def test_curve_csv_holds_every_float_exactly(cartpole: SimpleNamespace, tmp_path: Path) -> None:
    third = 1 / 3
    row = cartpole.plot.Generation(0, 10, third, 1.0, 9.0, third, "abc")
    path = cartpole.plot.write_csv([row], tmp_path)
    header, line = path.read_text().splitlines()
    assert header == "generation,steps,return_mean,return_min,return_max,evaluation_mean,policy"
    assert float(line.split(",")[2]) == third


@pytest.mark.cluster
def test_program_gives_the_same_curve_with_one_worker_and_with_two(tmp_path: Path) -> None:
    curves = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        done = run(
            *("--seed", "5", "--generations-max", "3", "--episodes", "8"),
            *("--workers", workers, "--out", str(out)),
        )
        assert done.returncode == 1, done.stderr
        assert "Not solved after 3 generations" in done.stdout
        assert (out / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
        curves.append((out / "curve.csv").read_bytes())
    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) == 4


@pytest.mark.cluster
def test_program_gives_the_same_curve_on_one_node_and_on_three(tmp_path: Path) -> None:
    curves = []
    for nodes in ("1", "3"):
        out = tmp_path / nodes
        done = run(
            *("--seed", "5", "--generations-max", "3", "--episodes", "16"),
            *("--workers", "1", "--nodes", nodes, "--out", str(out)),
        )
        assert done.returncode == 1, done.stderr
        curves.append((out / "curve.csv").read_bytes())
    assert curves[0] == curves[1]


@pytest.mark.cluster
def test_program_stops_with_0_at_the_target_and_prints_plain_lines_into_a_pipe(
    tmp_path: Path,
) -> None:
    done = run("--target", "15", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Solved in 1 generation," in done.stdout
    assert str(tmp_path / "learning-curve.png") in done.stdout
    assert "\x1b" not in done.stdout


def test_program_refuses_to_run_on_no_node(tmp_path: Path) -> None:
    done = run("--nodes", "0", "--out", str(tmp_path / "never"))
    assert done.returncode == 2
    assert "--nodes" in done.stderr
    assert not (tmp_path / "never").exists()


@pytest.mark.cluster
def test_program_ends_with_130_when_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(CARTPOLE / "train.py"), "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
    ) as program:
        try:
            assert program.stdout is not None
            # The line of generation 0, after the header: the run is well under way by then.
            program.stdout.readline()
            program.stdout.readline()
            program.send_signal(signal.SIGINT)
            stdout, stderr = program.communicate(timeout=RUN_TIMEOUT_S)
        finally:
            program.kill()
    assert program.returncode == 130, stderr
    assert "Interrupted after" in stdout
    assert "Traceback" not in stderr
