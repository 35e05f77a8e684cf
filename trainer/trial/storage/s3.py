"""The store in S3 or what speaks its protocol, through boto3 (imported at the first request, not before).

The endpoint and the credentials come from where boto3 takes them: environment, profile, or the pod's identity.
Create-once is a PUT with `If-None-Match: *`. A retried PUT may meet its own first try, so every object created this way
carries the name of its writer, and a refusal by one's own object counts as success.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podium.trainer.trial.errors import NotFoundError, StorageError, UserError
from podium.trainer.trial.process import SCRATCH, scratch_name
from podium.trainer.trial.storage.base import Leftover, Storage, check_key, normalise_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


# boto3's errors in our words: what is wrong and where, without credentials.

MISSING_CODES = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}
_REASONS = {
    "NoSuchBucket": "the bucket does not exist",
    "AccessDenied": "access denied",
    "403": "access denied",
    "InvalidAccessKeyId": "the access key is not known to the server",
    "XAdminUserNotFound": "the access key is not known to the server",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
    "PermanentRedirect": "the bucket is in another region",
    "AuthorizationHeaderMalformed": "the bucket is in another region, or AWS_REGION is wrong",
    "InvalidBucketName": "the bucket's name is not valid",
    "QuotaExceeded": "the quota is used up",
    "SlowDown": "the server is overloaded",
    "RequestTimeTooSkewed": "this machine's clock is wrong, and S3 serves nobody whose clock is 15 minutes off",
}


@contextmanager
def in_words(where: str, endpoint: str) -> Iterator[None]:
    """Raise NotFoundError or StorageError that names `where` for any error of boto3; `endpoint` is empty for AWS."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if error.response["Error"].get("Code", "") in MISSING_CODES:
            raise NotFoundError(f"{where}: not there") from None
        raise StorageError(f"{where}: {_client_reason(error)}") from None
    except BotoCoreError as error:
        raise StorageError(f"{where}: {_connection_reason(error, endpoint)}") from None
    except Boto3Error as error:
        raise StorageError(f"{where}: {scrub(str(error))}") from None


def _client_reason(error: Any) -> str:
    detail = error.response["Error"]
    code, said = detail.get("Code", ""), scrub(detail.get("Message", ""))
    reason = _REASONS.get(code)
    if reason is None:
        return f"the server refused: {code}: {said}"
    return f"{reason} ({code}{f': {said}' if said and said != code else ''})"


def _connection_reason(error: Exception, endpoint: str) -> str:
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the pod's identity"
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError):
        return f"the endpoint {scrub(endpoint)} can't be reached" if endpoint else "S3 can't be reached"
    return scrub(str(error))


def scrub(text: str) -> str:
    """A message without what must not be in a log: access keys, and a password in an address."""
    text = re.sub(r"//[^/@\s]+@", "//", text)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if value := os.environ.get(name):
            text = text.replace(value, "…")
    return re.sub(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b", "…", text)


ATTEMPTS, PROBE_ATTEMPTS = 14, 2
"""Tries of a request, with back-off: more than a minute without an answer in work, a few seconds for a probe."""
READS = 3
PART_BYTES = 16 << 20
PARALLEL_PARTS = 8
STALE_SECONDS = 3600.0
"""Age, by the server's clock, after which an upload in parts counts as abandoned: boto3 gives up long before."""
WRITER = "podium-writer"
"""Metadata of an object made by `create`: whose it is."""


class S3Storage(Storage):
    """Objects below a prefix of a bucket."""

    def __init__(self, uri: str) -> None:
        self.uri = normalise_uri(uri)
        self.bucket, _, self._prefix = self.uri.removeprefix("s3://").partition("/")

    def read_bytes(self, key: str) -> bytes:
        """See Storage."""
        from botocore.exceptions import BotoCoreError

        with self._in_words(key):
            for _ in range(READS - 1):  # boto3 tries a request again, but not the reading of its answer
                body = self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"]
                with suppress(BotoCoreError):
                    return body.read()
            return self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"].read()

    def write_bytes(self, key: str, data: bytes) -> None:
        """See Storage."""
        with self._in_words(key):
            self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:
        """See Storage."""
        with self._in_words(key):
            return self._create(self._client, self._name(key), data)

    def exists(self, key: str) -> bool:
        """See Storage."""
        return self._head(key) is not None

    def list(self, prefix: str = "") -> list[str]:
        """See Storage."""
        return [key for key in self._all_keys(prefix) if not any(part.startswith(SCRATCH) for part in key.split("/"))]

    def delete(self, key: str) -> None:
        """See Storage."""
        with self._in_words(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def delete_folder(self, prefix: str) -> None:
        """See Storage."""
        for key in self._all_keys(prefix):
            self.delete(key)

    def leftovers(self, prefix: str = "") -> Sequence[Leftover]:
        """See Storage: uploads in parts that were neither completed nor given up, and the objects of killed probes.

        S3 keeps and bills their parts until they are aborted. A server that can't list them gives none.
        """
        from botocore.exceptions import ClientError

        client, start = self._client, self._start(prefix)
        found = [
            Leftover(key, None, None, partial(self.delete, key))
            for key in self._all_keys(prefix)
            if any(part.startswith(SCRATCH) for part in key.split("/"))
        ]
        with self._in_words(prefix):
            try:
                pages = list(client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=start))
            except ClientError as error:
                if error.response["Error"].get("Code", "") not in ("NotImplemented", "MethodNotAllowed", "501", "405"):
                    raise
                return found
        for page in pages:
            now = page["ResponseMetadata"]["HTTPHeaders"].get("date")
            for item in page.get("Uploads", []):
                name, upload = item["Key"], item["UploadId"]
                age = None if now is None else (parsedate_to_datetime(now) - item["Initiated"]).total_seconds()
                alive = False if age is not None and age > STALE_SECONDS else None
                remove = partial(self._abort, name, upload)
                found.append(Leftover(name[len(self._root) :], None, alive, remove))
        return found

    def _abort(self, name: str, upload: str) -> None:
        with suppress(NotFoundError), self._in_words(name):  # completed, or aborted by another
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload)

    def upload(self, path: Path, key: str) -> None:
        """See Storage. Parts go in parallel; the object appears when the last one is there."""
        with self._in_words(key):
            self._client.upload_file(str(path), self.bucket, self._name(key), Config=_transfer())

    def download(self, key: str, path: Path) -> None:
        """See Storage."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.parent / scratch_name()
        try:
            with self._in_words(key):
                self._client.download_file(self.bucket, self._name(key), str(temp), Config=_transfer())
            temp.replace(path)
        except OSError as error:
            raise StorageError(f"{path}: can't be written: {error.strerror}") from None
        finally:
            temp.unlink(missing_ok=True)

    def stamp(self, key: str) -> str:
        """See Storage."""
        head = self._head(key)
        if head is None:
            raise NotFoundError(f"{self.uri}/{key}: not there")
        return f"{head['ContentLength']}-{head['ETag']}"

    def size(self, key: str) -> int:
        """See Storage."""
        head = self._head(key)
        if head is None:
            raise NotFoundError(f"{self.uri}/{key}: not there")
        return int(head["ContentLength"])

    def local_path(self, key: str) -> None:
        """See Storage."""
        return

    def child(self, prefix: str) -> S3Storage:
        """See Storage."""
        return S3Storage(f"{self.uri}/{check_key(prefix.rstrip('/'))}")

    def probe(self) -> None:
        """See Storage. Asks for the bucket first; then writes one scratch object twice, and removes it.

        A server that lets the second write pass would lose ledger entries without a word.
        """
        name = self._name(scratch_name())
        try:
            with self._in_words(""):
                client = _client(os.getpid(), PROBE_ATTEMPTS, *_environment())
                client.list_objects_v2(Bucket=self.bucket, Prefix=self._root, MaxKeys=1)
                try:
                    once = self._create(client, name, b"1"), self._create(client, name, b"2")
                finally:
                    client.delete_object(Bucket=self.bucket, Key=name)
        except NotFoundError:  # S3 itself says NoSuchBucket
            raise UserError(f"store {self.uri}: 404 from {scrub(_environment()[0])}: is this an S3 endpoint?") from None
        except StorageError as error:
            raise UserError(f"store {error}") from None
        if once != (True, False):
            raise UserError(f"store {self.uri}: this server does not honour 'If-None-Match: *', which the ledger needs")

    @property
    def _client(self) -> S3Client:
        return _client(os.getpid(), ATTEMPTS, *_environment())

    @cached_property
    def _root(self) -> str:
        return f"{self._prefix}/" if self._prefix else ""

    def _start(self, prefix: str) -> str:
        return f"{self._root}{prefix.rstrip('/')}/" if prefix.rstrip("/") else self._root

    def _name(self, key: str) -> str:
        return self._root + check_key(key)

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            with self._in_words(key):
                return dict(self._client.head_object(Bucket=self.bucket, Key=self._name(key)))
        except NotFoundError:
            return None

    def _create(self, client: S3Client, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        writer = uuid.uuid4().hex
        while True:
            try:
                client.put_object(Bucket=self.bucket, Key=name, Body=data, IfNoneMatch="*", Metadata={WRITER: writer})
                return True
            except ClientError as error:
                code = error.response["Error"].get("Code", "")
                if code == "ConditionalRequestConflict":  # two at once, neither done: the server asks to try again
                    continue
                if code not in ("PreconditionFailed", "412"):
                    raise
            try:
                return client.head_object(Bucket=self.bucket, Key=name)["Metadata"].get(WRITER) == writer
            except ClientError as error:
                if error.response["Error"].get("Code", "") not in MISSING_CODES:
                    raise
                return False  # it was there a moment ago, and is deleted again

    def _all_keys(self, prefix: str) -> Iterator[str]:
        with self._in_words(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._start(prefix)
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        yield from sorted(key[len(self._root) :] for key in keys)

    def _in_words(self, key: str) -> AbstractContextManager[None]:
        return in_words(f"{self.uri}/{key}" if key else self.uri, _environment()[0])


def _environment() -> tuple[str, str, str, int]:
    """What a client is made from, so that a changed environment makes another one; of the credentials only a hash."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    secrets = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return endpoint, region, os.environ.get("AWS_PROFILE", ""), hash(tuple(os.environ.get(name) for name in secrets))


_making = threading.Lock()


def _client(pid: int, attempts: int, endpoint: str, region: str, profile: str, credentials: int) -> S3Client:
    # Clients are safe to share between threads; making one is not, and a forked process needs its own connections.
    with _making:
        return _make_client(pid, attempts, endpoint, region, profile, credentials)


@lru_cache(maxsize=8)
def _make_client(pid: int, attempts: int, endpoint: str, region: str, profile: str, credentials: int) -> S3Client:
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=4 * PARALLEL_PARTS,
        # Servers other than AWS rarely know the checksums that boto3 adds by default; ours are in the manifests.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A server of one's own seldom has a DNS name per bucket.
        s3={"addressing_style": "path"} if endpoint else {},
    )
    session = boto3.session.Session()
    region = region or session.region_name or "us-east-1"
    try:
        return session.client("s3", config=config, endpoint_url=endpoint or None, region_name=region)
    except ValueError:
        raise StorageError(f"AWS_ENDPOINT_URL must be http(s)://host:port, got {scrub(endpoint)!r}") from None


@lru_cache(maxsize=1)
def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARALLEL_PARTS
    )
