"""What tasks and actors print on other nodes reaches the terminal of their driver.

What    Lines of workers elsewhere, marked with their node; none of them at another driver.
Caller  pytest.
Never   reads the log of a node: what a user sees is judged.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

from zray.testing import Cluster

PROGRAM = textwrap.dedent("""
    import sys
    import zray

    zray.init(sys.argv[1])

    @zray.remote(resources={"far": 1})
    def speak(word):
        print("task says", word)
        print("task warns of", word, file=sys.stderr)

    @zray.remote(resources={"far": 1})
    class Speaker:
        def speak(self, word):
            print("actor says", word)

    zray.get(speak.remote(sys.argv[2]))
    speaker = Speaker.remote()
    zray.get(speaker.speak.remote(sys.argv[2]))
    # Lines of a node come before its later answers, so those above are here with this one's.
    zray.get(speaker.speak.remote("goodbye"))
    zray.shutdown()
""")


def test_what_is_printed_on_another_node_is_shown_by_its_driver_alone(two_nodes: Cluster) -> None:
    far = next(node for node in two_nodes.nodes if node.node_id != two_nodes.nodes[0].node_id)
    drivers = {
        word: subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(two_nodes.address), word],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for word in ("heron", "stork")
    }
    said = {word: driver.communicate(timeout=50) for word, driver in drivers.items()}
    for word, other in (("heron", "stork"), ("stork", "heron")):
        out, err = said[word]
        assert drivers[word].returncode == 0, err
        assert f"task says {word}" in out, (out, err)
        assert f"actor says {word}" in out
        assert f"task warns of {word}" in err
        assert f", node {far.node_id[:8]})" in out
        assert other not in out + err
