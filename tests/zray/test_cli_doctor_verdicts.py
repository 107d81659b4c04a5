"""What the doctor makes of ports, keys, clocks and versions: facts in, findings out.

What    Every judgement of zray/cli_doctor_verdicts.py, with facts made up here.
Caller  pytest.
Never   looks at this machine.
"""

from __future__ import annotations

import pytest

from zray.cli_doctor_verdicts import (
    FAILURE,
    OK,
    WARNING,
    Finding,
    JoinFacts,
    KeyFacts,
    NodeFacts,
    OwnKey,
    PortFacts,
    judge_host,
    judge_joins,
    judge_keys,
    judge_nodes,
    judge_ports,
)

VERSIONS = {
    **{"zray": "0.1.0", "python": "3.11.7", "pyzmq": "27.3.0", "libzmq": "4.3.5"},
    **{"cloudpickle": "3.1.2", "numpy": "2.4.6", "msgpack": "1.2.4"},
}


def level_of(findings: list[Finding], check: str) -> str:
    """Return the worst level of a check."""
    levels = [each.level for each in findings if each.check == check]
    return max(levels, key=(OK, WARNING, FAILURE).index)


# -- ports ---------------------------------------------------------------------------------------


def test_a_port_that_somebody_has_is_a_failure_unless_it_is_a_node_of_ones_own() -> None:
    taken = PortFacts("port", "127.0.0.1", 6380, trouble="address already in use")
    ours = PortFacts("bulk_port", "127.0.0.1", 6381, holder="/somewhere/node")
    first, second = judge_ports([taken, ours])
    assert (first.check, first.level) == ("port", FAILURE)
    assert "6380: address already in use" in first.found
    assert "--port" in first.advice
    assert (second.level, second.advice) == (OK, "")
    assert "/somewhere/node" in second.found


def test_an_advertised_address_that_leads_elsewhere_is_a_warning() -> None:
    facts = PortFacts("port", "0.0.0.0", 6380, advertised="gate:7000", unreached="no answer")
    (finding,) = judge_ports([facts])
    assert finding.level == WARNING
    assert "gate:7000: no answer" in finding.found
    (reached,) = judge_ports([PortFacts("port", "0.0.0.0", 6380, advertised="gate:7000")])
    assert reached.level == OK
    assert "gate:7000" in reached.found


def test_one_number_for_both_ports_is_a_failure_and_zero_is_none() -> None:
    def both(number: int) -> list[Finding]:
        return list(judge_ports([PortFacts(each, "::1", number) for each in ("port", "bulk_port")]))

    assert level_of(both(6380), "bulk_port") == FAILURE
    assert [each.level for each in both(0)] == [OK, OK]


def test_a_node_on_loopback_cannot_join_another_machine() -> None:
    (finding,) = judge_host("127.0.0.1", [JoinFacts("10.0.0.7:6380", False, "")])
    assert finding.level == FAILURE
    assert not list(judge_host("127.0.0.1", [JoinFacts("127.0.0.1:6380", True, "")]))


@pytest.mark.parametrize(
    ("trouble", "level"), [("", OK), ("connection refused", FAILURE), (None, WARNING)]
)
def test_who_is_to_be_joined_lets_us_in_or_says_why_not(trouble: str | None, level: str) -> None:
    (finding,) = judge_joins([JoinFacts("10.0.0.7:6380", False, trouble)])
    assert finding.level == level
    assert "10.0.0.7:6380" in finding.found
    assert (trouble or "") in finding.found


# -- keys ----------------------------------------------------------------------------------------


def judged(own: OwnKey, *, is_authority: bool = False) -> Finding:
    (finding,) = judge_keys(KeyFacts("/keys", own=(own,), is_authority=is_authority))
    return finding


def test_keys_that_are_missing_are_a_failure_only_where_nobody_makes_them() -> None:
    missing = KeyFacts("/keys", "no cluster keys in /keys", is_missing=True)
    assert [each.level for each in judge_keys(missing)] == [FAILURE]
    made = KeyFacts("/keys", "no cluster keys in /keys", is_missing=True, makes_them=True)
    assert [each.level for each in judge_keys(made)] == [OK]
    unsafe = KeyFacts("/keys", "/keys is open to others (mode 0755)", makes_them=True)
    assert [each.level for each in judge_keys(unsafe)] == [FAILURE]


def test_doing_without_keys_is_fine_on_loopback_and_a_failure_beyond() -> None:
    assert [each.level for each in judge_keys(KeyFacts(""))] == [OK]
    outside = KeyFacts("", "0.0.0.0 can be reached from other machines")
    assert [each.level for each in judge_keys(outside)] == [FAILURE]


@pytest.mark.parametrize(
    ("own", "level", "advice"),
    [
        (OwnKey("node", "w1", "valid", age_s=3 * 86400.0), OK, ""),
        (OwnKey("node", "w1", ""), FAILURE, "keys issue w1 --role node"),
        (OwnKey("node", "w1", "revoked"), FAILURE, "keys issue w1 --role node"),
        (OwnKey("node", "w1", "retired"), FAILURE, "keys issue w1 --role node"),
        (OwnKey("node", "w1", "retired", elsewhere=1), FAILURE, "bring the folder"),
        (OwnKey("node", "w1", "valid", elsewhere=1), WARNING, "bring the folder"),
        (OwnKey("node", "head", "valid", waiting=1), WARNING, "keys activate --role node"),
    ],
)
def test_a_key_counts_or_the_next_step_is_named(own: OwnKey, level: str, advice: str) -> None:
    finding = judged(own)
    assert finding.level == level
    assert advice in finding.advice
    assert bool(advice) == bool(finding.advice)


def test_older_keys_that_count_still_are_for_the_authority_to_retire() -> None:
    own = OwnKey("node", "head", "valid", older=1)
    assert judged(own).level == OK
    assert judged(own, is_authority=True).level == WARNING
    assert "keys retire head" in judged(own, is_authority=True).advice


# -- nodes ---------------------------------------------------------------------------------------


def cluster(*others: NodeFacts) -> list[Finding]:
    own = NodeFacts("a", "one", is_asked=True, versions=VERSIONS, unreached={})
    return list(judge_nodes([own, *others]))


def other(versions: dict[str, str] | None = None, clock_ahead_s: float = 0.0) -> NodeFacts:
    return NodeFacts(
        "b", "two", clock_ahead_s=clock_ahead_s, versions=VERSIONS | (versions or {}), unreached={}
    )


def test_nodes_that_agree_have_nothing_but_ok() -> None:
    findings = cluster(other())
    assert {each.level for each in findings} == {OK}
    assert {each.check for each in findings} == {"nodes", "addresses", "clocks", "versions"}


@pytest.mark.parametrize(("ahead_s", "level"), [(0.4, OK), (-0.6, WARNING), (3600.0, WARNING)])
def test_a_clock_that_is_off_is_named_with_by_how_much(ahead_s: float, level: str) -> None:
    findings = cluster(other(clock_ahead_s=ahead_s))
    assert level_of(findings, "clocks") == level
    (told,) = [each for each in findings if each.check == "clocks"]
    assert (f"{ahead_s:+.1f} s" in told.found) == (level == WARNING)


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("python", "3.12.1", FAILURE),
        ("python", "3.11.9", OK),
        ("zray", "0.1.1", WARNING),
        ("numpy", "1.26.4", WARNING),
        ("numpy", "2.0.0", OK),
        ("cloudpickle", "2.2.1", WARNING),
        ("pyzmq", "26.0.0", WARNING),
        ("pyzmq", "27.9.9", OK),
        ("libzmq", "4.2.5", WARNING),
        ("libzmq", "4.3.4", OK),
        ("msgpack", "2.0.0", WARNING),
    ],
)
def test_versions_differ_where_it_matters(name: str, version: str, level: str) -> None:
    findings = cluster(other({name: version}))
    assert level_of(findings, "versions") == level
    (told,) = [each for each in findings if each.check == "versions"]
    assert (f" {version[0]}" in told.found and "two" in told.found) == (level != OK)


def test_a_node_that_does_not_say_its_versions_is_named() -> None:
    findings = cluster(NodeFacts("b", "two", unreached={}))
    assert level_of(findings, "versions") == WARNING


def test_an_address_that_is_not_reached_fails_unless_it_is_ones_own() -> None:
    away = NodeFacts("b", "two", versions=VERSIONS, unreached={"10.0.0.8:6381": "no answer"})
    findings = cluster(away)
    assert level_of(findings, "addresses") == FAILURE
    (told,) = [each for each in findings if each.check == "addresses"]
    assert "10.0.0.8:6381" in told.found
    own = NodeFacts("a", "one", is_asked=True, versions=VERSIONS, unreached={"gate:1": "no answer"})
    assert level_of(list(judge_nodes([own])), "addresses") == WARNING


def test_what_was_not_tried_is_not_said_to_be_reached() -> None:
    untried = [NodeFacts("a", "one", is_asked=True, versions=VERSIONS)]
    assert "addresses" not in {each.check for each in judge_nodes(untried)}


def test_a_hundred_nodes_in_trouble_are_a_few_lines() -> None:
    silent = [NodeFacts(str(i), "m", "SILENT", "it says nothing") for i in range(100)]
    off = [other(clock_ahead_s=9.0)] * 100
    away = [NodeFacts("c", "m", versions=VERSIONS, unreached={"x:1": "no answer"})] * 100
    findings = cluster(*silent, *off, *away)
    assert len(findings) < 40
    assert any("92 more" in each.found for each in findings)
