"""What runs in this worker now: for get_runtime_context() and for recursive cancels.

What    The current task or actor, per thread of execution.
Caller  actors/task_runner.py, actors/actor_runner.py, zray/context.py.
Never   decides.
"""

from __future__ import annotations

from zray.runtime import Runtime

task: tuple[bytes, int] | None = None
"""(client, number) of the task that runs in the main thread."""


def cancel_children(runtime: Runtime) -> None:
    """Cancel what the running task has submitted and nobody has an outcome of."""
    children = runtime.current_children
    for ref in list(children or ()):
        if not runtime.is_ready(ref.key):
            runtime.cancel(ref, force=False, recursive=True)
