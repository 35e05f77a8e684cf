"""Signing in at Kubeflow's login page, and what is said to whoever does not."""

import pytest

from podium import submit
from podium.pipelines.kubeflow.api import sign_in
from podium.trainer.trial.errors import UserError


@pytest.fixture
def guarded(kfp):
    kfp.state.users = {"me@example.com": "12341234"}
    kfp.state.tokens = ("a machine's token",)
    return kfp


@pytest.mark.parametrize("choice", [False, True], ids=["form", "page of ways to sign in"])
def test_signing_in_brings_back_the_sessions_cookie(guarded, choice):
    guarded.state.choice = choice
    assert sign_in(guarded.host, "me@example.com", "12341234") == "oauth2_proxy_kubeflow=signed-in"


def test_a_wrong_password_is_said_in_words(guarded):
    with pytest.raises(UserError, match="the username or the password is wrong"):
        sign_in(guarded.host, "me@example.com", "guess")


def test_a_server_without_a_login_page_is_said_in_words(kfp):
    with pytest.raises(UserError, match=r"404|no login page"):
        sign_in(kfp.state and kfp.host, "me@example.com", "12341234")


def test_a_server_that_is_not_there_is_said_in_words():
    with pytest.raises(UserError, match=r"can't be reached: .*refused"):
        sign_in("http://127.0.0.1:9", "me@example.com", "12341234")


def test_submitting_with_username_and_password_signs_in(guarded, monkeypatch):
    monkeypatch.setenv("PODIUM_KFP_USERNAME", "me@example.com")
    monkeypatch.setenv("PODIUM_KFP_PASSWORD", "12341234")
    assert submit("param-allocation", guarded.host, store="s3://bucket/p").id in guarded.state.runs


def test_a_cookie_or_a_token_serve_as_well(guarded):
    session = {"cookie": "oauth2_proxy_kubeflow=signed-in"}
    assert submit("param-allocation", guarded.host, store="s3://bucket/p", **session).id
    assert submit("param-allocation", guarded.host, store="s3://bucket/p", token="a machine's token").id


def test_a_token_in_a_file_is_read_for_every_request(guarded, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("a machine's token\n")
    monkeypatch.setenv("PODIUM_KFP_TOKEN_FILE", str(file))
    assert submit("param-allocation", guarded.host, store="s3://bucket/p").id
    file.write_text("renewed")
    guarded.state.tokens = ("renewed",)
    assert submit("param-allocation", guarded.host, store="s3://bucket/p").id


def test_whoever_is_sent_to_the_login_page_is_told_to_sign_in(guarded):
    with pytest.raises(UserError, match="answers with a web page, not with Kubeflow's API: sign in"):
        submit("param-allocation", guarded.host, store="s3://bucket/p")


def test_a_session_that_has_ended_is_told_apart_from_a_token(kfp):
    kfp.state.tokens = ("good",)
    with pytest.raises(UserError, match="401: the cookie has expired"):
        submit("param-allocation", kfp.host, store="s3://bucket/p", cookie="authservice_session=old")
