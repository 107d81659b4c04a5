"""What a type checker must call an error: each line marked so, and no other."""

import zray


@zray.remote
def scale(count: int, factor: float = 2.0, *, label: str = "") -> float:
    return count * factor


@zray.remote
def word() -> str:
    return "w"


@zray.remote
def total(*numbers: int) -> int:
    return sum(numbers)


class Counter(zray.Actor):
    def __init__(self, start: int) -> None:
        self.value = start

    @zray.method
    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    @zray.method
    def add_twice(self, amount: int) -> int:
        self.add("x")  # error
        return self.add(amount) + self.add(amount)

    def undecorated(self) -> int:
        return self.value


class Plain:
    def __init__(self, start: int) -> None:
        self.value = start

    @zray.method
    def read(self) -> int:
        return self.value


scale.remote()  # error
scale.remote("x")  # error
scale.remote(1, unknown=2)  # error
scale.remote(1, label=3)  # error
scale.remote(1, 2.0, "too many")  # error
scale.remote(word.remote())  # error
scale.remote(1, word.remote())  # error
scale.remote(word.remote(), 2.0, label="x")  # error
scale(1)  # error
total.remote(1, word.remote())  # error
scale.map(["x"])  # error
wrong: str = zray.get(scale.remote(1))  # error
zray.get(3)  # error

scale.options(num_cpu=1)  # error
scale.options(num_cpus="all")  # error
scale.options(max_restarts=1)  # error
zray.remote(isolation="thread")  # error
zray.remote(speculate=True)  # error

counter = Counter.remote(3)
Counter.remote("x")  # error
Counter.remote(3).add.remote("x")  # error
counter.add.remote()  # error
counter.add.remote(1, 2)  # error
counter.add.remote(1, 2, 3, 4, 5, 6, 7, 8, 9)  # error
counter.add.remote(word.remote())  # error
counter.subtract.remote(1)  # error
counter.undecorated.remote()  # error
counter.add.options(num_cpus=1)  # error
Counter.options(max_retries=1)  # error
number: int = counter.add.remote(1)  # error
zray.remote(Plain).remote("x")  # error
zray.remote(Plain).remote(3).read.remote(1)  # error
