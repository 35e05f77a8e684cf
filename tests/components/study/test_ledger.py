from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from podium.components.study.ledger import Ledger
from podium.trainer.trial.storage import open_storage

kinds = st.sampled_from(["gate", "kill", "verdict", "trial_ended"])


@given(st.lists(st.tuples(kinds, st.sampled_from("abcd"), st.integers(0, 2)), max_size=12))
@settings(deadline=None, max_examples=25)
def test_an_entry_is_written_once_and_order_is_that_of_first_writing(events: list[tuple[str, str, int]]) -> None:
    with TemporaryDirectory() as folder:
        ledgers = [Ledger(open_storage(folder)) for _ in range(3)]
        first: list[tuple[str, str, int]] = []
        for kind, key, writer in events:
            is_new = (kind, key) not in [(k, name) for k, name, _ in first]
            assert ledgers[writer].append(kind, key, by=writer) == is_new  # type: ignore[arg-type]
            if is_new:
                first.append((kind, key, writer))
        for ledger in ledgers:
            assert [(e.kind, e.key, e.data["by"]) for e in ledger.entries()] == first


def test_of_racing_writers_of_one_entry_exactly_one_writes_it(tmp_path: Path) -> None:
    barrier, wrote = threading.Barrier(8), []

    def write(index: int) -> None:
        ledger = Ledger(open_storage(str(tmp_path)))
        barrier.wait()
        if ledger.append("verdict", "ranking", by=index):
            wrote.append(index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Ledger(open_storage(str(tmp_path))).entries()
    assert [entry.data["by"] for entry in entries] == wrote
    assert len(wrote) == 1


def test_racing_writers_of_different_entries_lose_none(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)

    def write(index: int) -> None:
        ledger = Ledger(open_storage(str(tmp_path)))
        barrier.wait()
        for number in range(5):
            assert ledger.append("trial_ended", f"{index}/{number}")

    threads = [threading.Thread(target=write, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [entry.key for entry in Ledger(open_storage(str(tmp_path))).entries()]
    assert sorted(keys) == sorted(f"{index}/{number}" for index in range(6) for number in range(5))


def test_entries_are_found_by_kind_and_key(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(str(tmp_path)))
    ledger.append("gate", "shakedown", result="pass")
    ledger.append("kill", "ranking/a", tokens=3)
    found = ledger.find("kill", "ranking/a")
    assert found is not None
    assert found.data == {"tokens": 3}
    assert ledger.find("kill", "shakedown") is None
    assert [entry.n for entry in ledger.entries()] == [1, 2]
