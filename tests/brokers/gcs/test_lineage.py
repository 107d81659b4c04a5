"""Lineage by job: a ledger and a cap each, gone with the job.

What    What is written of whom, what a busy job can't push out, what is on disk after the end.
Caller  pytest.
Never   starts a process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from zray.brokers.gcs.ledger import Ledger, record_count, unpack_blob
from zray.brokers.gcs.lineage import Lineage, Written
from zray.errors import GcsError

ONE, OTHER = "aa" * 8, "bb" * 8
MB = 1 << 20


def test_each_job_has_a_ledger_of_its_own(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "ledger", job_bytes_max=MB)
    lineage.append(ONE, [b"a", b"b"])
    lineage.append(OTHER, [b"c"])
    assert lineage.flush() == [Written(ONE, 0, 2), Written(OTHER, 0, 1)]
    (found,) = lineage.read(ONE, 0)
    assert (found[0], unpack_blob(found[1]), record_count(found[1])) == (0, [b"a", b"b"], 2)
    assert lineage.read("cc" * 8, 0) == []
    lineage.close()
    assert not any((tmp_path / "ledger").iterdir())


def test_a_busy_job_pushes_out_its_own_lineage_alone(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "ledger", job_bytes_max=MB)
    lineage.append(OTHER, [b"precious"])
    for _ in range(80):
        lineage.append(ONE, [bytes(50_000)])
        written = {each.job: each for each in lineage.flush()}
    assert written[ONE].first > 0
    assert written[OTHER] == Written(OTHER, 0, 1)
    assert lineage.statistics()["ledger_dropped_records"] == written[ONE].first
    assert lineage.statistics()["ledger_bytes"] <= 3 * MB
    lineage.close()


def test_the_lineage_of_a_job_goes_with_it(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "ledger", job_bytes_max=MB)
    lineage.append(ONE, [b"a"])
    lineage.append(OTHER, [b"b"])
    lineage.flush()
    lineage.drop(ONE)
    lineage.drop(ONE)
    assert [each.name for each in (tmp_path / "ledger").iterdir()] == [OTHER]
    assert lineage.flush() == [Written(OTHER, 0, 1)]
    lineage.append(ONE, [b"of a detached actor"])
    assert Written(ONE, 1, 2) in lineage.flush(), "no number is given twice"
    lineage.close()


def test_nothing_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "ledger", job_bytes_max=0)
    lineage.append(ONE, [b"a"])
    assert lineage.flush() == []
    assert not (tmp_path / "ledger").exists()


def test_a_job_whose_ledger_fails_does_not_keep_others_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineage = Lineage(tmp_path / "ledger", job_bytes_max=MB)
    lineage.append(ONE, [b"a"])
    lineage.append(OTHER, [b"b"])
    flush = Ledger.flush

    def full(ledger: Ledger) -> int:
        if ONE in str(ledger._path):
            raise GcsError("no space left on device")
        return flush(ledger)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "flush", full)
        with pytest.raises(GcsError, match="no space"):
            lineage.flush()
    assert lineage.read(OTHER, 0)
    assert lineage.flush() == [Written(ONE, 0, 1), Written(OTHER, 0, 1)]
    lineage.close()


def test_a_ledger_that_skips_keeps_the_numbers_after_the_gap(tmp_path: Path) -> None:
    with Ledger(tmp_path, max_bytes=MB) as ledger:
        ledger.append([b"a"])
        ledger.skip_to(10)
        assert ledger.append([b"b"]) == 10
        assert list(ledger.scan()) == [(0, b"a"), (10, b"b")]
        with pytest.raises(GcsError, match="skip"):
            ledger.skip_to(5)
    with Ledger(tmp_path, max_bytes=MB) as again:
        assert again.next_position == 11
        assert list(again.scan()) == [(0, b"a"), (10, b"b")]
