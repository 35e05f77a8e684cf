"""A lease: one holder at a time, dead holders found out, no clocks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from podium.trainer.trial.errors import InUseError, StorageError
from podium.trainer.trial.lease import Lease, Watch, is_live
from podium.trainer.trial.process import host_identity, is_alive, own_identity, start_ticks
from podium.trainer.trial.storage import Storage, open_storage

BEAT = 0.05

HOLDER = """
import sys, time
from podium.trainer.trial.lease import Lease
from podium.trainer.trial.storage import open_storage
with Lease(open_storage(sys.argv[1]), interval=0.05, token=sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def lease(store: Storage, **options: Any) -> Lease:
    return Lease(store, what="run demo-1234", interval=BEAT, patience=4, **options)


def hold_elsewhere(store: Storage, token: str = "other") -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.uri.removeprefix("file://"), token], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.stdout.close()
    return holder


def remote(store: Storage, counter: int = 7, holder: str = "far") -> dict[str, Any]:
    record = {
        "holder": holder, "counter": counter, "host": "elsewhere/1", "pid": 1, "started": 1,
        "interval": BEAT, "patience": 4,
    }  # fmt: skip
    store.write_json("lease.json", record)
    return record


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_beats_while_it_is_held_and_is_gone_afterwards(store: Storage) -> None:
    with lease(store) as held:
        wait_for(lambda: store.read_json("lease.json")["counter"] >= 3)
        assert is_live(store)
        assert not held.lost
    assert store.list() == []
    assert not is_live(store)


def test_a_live_holder_is_named_at_once(store: Storage) -> None:
    holder = hold_elsewhere(store)
    begin = time.monotonic()
    with pytest.raises(InUseError, match=rf"^run demo-1234 is in use by process {holder.pid} on "):
        lease(store).acquire()
    assert time.monotonic() - begin < 5
    holder.kill()
    holder.wait()


def test_a_killed_holder_of_this_machine_is_dead_without_waiting(store: Storage) -> None:
    holder = hold_elsewhere(store)
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    assert not is_live(store)
    with Lease(store, interval=30.0) as held:  # a patience of minutes would be seen
        assert store.read_json("lease.json")["holder"] == held.token
    assert time.monotonic() - begin < 20
    assert store.list() == []


def test_a_pid_that_another_process_has_now_is_a_dead_holder(store: Storage) -> None:
    record = {**remote(store), **own_identity(), "started": 1}
    store.write_json("lease.json", record)
    assert not is_live(store)


def test_a_holder_elsewhere_is_dead_when_its_counter_stands_still(store: Storage) -> None:
    remote(store)
    begin = time.monotonic()
    with lease(store):
        assert time.monotonic() - begin >= 4 * BEAT


def test_a_holder_elsewhere_that_beats_is_alive(store: Storage) -> None:
    remote(store)
    stop = threading.Event()

    def beat() -> None:
        counter = 7
        while not stop.wait(BEAT):
            counter += 1
            remote(store, counter)

    with ThreadPoolExecutor(1) as pool:
        beating = pool.submit(beat)
        try:
            with pytest.raises(InUseError, match="process 1 on elsewhere"):
                lease(store).acquire()
            assert is_live(store)
        finally:
            stop.set()
        beating.result()


@pytest.mark.parametrize("dead", ["here", "elsewhere", "nobody"])
def test_of_many_takers_at_once_exactly_one_holds(store: Storage, dead: str) -> None:
    for _ in range(5):
        if dead == "here":
            store.write_json("lease.json", {**remote(store), **own_identity(), "started": 1})
        elif dead == "elsewhere":
            remote(store)
        takers = [lease(store) for _ in range(6)]

        def take(taker: Lease) -> bool:
            try:
                taker.acquire()
            except InUseError:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            took = list(pool.map(take, takers))
        assert sum(took) == 1
        winner = takers[took.index(True)]
        time.sleep(2 * BEAT)
        assert not winner.lost
        assert store.read_json("lease.json")["holder"] == winner.token
        winner.release()
        assert store.list() == []


def test_a_taker_killed_between_claim_and_write_blocks_nobody(store: Storage) -> None:
    dead = remote(store)
    claim = {**dead, **own_identity(), "started": 1, "holder": "killed taker"}
    store.write_json("lease.json.claim-far-7-0", claim)
    store.write_json("lease.json.claim-far-7-1", {**dead, "holder": "killed taker elsewhere"})
    with lease(store) as held:
        assert store.read_json("lease.json")["holder"] == held.token
    assert store.list() == []


def test_a_taker_that_comes_late_does_not_overwrite_the_new_holder(store: Storage) -> None:
    dead = remote(store)
    with lease(store) as held:
        late = lease(store)
        assert not late._take_over(dead)
        assert store.read_json("lease.json")["holder"] == held.token
        assert store.list() == ["lease.json"]


def test_the_holder_sees_that_its_lease_was_taken(store: Storage) -> None:
    with lease(store) as held:
        remote(store)
        wait_for(lambda: held.lost)
    assert store.read_json("lease.json")["holder"] == "far", "what is another's is not removed"


def test_a_process_that_has_the_token_shares_the_lease_and_does_not_end_it(store: Storage) -> None:
    holder = hold_elsewhere(store, token="shared")
    with lease(store, token="shared") as inner:
        assert not inner.lost
        assert store.read_json("lease.json")["pid"] == holder.pid
    assert is_live(store)
    holder.kill()
    holder.wait()
    with lease(store, token="shared"):
        assert store.read_json("lease.json")["pid"] != holder.pid, "of a dead holder the token's owner takes it"


def test_a_store_that_is_away_for_a_while_ends_no_lease(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(store) as held:
        with monkeypatch.context() as patch:

            def away(self: Storage, key: str, data: bytes = b"") -> bytes:
                raise StorageError("away")

            patch.setattr(type(store), "read_bytes", away)
            patch.setattr(type(store), "write_bytes", away)
            time.sleep(3 * BEAT)
        before = store.read_json("lease.json")["counter"]
        wait_for(lambda: store.read_json("lease.json")["counter"] > before)
        assert not held.lost


def test_a_watch_goes_stale_only_when_the_counter_stands_still(store: Storage) -> None:
    held = lease(store)
    held.acquire()
    with Watch(f"{store.uri}/lease.json", patience_seconds=0.4, interval=0.02) as watch:
        time.sleep(0.8)
        assert not watch.stale
        held.release()
        wait_for(lambda: watch.stale)
        with lease(store):
            wait_for(lambda: not watch.stale)


def test_a_process_is_known_by_its_start_and_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    wait_for(lambda: start_ticks(child.pid) is None)
    child.wait()
    me = own_identity()
    assert is_alive(me["host"], me["pid"], me["started"]) is True
    assert is_alive(host_identity(), me["pid"], 1) is False
    assert is_alive("elsewhere", me["pid"], me["started"]) is None
