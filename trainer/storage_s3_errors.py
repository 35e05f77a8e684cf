"""boto3's errors in our words: what is wrong and where, without credentials."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from podium.trainer.errors import NotFoundError, StorageError

MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
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
