"""Signing in to a Kubeflow that is guarded by Dex: the login page, filled in as a browser would; a session's cookie.

Kubeflow's manifests put an authentication proxy (oauth2-proxy, formerly the OIDC authservice) before every page and
API. Without a session it redirects to Dex, Dex to its login form, and the form back to the proxy, which sets its
cookie. Where Dex has several ways to sign in it first shows a page of links; `local` is its own user table.
"""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from html import unescape
from http.cookiejar import CookieJar

from podium.trainer.errors import Problem, UserError

TIMEOUT_SECONDS = 20.0
SESSIONS = ("oauth2_proxy_kubeflow", "authservice_session")
"""Cookies that say who is signed in: of oauth2-proxy, and of the older authservice."""


def sign_in(host: str, username: str, password: str, context: ssl.SSLContext | None = None) -> str:
    """The session's cookies for `host`, as a `Cookie` header's value.

    Raises UserError where there is no login page, where it refuses, or where nobody answers.
    """
    jar = CookieJar()
    opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(jar), urllib.request.HTTPSHandler(context=context)
    )
    where = f"signing in to {host}"
    try:
        page, url = _get(opener, f"{host}/")
        url, page = _local_form(opener, page, url)
        if not _has_form(page):
            raise UserError(f"{where}: there is no login page; leave --username out, or give --token")
        action = urllib.parse.urljoin(url, _action(page) or url)
        form = urllib.parse.urlencode({"login": username, "password": password}).encode()
        page, url = _get(opener, action, form)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(_refused(where)) from None
        raise UserError(f"{where}: {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"{where}: can't be reached: {getattr(error, 'reason', error)}") from None
    if _has_form(page):
        raise UserError(_refused(where))
    cookies = [f"{each.name}={each.value}" for each in jar if each.name.startswith(SESSIONS)]
    if not cookies:
        raise UserError(f"{where}: no session's cookie came back ({' or '.join(SESSIONS)}); give --cookie or --token")
    return "; ".join(cookies)


def _refused(where: str) -> Problem:
    return Problem("", f"{where}: the username or the password is wrong")


def _local_form(opener: urllib.request.OpenerDirector, page: str, url: str) -> tuple[str, str]:
    """The form for a username and a password, behind the page of links where there is one."""
    if not _has_form(page):
        link = re.search(r"""href=["']([^"']*/auth/local[^"']*)["']""", page)
        if link is not None:
            page, url = _get(opener, urllib.parse.urljoin(url, unescape(link[1])))
    return url, page


def _has_form(page: str) -> bool:
    return re.search(r"""<input[^>]*name=["']password["']""", page) is not None


def _action(page: str) -> str | None:
    found = re.search(r"""<form[^>]*action=["']([^"']*)["']""", page)
    return unescape(found[1]) if found else None


def _get(opener: urllib.request.OpenerDirector, url: str, data: bytes | None = None) -> tuple[str, str]:
    with opener.open(urllib.request.Request(url, data=data), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        return answer.read().decode("utf-8", errors="replace"), answer.geturl()
