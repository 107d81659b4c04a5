"""Which named actors live.

What    list_named_actors(), of this namespace or of all.
Caller  users.
Never   makes a handle: zray.get_actor(name, namespace) does.
"""

from __future__ import annotations

from zray import api
from zray.protocol import messages


def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """Return the names of the living actors that have one.

    Args:
        all_namespaces: return a dict with "name" and "namespace" for each actor of every
            namespace, instead of the names in this session's.
    """
    runtime = api.runtime()
    found: list[list[str]] = runtime.request(
        messages.LIST_NAMED, None if all_namespaces else runtime.namespace
    )
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in sorted(found)]
    return sorted(name for _namespace, name in found)
