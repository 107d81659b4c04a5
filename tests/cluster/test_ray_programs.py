"""Ordinary Ray programs, unchanged but for their import.

What    Parameter server, reductions, pipelines, pools, generators, named actors, retries: each as
        its author would have written it for Ray.
Never   uses a name that Ray does not have.
"""

import asyncio
import os
import random
import time

import numpy as np
import pytest

import zray as ray

pytestmark = [
    pytest.mark.usefixtures("node"),
    pytest.mark.node(
        num_cpus=4, resources={"licence": 2}, namespace="programs", include_dashboard=False
    ),
]


def test_monte_carlo_pi_with_a_progress_actor():
    @ray.remote
    class ProgressActor:
        def __init__(self, total_num_samples):
            self.total_num_samples = total_num_samples
            self.num_samples_completed_per_task = {}

        def report_progress(self, task_id, num_samples_completed):
            self.num_samples_completed_per_task[task_id] = num_samples_completed

        def get_progress(self):
            return sum(self.num_samples_completed_per_task.values()) / self.total_num_samples

    @ray.remote
    def sampling_task(num_samples, task_id, progress_actor):
        rng = random.Random(task_id)
        num_inside = 0
        for i in range(num_samples):
            x, y = rng.uniform(-1, 1), rng.uniform(-1, 1)
            if x * x + y * y <= 1:
                num_inside += 1
            if (i + 1) % 1000 == 0:
                progress_actor.report_progress.remote(task_id, i + 1)
        ray.get(progress_actor.get_progress.remote())  # What was reported before it is in.
        return num_inside

    tasks, samples = 4, 5000
    progress_actor = ProgressActor.remote(tasks * samples)
    results = [sampling_task.remote(samples, i, progress_actor) for i in range(tasks)]
    pi = sum(ray.get(results)) * 4 / (tasks * samples)
    assert abs(pi - np.pi) < 0.1
    assert ray.get(progress_actor.get_progress.remote()) == 1.0


def test_tree_reduction():
    @ray.remote
    def add(x, y):
        return x + y

    values = [ray.put(i) for i in range(16)]
    while len(values) > 1:
        values = [*values[2:], add.remote(values[0], values[1])]
    assert ray.get(values[0]) == sum(range(16))


def test_parameter_server_with_asynchronous_workers():
    @ray.remote
    class ParameterServer:
        def __init__(self, dim):
            self.weights = np.zeros(dim)

        def apply_gradients(self, *gradients):
            self.weights -= 0.5 * np.mean(gradients, axis=0)
            return self.weights

        def get_weights(self):
            return self.weights

    @ray.remote
    class DataWorker:
        def __init__(self, target):
            self.target = target

        def compute_gradients(self, weights):
            return weights - self.target

    target = np.arange(10.0)
    server = ParameterServer.remote(10)
    workers = [DataWorker.remote(target) for _ in range(2)]
    current = server.get_weights.remote()
    gradients = {worker.compute_gradients.remote(current): worker for worker in workers}
    for _ in range(60):
        ready, _ = ray.wait(list(gradients))
        worker = gradients.pop(ready[0])
        current = server.apply_gradients.remote(ready[0])
        gradients[worker.compute_gradients.remote(current)] = worker
    assert np.allclose(ray.get(server.get_weights.remote()), target, atol=0.05)


def test_parameter_server_with_synchronous_workers():
    @ray.remote
    def gradient(weights, target):
        return weights - target

    @ray.remote
    class Server:
        def __init__(self):
            self.weights = np.zeros(4)

        def step(self, *gradients):
            self.weights -= np.mean(gradients, axis=0)
            return self.weights

    server, weights = Server.remote(), ray.put(np.zeros(4))
    for _ in range(3):
        weights = server.step.remote(*[gradient.remote(weights, np.ones(4)) for _ in range(4)])
    assert np.allclose(ray.get(weights), 1.0)


def test_results_are_processed_as_they_become_ready():
    @ray.remote
    def work(i):
        time.sleep(random.Random(i).uniform(0, 0.02))
        return i

    unfinished = [work.remote(i) for i in range(20)]
    seen = []
    while unfinished:
        finished, unfinished = ray.wait(unfinished, num_returns=1)
        seen += ray.get(finished)
    assert sorted(seen) == list(range(20))


def test_nested_tasks_and_recursion():
    @ray.remote
    def quicksort(values):
        if len(values) < 40:
            return sorted(values)
        pivot = values[0]
        lesser = quicksort.remote([v for v in values[1:] if v < pivot])
        greater = quicksort.remote([v for v in values[1:] if v >= pivot])
        return [*ray.get(lesser), pivot, *ray.get(greater)]

    values = [random.Random(7).random() for _ in range(1)] + [
        random.Random(seed).random() for seed in range(300)
    ]
    assert ray.get(quicksort.remote(values)) == sorted(values)


def test_an_actor_pool_maps_in_order_and_as_it_comes():
    from zray.util import ActorPool

    @ray.remote
    class Doubler:
        def double(self, v):
            return 2 * v

    pool = ActorPool([Doubler.remote() for _ in range(2)])
    assert list(pool.map(lambda a, v: a.double.remote(v), [1, 2, 3, 4])) == [2, 4, 6, 8]
    assert sorted(pool.map_unordered(lambda a, v: a.double.remote(v), range(10))) == [
        2 * i for i in range(10)
    ]


def test_generators_stream_their_items():
    @ray.remote
    def split(array, parts):
        yield from np.array_split(array, parts)

    array = np.arange(200_000)
    total = 0
    for ref in split.remote(array, 5):
        total += int(ray.get(ref).sum())
    assert total == int(array.sum())


def test_a_named_detached_actor_is_found_by_a_task():
    @ray.remote
    class Registry:
        def __init__(self):
            self.entries = {}

        def register(self, key, value):
            self.entries[key] = value

        def lookup(self, key):
            return self.entries.get(key)

    @ray.remote
    def register(key):
        registry = ray.get_actor("registry", namespace="programs")
        ray.get(registry.register.remote(key, os.getpid()))

    Registry.options(name="registry", lifetime="detached").remote()
    ray.get([register.remote(key) for key in "abc"])
    registry = ray.get_actor("registry")
    assert all(ray.get([registry.lookup.remote(key) for key in "abc"]))
    again = Registry.options(name="registry", get_if_exists=True).remote()
    assert ray.get(again.lookup.remote("a")) == ray.get(registry.lookup.remote("a"))
    ray.kill(registry)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(again.lookup.remote("a"))


def test_tasks_are_retried_after_application_errors(tmp_path):
    @ray.remote(max_retries=5, retry_exceptions=[ConnectionError])
    def flaky(folder):
        attempts = len(os.listdir(folder))
        open(os.path.join(folder, str(attempts)), "w").close()
        if attempts < 2:
            raise ConnectionError("the network is down")
        return attempts

    assert ray.get(flaky.remote(str(tmp_path))) == 2


def test_a_task_whose_worker_dies_is_run_again(tmp_path):
    marker = str(tmp_path / "died")

    @ray.remote(max_retries=2)
    def dies_once():
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(1)
        return "alive"

    assert ray.get(dies_once.remote()) == "alive"

    @ray.remote(max_retries=0)
    def dies():
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(dies.remote())


def test_an_actor_restarts_and_retries_its_calls(tmp_path):
    @ray.remote(max_restarts=4, max_task_retries=-1)
    class Fragile:
        def __init__(self, folder):
            self.folder = folder

        def work(self):
            lives = len(os.listdir(self.folder))
            if lives < 2:
                open(os.path.join(self.folder, str(lives)), "w").close()
                os._exit(1)
            return lives

    assert ray.get(Fragile.remote(str(tmp_path)).work.remote()) == 2


def test_an_async_actor_gathers():
    @ray.remote
    class AsyncActor:
        def __init__(self):
            self.running = 0
            self.most = 0

        async def fetch(self, i):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(random.uniform(0.01, 0.02))
            self.running -= 1
            return i

        async def gather(self, refs):
            return await asyncio.gather(*refs)

        async def peak(self):
            return self.most

    @ray.remote
    def square(x):
        return x * x

    actor = AsyncActor.remote()
    assert ray.get([actor.fetch.remote(i) for i in range(10)]) == list(range(10))
    assert ray.get(actor.peak.remote()) > 1
    assert ray.get(actor.gather.remote([square.remote(i) for i in range(4)])) == [0, 1, 4, 9]


def test_a_driver_awaits_refs():
    @ray.remote
    def f(i):
        return i + 1

    async def main():
        one = await f.remote(1)
        many = await asyncio.gather(*[f.remote(i) for i in range(5)])
        done, pending = await asyncio.wait([f.remote(10), f.remote(11)])
        return one, many, sorted([await ref for ref in done]), len(pending)

    assert asyncio.run(main()) == (2, [1, 2, 3, 4, 5], [11, 12], 0)


def test_a_big_array_is_shared_by_put():
    @ray.remote
    def column_sum(matrix, column):
        return float(matrix[:, column].sum())

    matrix = np.ones((1000, 400))
    ref = ray.put(matrix)
    assert ray.get([column_sum.remote(ref, i) for i in range(8)]) == [1000.0] * 8
    with pytest.raises(ValueError, match="read-only"):
        ray.get(ref)[0, 0] = 5


def test_multiple_returns():
    @ray.remote(num_returns=2)
    def divide(a, b):
        return a // b, a % b

    @ray.remote
    class Shop:
        @ray.method(num_returns=2)
        def pair(self):
            return "left", "right"

    quotient, remainder = divide.remote(17, 5)
    assert ray.get([quotient, remainder]) == [3, 2]
    left, right = Shop.remote().pair.remote()
    assert ray.get(left) + ray.get(right) == "leftright"


def test_handles_are_passed_to_tasks_and_actors():
    @ray.remote
    class Counter:
        def __init__(self):
            self.counter = 0

        def inc(self):
            self.counter += 1

        def get_counter(self):
            return self.counter

    @ray.remote
    def f(counter):
        for _ in range(10):
            counter.inc.remote()
        return ray.get(counter.get_counter.remote()) >= 10

    @ray.remote
    class Owner:
        def __init__(self, counter):
            self.counter = counter

        def count(self):
            ray.get(self.counter.inc.remote())
            return ray.get(self.counter.get_counter.remote())

    counter = Counter.remote()
    assert all(ray.get([f.remote(counter) for _ in range(3)]))
    assert ray.get(Owner.remote(counter).count.remote()) == 31


def test_resources_limit_concurrency(tmp_path):
    @ray.remote
    class Gauge:
        def __init__(self):
            self.now = self.most = 0

        def enter(self):
            self.now += 1
            self.most = max(self.most, self.now)

        def leave(self):
            self.now -= 1

        def peak(self):
            return self.most

    @ray.remote(resources={"licence": 1}, num_cpus=0.1)
    def licensed(gauge):
        ray.get(gauge.enter.remote())
        time.sleep(random.uniform(0.005, 0.01))
        ray.get(gauge.leave.remote())

    gauge = Gauge.options(num_cpus=0).remote()
    ray.get([licensed.remote(gauge) for _ in range(12)])
    assert 1 <= ray.get(gauge.peak.remote()) <= 2


def test_pending_tasks_are_limited_with_wait():
    @ray.remote
    def work(i):
        return i

    running, total = [], 0
    for i in range(100):
        if len(running) > 10:
            ready, running = ray.wait(running, num_returns=1)
            total += sum(ray.get(ready))
        running.append(work.remote(i))
    assert total + sum(ray.get(running)) == sum(range(100))


def test_a_task_that_is_too_slow_is_cancelled():
    @ray.remote
    def endless():
        while True:
            time.sleep(random.uniform(0.005, 0.01))

    ref = endless.remote()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(ref, timeout=0.3)
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=20)


def test_map_reduce_counts_words():
    text = ["the quick brown fox", "the lazy dog", "the fox"]

    @ray.remote
    def count(line):
        counts = {}
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
        return counts

    @ray.remote
    def merge(*counts):
        total = {}
        for each in counts:
            for word, number in each.items():
                total[word] = total.get(word, 0) + number
        return total

    assert ray.get(merge.remote(*[count.remote(line) for line in text]))["the"] == 3


def test_the_error_of_a_task_has_its_type_and_its_cause():
    @ray.remote
    def bad():
        raise ValueError("no such thing")

    @ray.remote
    def uses(value):
        return value

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(uses.remote(bad.remote()))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.cause, ValueError)
    assert "no such thing" in str(caught.value)


def test_the_runtime_context_tells_where_code_runs():
    @ray.remote
    class Me:
        def who(self):
            context = ray.get_runtime_context()
            return context.get_actor_id(), context.get_job_id(), context.namespace

    @ray.remote
    def where():
        return ray.get_runtime_context().get_task_id(), ray.get_gpu_ids()

    actor_id, job_id, namespace = ray.get(Me.remote().who.remote())
    assert actor_id
    assert job_id == ray.get_runtime_context().get_job_id()
    assert namespace == "programs"
    task_id, gpus = ray.get(where.remote())
    assert task_id
    assert gpus == []


def test_a_queue_joins_producers_and_consumers():
    from zray.util.queue import Queue

    queue = Queue(maxsize=5)

    @ray.remote
    def produce(queue, numbers):
        for number in numbers:
            queue.put(number)

    @ray.remote
    def consume(queue, count):
        return [queue.get() for _ in range(count)]

    consumers = [consume.remote(queue, 10) for _ in range(2)]
    producers = [produce.remote(queue, range(i * 10, i * 10 + 10)) for i in range(2)]
    ray.get(producers)
    assert sorted(n for taken in ray.get(consumers) for n in taken) == list(range(20))
    queue.shutdown()


def test_the_cluster_tells_its_nodes_and_resources():
    assert ray.nodes()
    assert all(each["Alive"] for each in ray.nodes())
    assert sum(each["Resources"].get("CPU", 0) for each in ray.nodes()) == 4
    assert ray.cluster_resources()["CPU"] == 4
    assert ray.cluster_resources()["licence"] == 2
    assert ray.available_resources()["licence"] <= 2
