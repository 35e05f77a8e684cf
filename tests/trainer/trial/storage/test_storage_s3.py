"""What only S3 can get wrong: the server's refusals, lost answers, and servers that are not quite S3."""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from podium.trainer.trial.errors import StorageError, UserError
from podium.trainer.trial.storage import Storage, open_storage

Serve = Callable[[type[BaseHTTPRequestHandler]], str]


class Quiet(BaseHTTPRequestHandler):
    """Answers everything with `status` and, for an error, S3's XML."""

    protocol_version = "HTTP/1.1"  # boto3 waits for "100 Continue" before it sends a body
    status, code, message = 200, "", ""

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if code else b""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_xml(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        self.answer(self.status, self.code, self.message)

    do_PUT = do_HEAD = do_DELETE = do_GET


def test_a_good_store_passes_the_probe_and_keeps_nothing_of_it(s3: Storage) -> None:
    s3.probe()
    assert s3.list() == []
    assert open_storage(s3.uri.rsplit("/", 2)[0]).list() == []


def test_a_bucket_that_does_not_exist_is_refused(s3_environment: str) -> None:
    with pytest.raises(UserError, match=r"^store s3://no-such-bucket/x: the bucket does not exist"):
        open_storage("s3://no-such-bucket/x").probe()
    with pytest.raises(StorageError, match="the bucket does not exist"):
        open_storage("s3://no-such-bucket/x").write_bytes("a", b"")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "access denied"),
        (403, "InvalidAccessKeyId", "the access key is not known to the server"),
        (403, "SignatureDoesNotMatch", "the secret key is wrong"),
        (400, "ExpiredToken", "the credentials have expired"),
        (400, "Peculiar", "the server refused: Peculiar"),
    ],
)
def test_a_refusal_is_said_once_in_words_and_without_credentials(
    serve: Serve, status: int, code: str, words: str
) -> None:
    said = "key an-access-key-id, secret a-secret-access-key, AKIAIOSFODNN7EXAMPLE"
    serve(type("Handler", (Quiet,), {"status": status, "code": code, "message": said}))
    store = open_storage("s3://bucket/x")
    with pytest.raises(UserError, match=f"^store s3://bucket/x: {words}") as refused:
        store.probe()
    with pytest.raises(StorageError, match=words) as failed:
        store.read_bytes("a")
    for message in (str(refused.value), str(failed.value)):
        assert "an-access-key-id" not in message
        assert "a-secret-access-key" not in message
        assert "AKIA" not in message


def test_missing_credentials_are_named(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(UserError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        open_storage("s3://bucket/x").probe()


def test_an_endpoint_that_does_not_answer_is_named_without_its_password(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:password@127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"the endpoint http://127.0.0.1:{port} can't be reached"):
        open_storage("s3://bucket/x").probe()


def test_an_endpoint_that_is_none_is_refused(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL must be http\(s\)://host:port, got 'minio:9000'"):
        open_storage("s3://bucket/x").probe()


def test_a_web_server_that_is_not_s3_is_refused(serve: Serve) -> None:
    serve(type("Handler", (Quiet,), {"status": 404}))
    with pytest.raises(UserError, match="is this an S3 endpoint"):
        open_storage("s3://bucket/x").probe()


def test_a_server_that_lets_a_second_create_pass_is_refused(serve: Serve) -> None:
    class Careless(Quiet):
        def do_GET(self) -> None:
            self.answer_xml("<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")

    serve(Careless)
    with pytest.raises(UserError, match="does not honour 'If-None-Match"):
        open_storage("s3://bucket/x").probe()


@pytest.mark.parametrize("whose", ["own", "another"])
def test_a_create_whose_answer_was_lost_is_told_true_only_to_its_writer(serve: Serve, whose: str) -> None:
    class Lossy(Quiet):
        writer: str | None = None

        def do_PUT(self) -> None:
            cls = type(self)
            if cls.writer is None:
                self.rfile.read(int(self.headers["Content-Length"]))
                cls.writer = self.headers["x-amz-meta-podium-writer"] if whose == "own" else "somebody else"
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.answer(412, "PreconditionFailed")

        def do_HEAD(self) -> None:
            self.answer(200, headers={"x-amz-meta-podium-writer": str(type(self).writer)})

    serve(Lossy)
    assert open_storage("s3://bucket/x").create("entry", b"1") == (whose == "own")


def test_an_answer_cut_short_is_asked_for_again(serve: Serve) -> None:
    class Short(Quiet):
        asked = 0

        def do_GET(self) -> None:
            cls = type(self)
            cls.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"0123456789" if cls.asked > 1 else b"0123")
            self.close_connection = True

    serve(Short)
    assert open_storage("s3://bucket/x").read_bytes("a") == b"0123456789"


def test_keys_are_listed_over_all_pages(serve: Serve) -> None:
    class Paged(Quiet):
        def do_GET(self) -> None:
            last = "continuation-token=next" in self.path
            key = "x/n/a" if last else "x/n/b"
            more = "" if last else "<NextContinuationToken>next</NextContinuationToken>"
            self.answer_xml(
                f"<ListBucketResult><IsTruncated>{str(not last).lower()}</IsTruncated>{more}"
                f"<Contents><Key>{key}</Key></Contents></ListBucketResult>"
            )

    serve(Paged)
    assert open_storage("s3://bucket/x").list("n") == ["n/a", "n/b"]
