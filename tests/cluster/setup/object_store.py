"""An S3 server over a folder, reached from pods and from this machine."""

from __future__ import annotations

import secrets
import socket

import daemons
from place import HOST, S3_PORT, S3_REGION, Place, say


def credentials(place: Place) -> tuple[str, str]:
    """Access key id and secret of this cluster, made at the first call."""
    file = place.state / "s3-key"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(f"PODIUMTEST{secrets.token_hex(5).upper()} {secrets.token_hex(20)}")
    key, secret = file.read_text().split()
    return key, secret


def start_object_store(place: Place) -> None:
    """Start the server and wait until it takes connections."""
    say("starting the S3 server")
    folder = place.state / "s3"
    folder.mkdir(exist_ok=True)
    key, secret = credentials(place)
    daemons.start(
        place,
        "versitygw",
        [place.program("versitygw"), "--port", f"{HOST}:{S3_PORT}", "--region", S3_REGION, "posix", str(folder)],
        {"ROOT_ACCESS_KEY": key, "ROOT_SECRET_KEY": secret},
    )
    daemons.wait(place, "the S3 server answers", answers, daemon="versitygw")


def answers() -> bool:
    """Whether something listens where the server should."""
    try:
        socket.create_connection((HOST, S3_PORT), timeout=2).close()
    except OSError:
        return False
    return True
