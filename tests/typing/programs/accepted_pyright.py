"""What pyright accepts beyond mypy: it believes what a class decorator returns."""

from typing import assert_type

import zray
from zray import ObjectRef


@zray.remote
class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    @zray.method
    def add(self, amount: int) -> int:
        return self.value + amount


@zray.remote(num_cpus=2)
class Large:
    @zray.method
    def read(self) -> str:
        return ""


assert_type(Counter.remote(3).add.remote(1), ObjectRef[int])
assert_type(Large.remote().read.remote(), ObjectRef[str])
