"""Who may use the server: every rule of docs/adr/35-serving-safely.md."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from helpers.serve.apps import BASE, TOKEN, Served, image_bytes, served
from regionqa.errors import UsageError
from regionqa.serve.access import POLICY, new_token
from regionqa.serve.options import ServeOptions, is_loopback

QUESTION = {"image": "red.png", "question": "what colour?"}


def stranger(of: Served, base: str = BASE, **headers: str) -> TestClient:
    """A client without the token."""
    given = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
    return TestClient(of.app, base, headers=given, follow_redirects=False)  # type: ignore[arg-type]


# -- the token -------------------------------------------------------------------------------------


def test_the_token_of_the_address_becomes_a_cookie(colours: Path) -> None:
    with served(colours) as app:
        client = stranger(app)
        entered = client.get("/", params={"token": TOKEN})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        assert cookie.startswith(f"regionqa-8000={TOKEN};")
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert client.get("/").status_code == 200
        assert client.post("/v1/answers", json=QUESTION).status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", "é" * 22, "%00"])
def test_a_wrong_token_is_refused_everywhere(colours: Path, token: str) -> None:
    with served(colours) as app:
        entered = stranger(app).get("/", params={"token": token})
        assert entered.status_code == 403
        assert "set-cookie" not in entered.headers
        header = stranger(app, authorization=f"Bearer {token}")
        cookie = stranger(app, cookie=f"regionqa-8000={token}")
        for client in (header, cookie):
            assert client.post("/v1/answers", json=QUESTION).status_code == 401
        assert app.backend.batches == []


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/page/app.js", "/v1/images",
                                  "/v1/pixels/red.png", "/v1/status", "/nothing"])  # fmt: skip
def test_nothing_is_told_without_a_token(colours: Path, path: str) -> None:
    with served(colours) as app:
        refused = stranger(app).get(path)
        assert refused.status_code == 401
        assert refused.json() == {
            "error": "the token is missing; open the address that regionqa serve printed, or send "
            "the header Authorization: Bearer TOKEN"
        }


def test_the_cookie_of_another_port_and_other_schemes_are_no_token(colours: Path) -> None:
    with served(colours) as app:
        for headers in ({"cookie": f"regionqa-9000={TOKEN}"}, {"authorization": f"Basic {TOKEN}"},
                        {"authorization": TOKEN}, {"cookie": ";;=;"}):  # fmt: skip
            assert stranger(app, **headers).get("/v1/status").status_code == 401


def test_a_token_in_the_query_is_for_the_page_alone(colours: Path) -> None:
    with served(colours) as app:
        assert stranger(app).get(f"/v1/status?token={TOKEN}").status_code == 401
        assert stranger(app).post(f"/?token={TOKEN}").status_code == 401


def test_random_tokens_are_long_and_differ() -> None:
    tokens = {new_token() for _ in range(20)}
    assert len(tokens) == 20
    assert min(map(len, tokens)) >= 43


# -- host and origin -------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000",
                                  "127.0.0.1:9000"])  # fmt: skip
def test_own_hosts(colours: Path, host: str) -> None:
    """Another port is a tunnel's."""
    with served(colours) as app:
        assert app.client(host=host).get("/v1/status").status_code == 200


@pytest.mark.parametrize("host", [
    "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1:8000", "",
    "127.0.0.1:8000@evil", "[::1", "a b",
])  # fmt: skip
def test_foreign_hosts_are_refused(colours: Path, host: str) -> None:
    """As a page has them whose name was made to mean this machine (DNS rebinding)."""
    with served(colours) as app:
        refused = app.client(host=host).post("/v1/answers", json=QUESTION)
        assert refused.status_code == 421
        assert "this server is not known by that Host" in refused.json()["error"]
        assert app.backend.batches == []


def test_hosts_of_an_address_that_others_reach(colours: Path) -> None:
    with served(colours, host="0.0.0.0") as app:
        assert app.client(host="192.168.1.5:8000").get("/v1/status").status_code == 200
        assert app.client(host="evil.example:8000").get("/v1/status").status_code == 421
    with served(colours, host="box.lan") as app:
        assert app.client(host="box.lan:8000").get("/v1/status").status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8000",
                                    "http://127.0.0.1:9000", "http://localhost:8000", "file://",
                                    "http://127.0.0.1:8000.evil.example"])  # fmt: skip
def test_foreign_origins_are_refused(colours: Path, origin: str) -> None:
    with served(colours) as app:
        refused = app.client(origin=origin).post("/v1/answers", json=QUESTION)
        assert refused.status_code == 403
        assert refused.json()["error"] == "requests from pages of other origins are refused"
        assert app.backend.batches == []


def test_the_own_origin_is_welcome(colours: Path) -> None:
    with served(colours) as app:
        client = app.client(origin=BASE, sec_fetch_site="same-origin")
        assert client.post("/v1/answers", json=QUESTION).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_only_link_to_the_page(colours: Path, site: str) -> None:
    with served(colours) as app:
        embeds = app.client(sec_fetch_site=site, sec_fetch_mode="no-cors")
        assert embeds.get("/v1/pixels/red.png").status_code == 403
        assert embeds.get("/").status_code == 403
        follows = app.client(sec_fetch_site=site, sec_fetch_mode="navigate")
        assert follows.get("/").status_code == 200
        assert follows.get("/v1/images").status_code == 403


@pytest.mark.parametrize("kind", [
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "Text/Plain; a=b",
])  # fmt: skip
def test_what_a_form_can_send_is_refused(colours: Path, kind: str) -> None:
    with served(colours) as app:
        for path in ("/v1/answers", "/v1/images", "/v1/model"):
            sent = app.client(content_type=kind).post(path, content=b'{"question": "?"}')
            assert sent.status_code == 415


def test_no_other_origin_is_let_in_by_headers(colours: Path) -> None:
    with served(colours) as app:
        asked = app.client(origin="http://evil.example", access_control_request_method="POST")
        preflight = asked.options("/v1/answers")
        assert preflight.status_code == 403
        assert not [name for name in preflight.headers if name.startswith("access-control")]


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/v1/status", "/v1/pixels/red.png", "/nothing", "/docs"])
def test_every_response_has_the_headers(colours: Path, path: str) -> None:
    with served(colours) as app:
        for client in (app.client(), stranger(app)):
            headers = client.get(path).headers
            assert headers["content-security-policy"] == POLICY
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "no-store" in headers["cache-control"] or "no-cache" in headers["cache-control"]


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in POLICY and "http" not in POLICY and "data:" not in POLICY


def test_text_of_clients_comes_back_as_json_only(colours: Path) -> None:
    with served(colours) as app:
        name = "<script>alert(1)</script>.png"
        sent = app.client(content_type="image/png").post(
            "/v1/images", params={"name": name}, content=image_bytes()
        )
        assert sent.json()["name"] == "script>.png", "no folder of a name is kept"
        asked = app.client().post(
            "/v1/answers", json={"image": "script>.png", "question": "<img src=x onerror=alert(1)>"}
        )
        assert asked.headers["content-type"] == "application/json"
        missing = app.client().get("/v1/images/<script>")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/json")


def test_a_fault_of_the_server_is_told_in_one_line(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(colours) as app:

        def broken() -> list[str]:
            raise ZeroDivisionError("a\nb")

        monkeypatch.setattr(app.gallery, "names", broken)
        failed = app.client().get("/v1/images")
        assert failed.status_code == 500
        assert app.reported == ["GET /v1/images: unexpected ZeroDivisionError: a b"]


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "box.lan", "127.0.0.1.evil"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(UsageError, match="can be reached from other machines; give --token"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("token", [
    "", "short", "a" * 15, "has spaces in it and more", "semicolon;and=more-of-it",
    "ümlaut-and-more-of-it",
])  # fmt: skip
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(UsageError, match="--token: needs at least 16 characters"):
        ServeOptions(token=token)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "", "example.org", "localhos")))
