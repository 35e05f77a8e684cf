"""What both kinds of store promise."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podium.trainer.trial.errors import NotFoundError, StorageError, UserError
from podium.trainer.trial.storage import (
    Storage,
    get_folder,
    join_uri,
    normalise_uri,
    open_storage,
    put_folder,
    split_uri,
)


def test_what_is_written_is_read_and_replaced_whole(storage: Storage) -> None:
    storage.write_bytes("a/b", b"long enough to be seen")
    storage.write_bytes("a/b", b"short")
    storage.write_text("a/text", "Größe")
    storage.write_json("a/json", {"b": 1, "a": [None]})
    assert storage.read_bytes("a/b") == b"short"
    assert storage.read_text("a/text") == "Größe"
    assert storage.read_json("a/json") == {"b": 1, "a": [None]}
    assert storage.read_bytes("a/json") == b'{\n  "b": 1,\n  "a": [\n    null\n  ]\n}\n'


def test_json_never_holds_a_number_that_is_not_finite(storage: Storage) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json("a", {"loss": float("nan")})
    assert storage.list() == []


def test_what_is_not_json_is_named(storage: Storage) -> None:
    storage.write_bytes("broken.json", b'{"a": ')
    with pytest.raises(StorageError, match=r"broken\.json: not JSON"):
        storage.read_json("broken.json")


def test_absent_objects_are_not_found_and_deleting_them_is_no_error(storage: Storage, tmp_path: Path) -> None:
    assert not storage.exists("nothing/here")
    storage.delete("nothing/here")
    storage.delete_folder("nothing")
    for read in (storage.read_bytes, storage.stamp, lambda key: storage.download(key, tmp_path / "x" / "y")):
        with pytest.raises(NotFoundError, match="nothing/here: not there"):
            read("nothing/here")
    assert not (tmp_path / "x" / "y").exists()


def test_list_gives_all_keys_of_a_folder_and_no_scratch(storage: Storage) -> None:
    for key in ("b/c/d", "b/a", "bc/x", "top", "b/.tmp-123-abc", ".tmp-dir/x"):
        storage.write_bytes(key, b"")
    assert storage.list() == ["b/a", "b/c/d", "bc/x", "top"]
    assert storage.list("b") == storage.list("b/") == ["b/a", "b/c/d"]
    assert storage.list("nothing") == []
    assert storage.child("b").list() == ["a", "c/d"]
    storage.delete_folder("b")
    assert storage.list() == ["bc/x", "top"]


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../../b", "a/."])
def test_a_key_can_not_leave_its_root(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="key must be relative"):
        storage.write_bytes(key, b"")


def test_of_many_writers_that_create_one_object_exactly_one_is_told_true(storage: Storage) -> None:
    for number in range(10):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda writer: storage.create(f"entry-{number}", str(writer).encode()), range(8)))  # noqa: B023
        assert sum(won) == 1
        assert storage.read_text(f"entry-{number}") == str(won.index(True))
    assert len(storage.list()) == 10


def test_files_go_up_and_come_down_whole(storage: Storage, tmp_path: Path) -> None:
    data = bytes(range(256)) * 140_000  # three parts of a multipart upload
    (tmp_path / "big").write_bytes(data)
    storage.upload(tmp_path / "big", "deep/big")
    storage.download("deep/big", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]


def test_a_stamp_changes_with_its_object(storage: Storage) -> None:
    storage.write_bytes("a", b"one")
    before = storage.stamp("a")
    assert storage.stamp("a") == before
    storage.write_bytes("a", b"three")
    assert storage.stamp("a") != before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "a.txt").write_text("alpha")
    (tmp_path / "folder" / "sub" / "b.bin").write_bytes(bytes(1000))
    return tmp_path / "folder"


def test_a_folder_comes_back_as_it_was(storage: Storage, folder: Path, tmp_path: Path) -> None:
    put_folder(storage, folder, "data/x")
    local = get_folder(storage, "data/x", tmp_path / "cache")
    assert (local / "a.txt").read_text() == "alpha"
    assert (local / "sub" / "b.bin").read_bytes() == bytes(1000)
    assert set(json.loads((local / "manifest.json").read_text())["files"]) == {"a.txt", "sub/b.bin"}
    assert get_folder(storage, "data/x", tmp_path / "cache") == local


def test_an_upload_cut_off_half_way_does_not_exist_and_the_next_completes(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = type(storage).upload

    def cut_off(self: Storage, path: Path, key: str) -> None:
        if key.endswith("b.bin"):
            raise StorageError("cut off")
        upload(self, path, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "upload", cut_off)
        with pytest.raises(StorageError, match="cut off"):
            put_folder(storage, folder, "data/x")
    assert storage.list() == ["data/x/a.txt"]
    with pytest.raises(NotFoundError):
        get_folder(storage, "data/x", tmp_path / "cache")
    put_folder(storage, folder, "data/x")
    assert (get_folder(storage, "data/x", tmp_path / "cache") / "sub" / "b.bin").stat().st_size == 1000


def test_a_folder_that_differs_from_its_manifest_is_refused_and_never_cached(
    storage: Storage, folder: Path, tmp_path: Path
) -> None:
    put_folder(storage, folder, "x")
    storage.write_bytes("x/a.txt", b"alphA")
    storage.write_bytes("x/sub/b.bin", b"")
    with pytest.raises(StorageError, match=r"a\.txt does not have the manifest's sha256; sub/b\.bin has 0 bytes"):
        get_folder(storage, "x", tmp_path / "cache")
    assert not any((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket//a//b/", "s3://bucket/a/b"),
        ("file:///a/b/../c/", "file:///a/c"),
        ("/a b/%20", "file:///a b/%20"),
    ],
)
def test_uris_have_one_normal_form(uri: str, normal: str) -> None:
    assert normalise_uri(uri) == normal
    assert normalise_uri(normal) == normal


def test_plain_paths_are_taken_from_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise_uri("runs/demo") == f"file://{tmp_path}/runs/demo"
    assert open_storage("runs").uri == f"file://{tmp_path}/runs"


@pytest.mark.parametrize(
    "uri", ["gs://bucket/x", "http://host/x", "file://host/x", "s3://", "s3:///x", "s3://Ü/x", " "]
)
def test_another_scheme_is_refused_with_what_is_allowed(uri: str) -> None:
    with pytest.raises(UserError, match=r"(s3://bucket/prefix|file:///absolute/path), got"):
        open_storage(uri)


_parts = st.text("abc-_.% ü", min_size=1).filter(lambda part: part.strip("./ ") == part and part.strip())


@given(st.lists(_parts, min_size=1, max_size=4))
def test_joining_and_splitting_are_inverse(parts: list[str]) -> None:
    for root in ("s3://bucket/p", "file:///a/b"):
        joined = join_uri(root, *parts)
        assert normalise_uri(joined) == joined
        assert split_uri(joined) == ("/".join([root, *parts[:-1]]), parts[-1])
