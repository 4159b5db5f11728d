"""The link checker against a real server on loopback that misbehaves, under a clock that nobody waits for."""

import json
import random
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts import check_links, link_classes, link_fetch
from scripts.link_classes import Answer, Verdict
from scripts.link_fetch import Clock, Fetcher, Services
from tests.misbehaving_server import Reply, Server, page, redirect, running, zipped

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
TODAY = START.date()
PAGE = "http://a.example.org/x"
WHERE = "a.example.org/x"


class FakeTime:
    """Time passes by sleeping, and only by that."""

    def __init__(self) -> None:
        self.passed, self.slept, self.lock = 0.0, [], threading.Lock()

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        with self.lock:
            self.passed += seconds
            self.slept.append(round(seconds, 3))

    def clock(self) -> Clock:
        return Clock(lambda: self.passed, self.sleep, lambda: START + timedelta(seconds=self.passed), lambda: 1.0)


class Net(NamedTuple):
    """A server, what it is told, and the way to it."""

    server: Server
    time: FakeTime
    settings: dict

    def fetcher(self, **changes) -> Fetcher:
        return Fetcher(**(self.settings | changes))

    def check(self, *urls: str, state: Mapping[str, dict] | None = None, **changes) -> dict[str, Verdict]:
        """Verdicts of one run."""
        return self.fetcher(**changes).check(urls, state or {})

    def one(self, url: str = PAGE, **changes) -> Verdict:
        """The verdict on one link."""
        return self.check(url, **changes)[url]

    def play(self, *replies: Reply, at: str = WHERE) -> None:
        """Answers of one address."""
        self.server.replies[at] = list(replies)


def resolver_for(port: int, tls_port: int = 0) -> link_fetch.Resolver:
    """A name service in which every host is the server, some are private and some are not there."""

    def resolve(host: str, number: int) -> list[tuple[str, int]]:
        if host.startswith("private."):
            return [("10.0.0.7", number)]
        if host.startswith("metadata."):
            return [("169.254.169.254", number)]
        if host.startswith("mapped."):
            return [("::ffff:10.0.0.7", number)]
        if host.startswith("closed."):
            return [("127.0.0.1", 1)]
        if host.startswith("flaky."):
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        if host.startswith("gone.") or (number == 443 and not tls_port):
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return [("127.0.0.1", tls_port if number == 443 else port)]

    return resolve


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def net(shared_server, monkeypatch) -> Net:
    """A fresh script on the shared server; whatever the environment holds, no token."""
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    server, time = shared_server, FakeTime()
    server.replies.clear()
    for record in (server.asked, server.headers, server.busy, server.peak):
        record.clear()
    server.total_peak = 0
    api = "http://{}.services.example.org/"
    services = Services(
        arxiv=api.format("arxiv") + "query",
        doi=api.format("doi") + "handles/",
        openreview=(api.format("or2") + "notes", api.format("or1") + "notes"),
        github=api.format("github") + "repos/",
        huggingface=api.format("hf") + "api/",
        wayback=api.format("wayback") + "available",
    )
    settings = {"clock": time.clock(), "resolver": resolver_for(server.server_port), "services": services}
    return Net(server, time, settings | {"allow_loopback": True})


# One class a case: replies in turn, then class, requests with their methods, and a word of the note.
ok, missing, slow_down = page(), page("Not Found", status=404), page(status=429)
CASES = {
    "ok": ([ok], "ok", "HEAD GET", ""),
    "ok without HEAD": ([page(status=405), ok], "ok", "HEAD GET", ""),
    "ok though HEAD fails": ([page(status=501), ok], "ok", "HEAD GET", ""),
    "a pdf needs no GET": ([Reply(200, b"%PDF", {"Content-Type": "application/pdf"})], "ok", "HEAD", ""),
    "gone": ([missing], "gone", "HEAD GET", ""),
    "gone for good": ([page(status=410)], "gone", "HEAD", ""),
    "HEAD lies": ([ok, missing], "gone", "HEAD GET", ""),
    "no content": ([Reply(204, b"", {})], "soft-gone", "HEAD GET", "empty"),
    "empty page": ([Reply(200, b"")], "soft-gone", "HEAD GET", "empty"),
    "says that it is missing": ([page("Page not found | Site")], "soft-gone", "HEAD GET", "calls itself"),
    "says 404": ([page("404 - Oops")], "soft-gone", "HEAD GET", "calls itself"),
    "login needed": ([page(status=401)], "blocked", "HEAD", "verified"),
    "forbidden": ([page(status=403)], "blocked", "HEAD GET", "verified"),
    "method": ([page(status=405)], "blocked", "HEAD GET", "verified"),
    "not acceptable": ([page(status=406)], "blocked", "HEAD GET", "verified"),
    "teapot": ([page(status=418)], "blocked", "HEAD", "verified"),
    "legal": ([page(status=451)], "blocked", "HEAD", "verified"),
    "a network of jobs": ([page(status=999)], "blocked", "HEAD", "verified"),
    "captcha 202": ([page(status=202, body="<div class=g-captcha>")], "blocked", "HEAD GET", "human"),
    "challenge header": ([page(status=403, cf_mitigated="challenge")], "blocked", "HEAD GET", "human"),
    "challenge 200": ([page("Just a moment...")], "blocked", "HEAD GET", "human"),
    "challenge 503": ([page("Just a moment...", status=503)], "blocked", "HEAD GET", "human"),
    "limited": ([slow_down], "limited", "HEAD GET GET", "fewer"),
    "quota": ([page(status=403, x_ratelimit_remaining="0")], "limited", "HEAD GET GET", "fewer"),
    "429 then 200": ([slow_down, ok], "ok", "HEAD GET", ""),
    "503 and Retry-After then 200": ([page(status=503, Retry_After="7"), ok], "ok", "HEAD GET", ""),
    "500 then 200": ([page(status=500), page(status=500), ok], "ok", "HEAD GET GET", ""),
    "always 500": ([page(status=500)], "unavailable", "HEAD GET GET GET", ""),
    "timeout of theirs": ([page(status=408)], "unavailable", "HEAD GET GET", ""),
    "too early": ([page(status=425)], "unavailable", "HEAD GET GET", ""),
    "reset in the body": ([ok._replace(drop=20)], "unavailable", "HEAD GET GET GET", "cut off"),
    "reset once": ([ok, ok._replace(drop=20), ok], "ok", "HEAD GET GET", ""),
    "no HTTP": ([Reply(raw=b"SSH-2.0-what\r\n\r\n")], "unavailable", "HEAD GET GET", ""),
    "false gzip": ([ok._replace(headers={**ok.headers, "Content-Encoding": "gzip"})], "unavailable", None, "encoding"),
    "gzip": ([zipped(ok)], "ok", "HEAD GET", ""),
    "600 KiB": ([ok._replace(body=ok.body + b" " * 600 * 1024)], "ok", "HEAD GET", ""),
    "304 unasked": ([Reply(304, b"", {})], "blocked", "HEAD", ""),
    "strange status": ([page(status=299)], "blocked", "HEAD GET", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_class_and_requests(net, case):
    replies, cls, methods, note = CASES[case]
    net.play(*replies)
    verdict = net.one()
    assert verdict.cls == cls
    assert note in verdict.note
    if methods is not None:
        slow_round = " HEAD" if cls == "limited" else ""  # a throttled host is asked once more at the end
        assert " ".join(net.server.methods(WHERE)) == methods + slow_round


def test_headers_are_honest_and_carry_nothing(net, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.org:3128")
    net.play(page(Set_Cookie="a=b"), page(Set_Cookie="a=b"), ok)
    assert net.one(repo_url="https://github.com/o/r", token="t0ken").cls == "ok"
    for headers in net.server.headers:
        assert headers["user-agent"] == "awesome-diffusion-pruning-linkcheck/1 (+https://github.com/o/r)"
        assert not {"authorization", "cookie", "proxy-authorization", "referer"} & set(headers)


# Waiting.


def test_retry_after_in_seconds_holds_the_host(net):
    net.play(page(status=429, Retry_After="37"), ok)
    assert net.one().cls == "ok"
    assert max(net.time.slept) == 37


@pytest.mark.parametrize("own_clock", [False, True])
def test_retry_after_as_date(net, own_clock):
    # A host whose clock is a day behind still asks for 40 seconds.
    base = START - timedelta(days=1) if own_clock else START
    headers = {"Retry_After": format_datetime(base + timedelta(seconds=40), usegmt=True)}
    headers |= {"Date": format_datetime(base, usegmt=True)} if own_clock else {}
    net.play(page(status=503, **headers), ok)
    assert net.one().cls == "ok"
    assert max(net.time.slept) == 40


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("9" * 5000, None),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("Sat, 21 Nov 2026 12:01:00 GMT", 60),
        ("Sat, 21 Nov 2026 12:01:00 -0000", 60),
        ("Sat, 99 Nov 2026 12:01:00 GMT", None),
    ],
)
def test_retry_after_forms(text, seconds):
    assert link_classes.retry_after({"retry-after": text}, START) == seconds


def test_empty_quota_waits_for_its_reset():
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(START.timestamp()) + 90)}
    assert link_classes.retry_after(headers, START) == 90


def test_a_long_wait_is_left_to_the_next_run(net):
    net.play(page(status=429, Retry_After="3600"))
    verdict = net.one()
    assert (verdict.cls, verdict.wait) == ("limited", 3600)
    assert net.server.count() == 1  # no retry, no slow round
    record = link_classes.remember(None, verdict, START)
    assert record["not_before"] == "2026-11-21T13:00:00+00:00"
    assert not link_classes.due(PAGE, record, START + timedelta(minutes=59), False)
    assert link_classes.due(PAGE, record, START + timedelta(minutes=60), False)


def test_backoff_doubles(net):
    net.play(page(status=500))
    net.one()
    assert [s for s in net.time.slept if s >= 1] == [1, 2]


def test_throttled_host_pauses_and_gets_a_slow_round(net):
    left = [8]  # so many times "not so fast", then peace

    def reply(_: str) -> Reply:
        left[0] -= 1
        return slow_down if left[0] >= 0 else ok

    urls = [f"http://busy.example.org/{i}" for i in range(6)]
    net.server.replies |= {f"busy.example.org/{i}": reply for i in range(6)}
    net.server.replies["b.example.org/y"] = ok
    verdicts = net.check(*urls, "http://b.example.org/y")
    assert verdicts["http://b.example.org/y"].cls == "ok"
    # Three answers stop the first round (a fourth may be under way), the next three the slow one.
    assert 6 <= net.server.count("busy.example.org") <= 7
    assert {verdicts[url].cls for url in urls} == {"limited"}


def test_slow_round_finds_a_host_that_calmed_down(net):
    net.play(slow_down, slow_down, slow_down, ok)
    fetcher = net.fetcher()
    assert fetcher.check([PAGE], {})[PAGE].cls == "ok"
    assert " ".join(net.server.methods(WHERE)) == "HEAD GET GET HEAD GET"
    assert net.time.slept[-1] == fetcher.gate.gaps["a.example.org"] == 2.0


def test_every_request_has_a_connection_of_its_own(net):
    # A connection that the host closes at leisure would otherwise be used again, and cut the next answer off.
    net.server.replies |= {f"a.example.org/{i}": ok for i in range(10)}
    before = net.server.connections
    assert {verdict.cls for verdict in net.check(*(f"http://a.example.org/{i}" for i in range(10))).values()} == {"ok"}
    assert net.server.connections - before == net.server.count() == 20


def test_never_more_than_two_at_once_on_a_host(net):
    net.server.replies |= {f"{h}.example.org/{i}": page()._replace(delay_s=0.01) for h in "ab" for i in range(8)}
    # Redirects from many hosts lead to one more: it is spared as well.
    net.server.replies |= {f"r{i}.example.org/x": redirect("http://c.example.org/x") for i in range(8)}
    net.server.replies["c.example.org/x"] = page()._replace(delay_s=0.01)
    urls = [f"http://{h}.example.org/{i}" for h in "ab" for i in range(8)]
    verdicts = net.check(*urls, *(f"http://r{i}.example.org/x" for i in range(8)))
    assert {verdicts[url].cls for url in urls} == {"ok"}
    assert max(net.server.peak.values()) <= 2
    assert net.server.total_peak > 2  # hosts side by side


def test_spacing_between_starts(net):
    net.server.replies |= {f"a.example.org/{i}": Reply(200, b"x", {"Content-Type": "text/plain"}) for i in range(5)}
    net.check(*(f"http://a.example.org/{i}" for i in range(5)))
    assert net.server.count("a.example.org") == 5
    assert net.time.passed >= 4 * link_fetch.GAP_S - 0.01


def test_budget_skips_the_rest_and_never_calls_it_ok(net):
    net.server.replies |= {f"a.example.org/{i}": Reply(200, b"x", {"Content-Type": "text/plain"}) for i in range(9)}
    verdicts = net.check(*(f"http://a.example.org/{i}" for i in range(9)), max_time=1.0)
    classes = sorted(verdict.cls for verdict in verdicts.values())
    assert set(classes) == {"ok", "skipped"}
    assert net.server.count("a.example.org") == classes.count("ok")


def test_slow_drip_is_cut_in_total_time(net):
    net.play(ok, ok._replace(drip_s=0.02))
    verdict = net.one(total_s=0.15)
    assert (verdict.cls, verdict.note) == ("unavailable", "no whole answer within 0.15 s")


def test_silence_times_out(net):
    net.play(ok._replace(delay_s=0.4))
    assert net.one(total_s=0.1).cls == "unavailable"


def test_body_is_read_to_its_limit_and_no_further(net):
    net.play(ok._replace(body=b"<title>Long</title>" + b"x" * 3_000_000))
    answer = net.fetcher().follow("GET", PAGE, {})
    assert (len(answer.body), answer.cut, answer.status) == (512 * 1024, True, 200)
    net.play(zipped(ok._replace(body=b"<title>Bomb</title>" + b"x" * 30_000_000)))
    assert len(net.fetcher().follow("GET", PAGE, {}).body) == 512 * 1024


# Redirects.


@pytest.mark.parametrize(
    ("statuses", "cls"),
    [
        ((301,), "moved"),
        ((308, 301), "moved"),
        ((302,), "redirected"),
        ((307,), "redirected"),
        ((301, 303), "redirected"),
    ],
)
def test_redirects_by_kind(net, statuses, cls):
    for i, status in enumerate(statuses):
        net.play(redirect(f"/hop{i + 1}", status), at=f"a.example.org/hop{i}")
    net.play(ok, at=f"a.example.org/hop{len(statuses)}")
    verdict = net.one("http://a.example.org/hop0")
    end = f"http://a.example.org/hop{len(statuses)}"
    assert (verdict.cls, verdict.final_url) == (cls, end)
    assert verdict.fix == (end if cls == "moved" else "")
    assert [hop.status for hop in verdict.hops] == list(statuses)
    assert net.server.count() == len(statuses) + 2  # the GET starts where HEAD ended


def test_moved_to_missing_is_gone(net):
    net.play(redirect("/new"))
    verdict = net.one()
    assert (verdict.cls, verdict.status, verdict.fix) == ("gone", 404, "")
    assert [path for _, path in net.server.asked] == [WHERE, "a.example.org/new", "a.example.org/new"]


def test_loop(net):
    net.play(redirect("/y"))
    net.play(redirect("/x", 302), at="a.example.org/y")
    assert (net.one().cls, net.one().note) == ("unavailable", "its redirects run in a circle")
    assert net.server.count() == 4  # two runs, two requests each: circles are not retried


@pytest.mark.parametrize(("hops", "cls", "requests"), [(10, "moved", 12), (11, "unavailable", 11)])
def test_ten_hops_are_enough(net, hops, cls, requests):
    for i in range(hops):
        net.play(redirect(f"/h{i + 1}"), at=f"a.example.org/h{i}")
    net.play(ok, at=f"a.example.org/h{hops}")
    assert net.one("http://a.example.org/h0").cls == cls
    assert net.server.count() == requests


@pytest.mark.parametrize(
    ("target", "cls", "note"),
    [
        ("/", "soft-gone", "front page"),
        ("http://b.example.org/", "soft-gone", "front page"),
        ("/404.html", "soft-gone", "missing pages"),
        ("/login?next=x", "blocked", "login"),
        ("/accounts/sign-in/", "blocked", "login"),
        ("http://10.0.0.1/", "invalid", "private"),
        ("http://private.example.org/", "invalid", "private"),
        ("http://metadata.example.org/latest/", "invalid", "private"),
        ("http://mapped.example.org/", "invalid", "private"),
        ("http://[::1]:22/", "invalid", ""),
        ("http://2130706433/", "invalid", "private"),
        ("http://127%E3%80%820%E3%80%820%E3%80%821/", "invalid", ""),
        ("http://127。0。0。1/".encode().decode("latin-1"), "invalid", ""),
        ("http://127.0.0.1:22/", "invalid", "private"),
        ("http://user:pw@b.example.org/", "invalid", "credentials"),
        ("file:///etc/passwd", "invalid", "scheme"),
        ("http://[broken/", "invalid", ""),
    ],
)
def test_where_redirects_may_not_lead(net, target, cls, note):
    net.play(redirect(target))
    paths = ("/", "/404.html", "/login", "/accounts/sign-in/")
    net.server.replies |= {f"{host}.example.org{path}": page("Welcome") for host in "ab" for path in paths}
    verdict = net.one()
    assert verdict.cls == cls
    assert note in verdict.note
    assert verdict.fix == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/x",
        "http://10.1.2.3/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0x7f000001/",
        "http://[::1]/",
        "http://[fe80::1%25eth0]/",
        "http://224.0.0.1/",
        "http://private.example.org/",
        "http://printer.local/",
        "http://me:secret@a.example.org/",
        "ftp://a.example.org/",
        "http://",
        "http://[",
        "http://a.example.org:99999/",
        "https://exa mple.org/",
    ],
)
def test_addresses_that_are_refused(net, url):
    assert net.one(url, allow_loopback=False).cls == "invalid"
    assert net.server.count() == 0


def test_connection_goes_to_the_address_that_was_checked(net):
    answers = iter([[("127.0.0.1", net.server.server_port)]] + [[("10.0.0.7", 80)]] * 9)
    net.play(ok)
    seen = []
    assert net.one(resolver=lambda host, port: seen.append((host, port)) or next(answers)).cls == "ok"
    assert seen[0] == ("a.example.org", 80)
    assert [where for where in seen if where[1] == 80] == seen[:1]  # looked up once; later answers change nothing


def test_token_stays_with_its_host(net):
    net.play(redirect("http://evil.example.org/steal"), at="github.services.example.org/repos/o/r")
    net.play(page(), at="evil.example.org/steal")
    net.one("https://github.com/o/r", token="t0ken")
    sent = {
        path: headers.get("authorization")
        for (_, path), headers in zip(net.server.asked, net.server.headers, strict=True)
    }
    assert sent == {"github.services.example.org/repos/o/r": "Bearer t0ken", "evil.example.org/steal": None}


# Names and certificates.


@pytest.mark.parametrize(
    ("host", "cls", "note"),
    [
        ("gone", "gone", "no such host"),
        ("flaky", "unavailable", "name service"),
        ("closed", "unavailable", "no connection"),
    ],
)
def test_hosts_out_of_reach(net, host, cls, note):
    asked = []
    resolve = net.settings["resolver"]
    verdict = net.one(f"http://{host}.example.org/x", resolver=lambda h, p: asked.append(h) or resolve(h, p))
    assert (verdict.cls, note in verdict.note) == (cls, True)
    if host != "closed":
        assert len(asked) == (2 if host == "gone" else 3)  # a host is gone when it is missing twice


def test_a_host_out_of_reach_is_asked_for_one_link(net):
    asked = []
    resolve = net.settings["resolver"]
    urls = [f"http://flaky.example.org/{i}" for i in range(30)]
    verdicts = net.check(*urls, resolver=lambda h, p: asked.append(h) or resolve(h, p))
    assert {verdict.cls for verdict in verdicts.values()} == {"unavailable"}
    assert len(asked) <= 6  # two lanes, three attempts


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    """A certificate that nobody trusts."""
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tls.example.org"]
    command += ["-addext", "subjectAltName=DNS:tls.example.org", "-out", paths[0], "-keyout", paths[1]]
    subprocess.run(command, check=True, capture_output=True)
    return paths


def test_certificates_and_better_https(net, certificate):
    with running(*certificate) as secure:
        secure.replies |= {"tls.example.org/x": ok, "other.example.org/x": ok, "tls.example.org/down": redirect(PAGE)}
        resolve = resolver_for(net.server.server_port, secure.server_port)
        net.server.replies |= {"tls.example.org/x": ok, WHERE: ok}
        untrusted = net.one("https://tls.example.org/x", resolver=resolve)
        assert (untrusted.cls, untrusted.fix, untrusted.status) == ("insecure", "", None)
        trusting = {"resolver": resolve, "verify": certificate[0]}
        assert net.one("https://tls.example.org/x", **trusting).cls == "ok"
        assert net.one("https://other.example.org/x", **trusting).cls == "insecure"  # a certificate for another host
        plain = net.one("http://tls.example.org/x", **trusting)
        assert (plain.cls, plain.fix) == ("insecure", "https://tls.example.org/x")
        down = net.one("https://tls.example.org/down", **trusting)
        assert (down.cls, down.fix) == ("insecure", "")
        net.play(redirect("https://tls.example.org/x", 302), at="tls.example.org/x")
        plain = net.one("http://tls.example.org/x", **trusting)
        assert (plain.cls, plain.fix) == ("insecure", "https://tls.example.org/x")


# Fragments.

ANCHORS = (
    '<h2 id="install">a</h2><a name=old></a><h3 id="Mixed-Case"></h3><h3 id="caf&eacute;"></h3>'
    '<h3 id="user-content-usage"></h3><!-- <i id="hidden"></i> -->'
)


@pytest.mark.parametrize(
    ("fragment", "cls"),
    [
        ("install", "ok"),
        ("old", "ok"),
        ("caf%C3%A9", "ok"),
        ("usage", "ok"),
        ("absent", "gone"),
        ("hidden", "gone"),
        ("mixed-case", "moved"),
        (":~:text=word", "ok"),
        ("L10-L20", "ok"),
        ("page=3", "ok"),
        ("/route", "ok"),
        ("top", "ok"),
        ("", "ok"),
    ],
)
def test_fragments(net, fragment, cls):
    net.play(page(body=ANCHORS))
    verdict = net.one(f"{PAGE}#{fragment}")
    assert verdict.cls == cls
    assert verdict.fix == (f"{PAGE}#Mixed-Case" if cls == "moved" else "")


def test_fragments_of_one_page_share_a_request(net):
    net.play(page(body=ANCHORS))
    verdicts = net.check(PAGE, f"{PAGE}#install", f"{PAGE}#absent")
    assert [verdicts[url].cls for url in (PAGE, f"{PAGE}#install", f"{PAGE}#absent")] == ["ok", "ok", "gone"]
    assert net.server.methods(WHERE) == ["HEAD", "GET"]


def test_fragments_that_cannot_be_judged(net):
    net.play(Reply(200, b"%PDF", {"Content-Type": "application/pdf"}))
    assert net.one(f"{PAGE}#anything").cls == "ok"
    net.play(page(body="x" * 600 * 1024 + ANCHORS))
    verdict = net.one(f"{PAGE}#install")
    assert verdict.cls == "ok"
    assert "not checked" in verdict.note


def test_a_moved_page_keeps_the_fragment(net):
    net.play(redirect("/new"))
    net.play(page(body=ANCHORS), at="a.example.org/new")
    assert net.one(f"{PAGE}#install").fix == "http://a.example.org/new#install"


# Identifiers.


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("https://arxiv.org/abs/2305.10924v2", "arxiv", "2305.10924"),
        ("http://www.arxiv.org/pdf/2305.10924v1.pdf", "arxiv", "2305.10924"),
        ("https://arxiv.org/html/2305.10924", "arxiv", "2305.10924"),
        ("https://arxiv.org/abs/hep-th/9901001", "arxiv", "hep-th/9901001"),
        ("https://arxiv.org/list/cs.CV/recent", "page", "https://arxiv.org/list/cs.CV/recent"),
        ("https://dx.doi.org/10.1007/978-3-031-72949-2_22", "doi", "10.1007/978-3-031-72949-2_22"),
        ("https://openreview.net/pdf?id=d4f40zJJIS", "openreview", "d4f40zJJIS"),
        ("https://github.com/Owner/Repo.git", "github", "owner/repo"),
        ("https://github.com/o/r/blob/main/a.py", "page", "https://github.com/o/r/blob/main/a.py"),
        ("https://github.com/topics/pruning", "page", "https://github.com/topics/pruning"),
        ("https://huggingface.co/nota-ai/bk-sdm-base", "huggingface", "models/nota-ai/bk-sdm-base"),
        ("https://huggingface.co/datasets/o/d/tree/v1.0", "huggingface", "datasets/o/d/revision/v1.0"),
        ("https://huggingface.co/docs/diffusers", "page", "https://huggingface.co/docs/diffusers"),
        ("http://[", "page", "http://["),
    ],
)
def test_recognise(url, kind, name):
    assert link_fetch.recognise(url, token=True) == (kind, name)


def test_github_without_a_token_is_a_page():
    assert link_fetch.recognise("https://github.com/o/r")[0] == "page"


ATOM = (
    '<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom">'
    "<title>ArXiv Query</title>{}</feed>"
)
ATOM_ENTRY = (
    "<entry><id>http://arxiv.org/abs/{}v3</id><title>{}\n  wrapped</title><summary>text</summary>"
    "<author><name>{}</name></author><author><name>Second Author</name></author></entry>"
)
ARXIV = "arxiv.services.example.org/query"


def arxiv_service(known: Mapping[str, tuple[str, str]]) -> Callable[[str], Reply]:
    """The metadata service: entries in an order of its own, none for unknown ids, 400 for a malformed one."""

    def reply(where: str) -> Reply:
        ids = re.search(r"id_list=([^&]*)", where)[1].split(",")
        if "2401.99999" in ids:
            return Reply(400, b"<feed/>", {"Content-Type": "application/atom+xml"})
        entries = [ATOM_ENTRY.format(i, *known[i]) for i in reversed(ids) if i in known]
        return Reply(200, ATOM.format("".join(entries)).encode(), {"Content-Type": "application/atom+xml"})

    return reply


def test_arxiv_is_asked_in_batches_three_seconds_apart(net):
    known = {f"2301.{i:05}": (f"Paper {i}", f"Author {i}") for i in range(120)}
    net.server.replies[ARXIV] = arxiv_service(known)
    urls = [f"https://arxiv.org/abs/{i}" for i in known] + [
        "https://arxiv.org/pdf/2301.00000v2",
        "https://arxiv.org/abs/2301.00500",
    ]
    gate_gaps = {**link_fetch.GAPS_S, "arxiv.services.example.org": 3.0}
    fetcher = net.fetcher()
    fetcher.gate.gaps.update(gate_gaps)
    verdicts = fetcher.check(urls, {})
    assert net.server.count(ARXIV) == 3
    assert net.server.count() == 3  # no page of arXiv is opened
    assert net.time.slept == [3.0, 3.0]
    assert net.server.peak["arxiv.services.example.org"] == 1
    assert verdicts["https://arxiv.org/abs/2301.00007"][:1] == ("ok",)
    assert (
        verdicts["https://arxiv.org/pdf/2301.00000v2"].title,
        verdicts["https://arxiv.org/pdf/2301.00000v2"].author,
    ) == (
        "Paper 0 wrapped",
        "Author 0",
    )
    assert verdicts["https://arxiv.org/abs/2301.00500"].cls == "gone"
    assert sum(verdict.cls == "ok" for verdict in verdicts.values()) == 121


def test_real_gap_of_arxiv_is_three_seconds():
    assert link_fetch.GAPS_S["export.arxiv.org"] >= 3
    assert Services().arxiv.startswith("https://export.arxiv.org/api/query")


def test_one_malformed_arxiv_id_does_not_spoil_the_batch(net):
    known = {f"2301.{i:05}": (f"Paper {i}", "A B") for i in range(4)}
    net.server.replies[ARXIV] = arxiv_service(known)
    verdicts = net.check(*(f"https://arxiv.org/abs/{i}" for i in (*known, "2401.99999")))
    assert sorted(verdict.cls for verdict in verdicts.values()) == ["gone", "ok", "ok", "ok", "ok"]


def test_arxiv_down_or_speaking_nonsense_is_not_gone(net):
    net.play(Reply(200, b"<feed", {"Content-Type": "application/atom+xml"}), at=ARXIV)
    assert net.one("https://arxiv.org/abs/2301.00001").cls == "unavailable"
    net.play(page(status=503), at=ARXIV)
    assert net.one("https://arxiv.org/abs/2301.00001").cls == "unavailable"


def jsons(data: object, status: int = 200, **headers: str) -> Reply:
    """An answer in JSON."""
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    ("reply", "cls"),
    [
        (jsons({"responseCode": 1, "handle": "10.1/x", "values": []}), "ok"),
        (jsons({"responseCode": 100, "handle": "10.1/x"}, 404), "gone"),
        (jsons({"responseCode": 200}), "soft-gone"),
        (jsons({"responseCode": 2}, 500), "unavailable"),
        (page(status=403), "blocked"),
        (jsons([1]), "unavailable"),
        (page(), "unavailable"),  # some other service answers
    ],
)
def test_doi(net, reply, cls):
    net.play(reply, at="doi.services.example.org/handles/10.1007/978-3_22")
    assert net.one("https://doi.org/10.1007/978-3_22").cls == cls
    assert all(path.startswith("doi.services.example.org/") for _, path in net.server.asked)  # no publisher is asked
    assert all(path.endswith("?type=URL") for _, path in net.server.asked)


def test_openreview_in_both_generations(net):
    note = {"content": {"title": {"value": "New Title"}, "authors": {"value": ["Ada One", "Ben Two"]}}}
    net.play(jsons({"notes": [note]}), at="or2.services.example.org/notes")
    assert net.one("https://openreview.net/forum?id=NewForum")[4:6] == ("New Title", "Ada One")
    net.play(jsons({"name": "NotFoundError"}, 404), at="or2.services.example.org/notes")
    net.play(
        jsons({"notes": [{"content": {"title": "Old Title", "authors": ["Cid Three"]}}]}),
        at="or1.services.example.org/notes",
    )
    assert net.one("https://openreview.net/forum?id=OldForum")[4:6] == ("Old Title", "Cid Three")
    net.play(jsons({"notes": [], "count": 0}), at="or1.services.example.org/notes")
    assert net.one("https://openreview.net/forum?id=NoForum").cls == "gone"
    net.play(jsons({"something": "else"}), at="or1.services.example.org/notes")
    assert net.one("https://openreview.net/forum?id=Confused").cls == "unavailable"
    net.play(jsons({"name": "ForbiddenError"}, 403), at="or2.services.example.org/notes")
    assert net.one("https://openreview.net/forum?id=Hidden").cls == "blocked"


@pytest.mark.parametrize(
    ("reply", "cls", "fix", "note"),
    [
        (jsons({"full_name": "Owner/Repo", "archived": False}), "ok", "", ""),
        (
            jsons({"full_name": "Owner/Repo", "archived": True, "pushed_at": "2024-01-02T03:04:05Z"}),
            "ok",
            "",
            "archived, last push 2024-01-02",
        ),
        (jsons({"full_name": "New/Name"}), "moved", "https://github.com/New/Name", "renamed"),
        (jsons({"full_name": "Owner/Repo", "private": True}), "blocked", "", "private"),
        (jsons({"message": "Not Found"}, 404), "gone", "", ""),
        (jsons({"message": "DMCA"}, 451), "blocked", "", ""),
    ],
)
def test_github(net, reply, cls, fix, note):
    net.play(reply, at="github.services.example.org/repos/owner/repo")
    verdict = net.one("https://github.com/Owner/Repo", token="t0ken")
    assert (verdict.cls, verdict.fix) == (cls, fix)
    assert note in verdict.note


@pytest.mark.parametrize(
    ("reply", "cls", "fix"),
    [
        (jsons({"id": "Org/Model"}), "ok", ""),
        (jsons({"id": "New/Model"}), "moved", "https://huggingface.co/New/Model"),
        (jsons({"error": "Repository not found"}, 401, **{"X-Error-Code": "RepoNotFound"}), "gone", ""),
        (jsons({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"}), "gone", ""),
        (jsons({"error": "Access restricted"}, 403, **{"X-Error-Code": "GatedRepo"}), "ok", ""),
        (jsons({"error": "who are you"}, 401), "blocked", ""),
    ],
)
def test_huggingface(net, reply, cls, fix):
    net.play(reply, at="hf.services.example.org/api/models/Org/Model")
    verdict = net.one("https://huggingface.co/Org/Model")
    assert (verdict.cls, verdict.fix) == (cls, fix)


@pytest.mark.parametrize(
    ("title", "author", "level"),
    [
        ("Structural Pruning for Diffusion Models", "Gongfan Fang", ""),
        ("Structural pruning for  diffusion-models.", "G. Fang", ""),
        ("Structural Pruning for Diffusion Models: A Subtitle That Was Dropped", "Gongfan Fang", ""),
        ("Structural Pruning for Diffusion Models", "Fang, Gongfan", ""),
        ("Structural Pruning for Diffusion Models", "Somebody Else", "warn"),
        ("Structural Pruning of Diffusion Transformers", "Gongfan Fang", "warn"),
        ("Structural Pruning of Diffusion Transformers", "Somebody Else", "fail"),
        ("A Survey of Fish in Northern Lakes", "Gongfan Fang", "fail"),
        ("A Survey of Fish in Northern Lakes", "", "fail"),
        ("", "Somebody Else", ""),  # the service told nothing
    ],
)
def test_comparison_of_papers(title, author, level):
    theirs = Verdict("ok", title=title, author=author)
    assert link_classes.compare("Structural Pruning for Diffusion Models", "Gongfan Fang", theirs)[0] == level


# Memory.


def test_strikes_become_failures_only_over_days():
    record, now = None, START
    for hours, failing in ((0, False), (1, False), (24, True)):
        now = START + timedelta(hours=hours)
        record = link_classes.remember(record, Verdict("gone", status=404), now)
        assert link_classes.failing(record, now) is failing
    assert record["strikes"] == 3
    record = None
    for days, failing in ((0, False), (3, False), (6, False), (7, True)):
        now = START + timedelta(days=days)
        record = link_classes.remember(record, Verdict("unavailable"), now)
        assert link_classes.failing(record, now) is failing


def test_success_clears_strikes_and_refusals_keep_them():
    bad = link_classes.remember(None, Verdict("unavailable", status=503), START)
    held = link_classes.remember(bad, Verdict("limited", status=429), START + timedelta(days=1))
    assert (held["strikes"], held["first_bad"]) == (bad["strikes"], bad["first_bad"])
    good = link_classes.remember(held, Verdict("ok", status=200), START + timedelta(days=2))
    assert good == {"class": "ok", "status": 200, "last_checked": "2026-11-23", "last_ok": "2026-11-23"}


@pytest.mark.parametrize(
    ("cls", "identifier", "kept", "asked"),
    [("ok", False, 5, 9), ("ok", True, 11, 17), ("moved", False, 5, 9), ("blocked", False, 2, 4)],
)
def test_how_long_an_answer_is_trusted(cls, identifier, kept, asked):
    record = link_classes.remember(None, Verdict(cls, status=200 if cls != "blocked" else 403), START)
    urls = [f"http://a.example.org/{i}" for i in range(40)]
    assert not any(link_classes.due(url, record, START + timedelta(days=kept), identifier) for url in urls)
    assert all(link_classes.due(url, record, START + timedelta(days=asked), identifier) for url in urls)
    between = [link_classes.due(url, record, START + timedelta(days=(kept + asked) // 2), identifier) for url in urls]
    assert cls == "blocked" or len(set(between)) == 2  # they do not all expire on one day


@pytest.mark.parametrize("cls", ["gone", "soft-gone", "unavailable", "limited"])
def test_bad_news_is_asked_for_again(cls):
    assert link_classes.due(PAGE, link_classes.remember(None, Verdict(cls), START), START, False)


def test_a_class_that_the_rules_read_differently_today_is_asked_again():
    record = {"class": "ok", "status": 200, "title": "404 Not Found", "last_checked": TODAY.isoformat()}
    assert link_classes.due(PAGE, record, START, False)
    assert not link_classes.due(PAGE, record | {"title": "Fine"}, START, False)
    assert link_classes.due(PAGE, record | {"title": "", "status": 410}, START, False)


def test_conditional_request_is_answered_without_a_body(net):
    net.play(page(ETag='"v1"'))
    first = net.one()
    record = link_classes.remember(None, first, START)
    net.play(Reply(304, b"", {"ETag": '"v1"'}))
    later = net.one(state={PAGE: record})
    assert net.server.headers[-1]["if-none-match"] == '"v1"'
    assert (later.cls, later.title, later.cached) == ("ok", "A page", False)
    assert link_classes.remember(record, later, START) == record


# The command.

PAPERS = """\
# A comment stays.
- id: alpha
  title: "Alpha: Pruning of Diffusion Models"   # and so does this
  authors: [Ada Example, Ben Example]
  arxiv: "2305.00001"
  url: 'http://a.example.org/alpha'
  code: {url: "http://a.example.org/code", official: true}
  claims:
    - {id: c, where: Table 1, evidence: http://a.example.org/table}
  evidence:
    - {url: http://a.example.org/alpha, what: "ünïcode — before", seen: 2026-11-20}
"""
TOOLS = """\
- id: beta
  name: Beta
  url: https://github.com/o/r
  status: active
"""


class Project(NamedTuple):
    """A small catalogue with its own server."""

    root: Path
    net: Net

    def __call__(self, *arguments: str, **changes) -> int:
        return check_links.main(list(arguments), self.root, **(self.net.settings | changes))

    def state(self) -> dict:
        return json.loads((self.root / check_links.STATE).read_text(encoding="utf-8"))

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_bytes(text.encode("utf-8"))

    def later(self, **delta: float) -> None:
        """Let time pass."""
        self.net.time.passed += timedelta(**delta).total_seconds()


@pytest.fixture
def project(tmp_path, net) -> Project:
    """A catalogue in which all is well."""
    made = Project(tmp_path, net)
    made.write("papers.yaml", PAPERS)
    made.write("tools.yaml", "[]\n")
    made.write("articles.yaml", "[]\n")
    net.server.replies |= {f"a.example.org/{name}": ok for name in ("alpha", "code", "table", "new")}
    net.server.replies[ARXIV] = arxiv_service({"2305.00001": ("Alpha: Pruning of Diffusion Models", "Ada Example")})
    return made


def gone(project: Project, name: str = "code") -> None:
    project.net.server.replies[f"a.example.org/{name}"] = missing


def test_all_is_well(project, capsys):
    assert project() == 0
    assert capsys.readouterr().out == "4 links: 4 ok; 0 failing; 0 known from links.lock.json\n"
    assert not (project.root / check_links.STATE).exists()  # written only when asked to
    assert project.net.server.methods("a.example.org/alpha") == ["HEAD", "GET"]  # two places, one check


def test_state_round_trip_and_second_run_asks_nobody(project, capsys):
    assert project("--update-state") == 0
    text = (project.root / check_links.STATE).read_bytes()
    assert check_links.dump_state(json.loads(text)).encode() == text
    assert set(project.state()) == {
        "http://a.example.org/alpha",
        "http://a.example.org/code",
        "http://a.example.org/table",
        "https://arxiv.org/abs/2305.00001",
    }
    assert project.state()["http://a.example.org/alpha"] == {
        "class": "ok",
        "last_checked": "2026-11-21",
        "last_ok": "2026-11-21",
        "status": 200,
        "title": "A page",
    }
    project.net.server.asked.clear()
    assert project("--update-state") == 0
    assert project.net.server.count() == 0
    assert (project.root / check_links.STATE).read_bytes() == text
    assert "4 known from" in capsys.readouterr().out


def test_links_that_the_catalogue_dropped_are_forgotten(project):
    project("--update-state")
    project.write("papers.yaml", PAPERS.replace("/code", "/new"))
    assert project("--update-state", "--entry", "alpha") == 0
    assert "http://a.example.org/code" in project.state()
    assert project("--update-state") == 0
    assert set(project.state()) & {"http://a.example.org/code", "http://a.example.org/new"} == {
        "http://a.example.org/new"
    }


def test_scheduled_runs_fail_after_a_day_of_gone(project, capsys):
    gone(project)
    assert project("--update-state") == 0
    line = (
        "papers.yaml:7:10  warn: gone 404  http://a.example.org/code  (id: alpha, field: code.url)  fix: find the new"
    )
    assert line in capsys.readouterr().out
    assert project.state()["http://a.example.org/code"]["strikes"] == 1
    project.later(hours=1)
    assert project("--update-state") == 0
    project.later(hours=24)
    assert project("--update-state") == 2
    assert "fail: gone 404" in capsys.readouterr().out
    project.net.server.replies["a.example.org/code"] = ok
    assert project("--update-state") == 0
    assert "strikes" not in project.state()["http://a.example.org/code"]


def test_archived_copy_is_looked_for_once_a_month(project, capsys):
    gone(project)
    copy = {
        "url": "http://web.archive.org/web/20240102030405/http://a.example.org/code",
        "available": True,
        "status": "200",
    }
    project.net.play(jsons({"archived_snapshots": {"closest": copy}}), at="wayback.services.example.org/available")
    for _ in range(3):
        project("--update-state")
        project.later(days=1)
    assert project.net.server.count("wayback.services") == 1
    record = project.state()["http://a.example.org/code"]
    assert record["archive_url"] == "https://web.archive.org/web/20240102030405/http://a.example.org/code"
    assert "an archived copy is at https://web.archive.org/web/" in capsys.readouterr().out
    project.later(days=31)
    project("--update-state")
    assert project.net.server.count("wayback.services") == 2


@pytest.mark.parametrize(
    "closest", [None, {}, {"available": False}, {"available": True, "url": "http://evil.example.org/x"}, 7]
)
def test_only_the_archive_itself_is_believed(net, closest):
    net.play(jsons({"archived_snapshots": {"closest": closest}}), at="wayback.services.example.org/available")
    assert net.fetcher().archived(PAGE) == ""
    net.play(page(status=500), at="wayback.services.example.org/available")
    assert net.fetcher().archived(PAGE) is None


def test_unavailable_asks_the_archive_on_the_second_strike(project):
    project.net.server.replies["a.example.org/code"] = page(status=500)
    project("--update-state")
    assert project.net.server.count("wayback") == 0
    project("--update-state")
    assert project.net.server.count("wayback") == 1


def test_no_network_leaves_the_state_alone(project, capsys):
    assert project("--update-state") == 0
    before = (project.root / check_links.STATE).read_bytes()
    project.later(days=30)
    project.write(
        "papers.yaml",
        PAPERS.replace("a.example.org/c", "b.example.org/c").replace("a.example.org/t", "c.example.org/t"),
    )

    def down(host: str, port: int) -> list:
        raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")

    assert project("--update-state", resolver=down) == 4
    assert (project.root / check_links.STATE).read_bytes() == before
    assert "no network" in capsys.readouterr().err


def test_one_dead_host_is_not_a_dead_network(project):
    project.write("papers.yaml", PAPERS.replace("a.example.org/code", "gone.example.org/code"))
    assert project("--update-state") == 0
    assert project.state()["http://gone.example.org/code"]["class"] == "gone"


def test_offline_asks_nobody_and_says_so(project, capsys):
    assert project("--offline") == 0
    assert "4 skipped" in (out := capsys.readouterr().out)
    assert "offline, nobody was asked" in out
    project.write("papers.yaml", PAPERS.replace("http://a.example.org/code", "http://localhost/code"))
    assert project("--offline") == 2
    assert project.net.server.count() == 0


def test_entry(project, capsys):
    project.write("tools.yaml", TOOLS.replace("https://github.com/o/r", "http://b.example.org/tool"))
    project.net.server.replies["b.example.org/tool"] = missing
    assert project("--entry", "alpha") == 0
    assert project.net.server.count("b.example.org") == 0
    assert project("--entry", "beta") == 2  # who asks for one entry wants to know at once
    assert project("--entry", "nobody") == 3
    assert "no entry 'nobody'" in capsys.readouterr().err


def test_token_comes_from_the_environment(project, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "t0ken")
    project.write("tools.yaml", TOOLS)
    project.net.play(jsons({"full_name": "o/r"}), at="github.services.example.org/repos/o/r")
    assert project() == 0
    sent = [headers["host"] for headers in project.net.server.headers if "authorization" in headers]
    assert sent == ["github.services.example.org"]


def test_what_the_time_did_not_reach_is_counted_and_not_remembered(project, capsys):
    assert project("--update-state", "--max-time", "0.3") == 0
    assert "skipped" in capsys.readouterr().out
    assert 0 < len(project.state()) < 4


def test_title_mismatch_fails_at_once_and_from_memory(project, capsys):
    project.net.server.replies[ARXIV] = arxiv_service(
        {"2305.00001": ("A Survey of Fish in Northern Lakes", "Someone Else")}
    )
    assert project("--update-state") == 2
    out = capsys.readouterr().out
    assert re.search(
        r"papers.yaml:5:3  fail: mismatch 200 .*field: arxiv\)  the identifier is that of 'A Survey of Fish", out
    )
    assert project() == 2
    assert project.net.server.count(ARXIV) == 1
    fixed = PAPERS.replace("Alpha: Pruning of Diffusion Models", "A Survey of Fish in Northern Lakes")
    project.write("papers.yaml", fixed.replace("Ada Example", "Someone Else"))
    assert project() == 0
    assert project.net.server.count(ARXIV) == 1


def test_evidence_may_be_another_paper(project):
    project.write(
        "papers.yaml",
        PAPERS.replace("evidence: http://a.example.org/table", "evidence: https://arxiv.org/abs/2305.00002"),
    )
    known = {"2305.00001": ("Alpha: Pruning of Diffusion Models", "Ada Example"), "2305.00002": ("Something Else", "X")}
    project.net.server.replies[ARXIV] = arxiv_service(known)
    assert project() == 0


def test_archived_repository_of_an_active_tool_warns(project, capsys):
    project.write("tools.yaml", TOOLS)
    facts = {"full_name": "o/r", "archived": True, "pushed_at": "2024-01-02T00:00:00Z"}
    project.net.play(jsons(facts), at="github.services.example.org/repos/o/r")
    assert project(token="t0ken") == 0
    assert "tools.yaml:3:3  warn: ok 200  https://github.com/o/r" in capsys.readouterr().out
    project.write("tools.yaml", TOOLS.replace("active", "archived"))
    assert project(token="t0ken") == 0
    assert "warn" not in capsys.readouterr().out


# Pull requests.


@pytest.fixture
def repository(project) -> Project:
    """The same in git, with one commit."""
    project.write("README.md", "# A\n\nBy hand: <http://a.example.org/new>.\n")
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(project, *command)
    return project


def git(project: Project, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=project.root, check=True, capture_output=True)


def test_a_pull_request_is_not_judged_by_what_it_did_not_touch(repository, capsys):
    gone(repository)
    assert repository("--changed-since", "main") == 0
    assert capsys.readouterr().out.startswith("0 links")
    assert repository.net.server.count() == 0
    repository.write("papers.yaml", PAPERS.replace("/table", "/new2").replace("id: alpha", "id: renamed"))
    assert repository("--changed-since", "main", "--format", "github") == 2
    out = capsys.readouterr().out
    assert out.startswith("::error file=papers.yaml,line=9,col=31,title=link gone::http://a.example.org/new2 ")
    assert "a.example.org/code" not in out
    assert {path for _, path in repository.net.server.asked if path.startswith("a.")} == {"a.example.org/new2"}
    assert not (repository.root / check_links.STATE).exists()


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (missing, 2),
        (page(status=403), 0),
        (page(status=500), 0),
        (slow_down, 0),
        (redirect("/alpha"), 0),
        (page("Not found"), 0),
    ],
)
def test_severity_in_a_pull_request(repository, reply, code):
    repository.write("papers.yaml", PAPERS.replace("/table", "/added"))
    repository.net.server.replies["a.example.org/added"] = reply
    assert repository("--changed-since", "main") == code


def test_a_pull_request_that_gives_an_entry_another_title(repository):
    repository.write(
        "papers.yaml", PAPERS.replace("Alpha: Pruning of Diffusion Models", "Fish in Northern Lakes, a Survey")
    )
    assert repository("--changed-since", "main") == 2
    assert repository.net.server.count() == 1  # its identifier, nothing else


def test_changes_are_counted_from_where_the_branches_parted(repository, capsys):
    git(repository, "checkout", "-q", "-b", "topic")
    git(repository, "checkout", "-q", "main")
    repository.write("papers.yaml", PAPERS.replace("/table", "/new"))  # main goes on without /table
    git(repository, "commit", "-qam", "second")
    git(repository, "checkout", "-q", "topic")
    assert repository("--changed-since", "main") == 0
    assert capsys.readouterr().out.startswith("0 links")


def test_hand_written_pages_count_too(repository, capsys):
    text = "# A\n\nSee [b](http://a.example.org/absent(1)), `http://a.example.org/code-span`.\n\n```\nhttp://localhost:1\n```\n"
    text += "<!-- generated:papers -->\n<http://a.example.org/generated>\n<!-- /generated:papers -->\n"
    repository.write("README.md", text)
    assert repository("--changed-since", "main") == 2
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("README.md:3:9  fail: gone 404  http://a.example.org/absent(1)  fix:")
    assert "1 links" in out


def test_unknown_commit_and_bad_arguments(repository, capsys):
    assert repository("--changed-since", "nowhere") == 3
    assert repository("--changed-since", "--output=x") == 3
    assert repository("--changed-since", "main", "--update-state") == 3
    assert repository("--offline", "--update-state") == 3
    assert repository("--max-time", "0") == 3
    assert repository("--max-time", "nan") == 3
    assert repository("--format", "xml") == 3
    assert repository("--what") == 3
    assert "fix: see --help" in capsys.readouterr().err
    repository.write("papers.yaml", "- id: [")
    assert repository() == 3
    assert "papers.yaml:" in capsys.readouterr().err


def test_unexpected_errors_have_their_own_code(project, capsys):
    assert project(resolver=lambda host, port: 1 / 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"u": {}}', '{"u": {"class": "ok", "last_checked": "2026-02-31"}}', "<<<<<<< main\n{}"]
)
def test_damaged_state(project, capsys, text):
    project.write(check_links.STATE, text)
    assert project() == 3
    assert "links.lock.json: it is damaged" in capsys.readouterr().err


# Exceptions.

RULE = """\
# About rules.
- match: host
  pattern: a.example.org
  class: blocked
  reason: opens in a browser
  verified_by: someone
  verified_on: 2026-11-01
  expires: 2026-12-01
"""


def test_an_allow_rule_lasts_until_its_day(project, capsys):
    project.net.server.replies["a.example.org/code"] = page(status=403)
    assert project() == 0
    assert "warn: blocked 403" in capsys.readouterr().out
    project.write(check_links.ALLOW, RULE)
    assert project() == 0
    out = capsys.readouterr().out
    assert "3 ok, 1 allowed" in out
    assert "linkcheck-allow.yaml:2:3 allows 1" in out
    assert "warn" not in out
    project.later(days=11)  # the second of December
    assert project() == 0
    out = capsys.readouterr().out
    assert "warn: blocked 403" in out
    assert "ended on 2026-12-01" in out
    project.later(days=14)
    assert project() == 2  # nobody looked for two weeks
    assert project("--entry", "alpha") == 0  # which is not the fault of whoever edits an entry


def test_a_rule_hides_nothing_worse(project):
    gone(project)
    project.write(check_links.ALLOW, RULE)
    assert project("--entry", "alpha") == 2
    project.write(check_links.ALLOW, RULE.replace("class: blocked", "class: gone"))
    assert project("--entry", "alpha") == 0


@pytest.mark.parametrize(
    ("match", "pattern", "allowed"),
    [
        ("exact", "http://a.example.org/", 0),
        ("exact", "http://a.example.org/code", 1),
        ("regex", "/co.e$", 1),
        ("regex", "/co$", 0),
        ("host", "www.a.example.org", 1),
        ("host", "example.org", 0),
    ],
)
def test_rules_apply_to_remembered_links_too(project, capsys, match, pattern, allowed):
    project.net.server.replies["a.example.org/code"] = page(status=403)
    project("--update-state")
    project.net.server.asked.clear()
    rule = RULE.replace("match: host", f"match: {match}").replace("a.example.org", f'"{pattern}"')
    project.write(check_links.ALLOW, rule)
    capsys.readouterr()
    assert project("--format", "json") == 0
    links = json.loads(capsys.readouterr().out)["links"]
    assert [link["rule"] for link in links if link["class"] == "allowed"] == [f"{check_links.ALLOW}:2:3"] * allowed
    assert project.net.server.count() == 0


def test_an_idle_rule_may_go(project, capsys):
    rule = RULE.replace("2026-11-01", "2026-09-01").replace("a.example.org", "z.example.org")
    project.write(check_links.ALLOW, rule)
    assert project() == 0
    assert "the rule for 'z.example.org' matches nothing" in capsys.readouterr().out
    assert project("--entry", "alpha") == 0
    assert "matches nothing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  expires: 2026-12-01\n", "", "the key 'expires' is missing"),
        ("2026-12-01", "2027-06-01", "at most 180 days"),
        ("2026-12-01", "2026-02-31", "not a day of the calendar"),
        ("2026-12-01", "2026-10-01", "at most 180 days"),
        ("verified_on: 2026-11-01", "verified_on: 2026-11-30", "lies in the future"),
        ("class: blocked", "class: ok", "not in the vocabulary"),
        ("match: host", "match: regex", "regular expression"),
        ("reason: opens in a browser\n", "reason: x\n", "too short"),
        ("- match", "match", "write a list"),
    ],
)
def test_bad_rules_are_refused(project, capsys, old, new, says):
    text = RULE.replace("pattern: a.example.org", 'pattern: "(a"') if "regex" in new else RULE
    if old == "- match":
        text, old, new = "match: host\n", "match", "match"
    project.write(check_links.ALLOW, text.replace(old, new))
    assert project("--offline") == 3
    error = capsys.readouterr().err
    assert error.startswith("linkcheck-allow.yaml:")
    assert says in error


# Rewriting.


def test_fix_changes_the_address_and_no_other_byte(project, capsys):
    text = PAPERS.replace("\n", "\r\n").replace("http://a.example.org/alpha, what", "http://a.example.org/alpha , what")
    project.write("papers.yaml", text)
    project.net.server.replies["a.example.org/alpha"] = redirect("/new")
    project.net.server.replies["a.example.org/code"] = redirect("/new", 302)
    project.net.server.replies["a.example.org/table"] = redirect("https://b.example.org/login")
    assert project("--fix") == 0
    fixed = (project.root / "papers.yaml").read_bytes().decode("utf-8")
    assert fixed == text.replace("http://a.example.org/alpha", "http://a.example.org/new")
    error = capsys.readouterr().err
    assert error.count("fixed: ") == 2
    assert "papers.yaml:6  http://a.example.org/alpha -> http://a.example.org/new" in error


@pytest.mark.parametrize("target", ["/", "/login", "/404", "http://10.0.0.1/x"])
def test_fix_never_writes_a_front_or_login_page(project, target):
    project.net.server.replies |= {
        "a.example.org/alpha": redirect(target),
        "a.example.org/": ok,
        "a.example.org/login": ok,
    }
    project("--fix")
    assert (project.root / "papers.yaml").read_text(encoding="utf-8") == PAPERS


def test_fix_leaves_what_it_cannot_place(project, capsys):
    # A comma ends a plain word in braces: the new address would be cut, so nothing is written.
    project.net.server.replies |= {"a.example.org/table": redirect("/new,x"), "a.example.org/new,x": ok}
    assert project("--fix") == 0
    assert (project.root / "papers.yaml").read_text(encoding="utf-8") == PAPERS
    assert "not fixed, edit by hand: papers.yaml:9  http://a.example.org/table -> " in capsys.readouterr().err


def test_fix_ignores_hand_written_pages(project, capsys):
    project.write("README.md", "<http://a.example.org/alpha>\n")
    project.net.server.replies["a.example.org/alpha"] = redirect("/new")
    assert project("--fix") == 0
    assert (project.root / "README.md").read_text() == "<http://a.example.org/alpha>\n"


# Reports.


def test_json_report_holds_everything(project, capsys):
    project.net.server.replies["a.example.org/alpha"] = redirect("/new")
    assert project("--format", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["counts"]) == (1, {"ok": 3, "moved": 1})
    link = next(link for link in report["links"] if link["class"] == "moved")
    assert link["fix"] == "http://a.example.org/new"
    assert link["hops"] == [{"status": 301, "url": "http://a.example.org/alpha"}]
    assert [(place["file"], place["line"], place["field"]) for place in link["places"]] == [
        ("papers.yaml", 6, "url"),
        ("papers.yaml", 11, "evidence.0.url"),
    ]


def test_strangers_cannot_write_into_reports(project, capsys):
    evil = "Page not found\x1b[31m `@everyone` ::error::x %0A\u202e <script>"
    project.net.server.replies["a.example.org/code"] = page(evil.replace("<", "&lt;"))
    for form in ("text", "markdown", "github"):
        assert project("--format", form) == 0
        out = capsys.readouterr().out
        assert "soft-gone" in out
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert not any(line.startswith("::error") for line in out.splitlines())
        if form == "markdown":
            assert "@everyone" not in re.sub(r"`[^`\n]*`", "", out)
            assert "<script>" not in re.sub(r"`[^`\n]*`", "", out)
        if form == "github":
            assert "%250A" in out


def test_markdown_report_groups_by_class(project, capsys):
    gone(project)
    project.net.server.replies["a.example.org/alpha"] = redirect("/new")
    assert project("--format", "markdown", "--entry", "alpha") == 2
    out = capsys.readouterr().out
    assert out.index("## gone (failing, 1)") < out.index("## moved (warning, 1)")
    assert "- `http://a.example.org/code`; in papers.yaml:7 (alpha); fix: `find the new address" in out


# Nothing makes it raise.


def test_no_answer_makes_it_raise(net):
    raws = [
        b"",
        b"\x00" * 100,
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=punycode\r\nConnection: close\r\n\r\n<title>\xff</title>",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=gb-nonsense\r\nConnection: close\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=gbnonsense\r\nConnection: close\r\n\r\nx",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe%zz\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a.example.org:port/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 300 + b".example.org/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://xn--\xc3\xa9.example.org/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
        b"HTTP/1.1 429 Slow\r\nRetry-After: " + b"9" * 6000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 429 Slow\r\nRetry-After: Thu, 01 Jan 99999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip, gzip, gzip, gzip, gzip\r\nConnection: close\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + b"<title" * 80000,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + b"<!--" * 120000,
    ]
    dice = random.Random(0)
    raws += [b"HTTP/1.1 200 OK\r\n" + dice.randbytes(60) for _ in range(10)]
    services = (
        "https://arxiv.org/abs/2301.00001",
        "https://doi.org/10.1000/1",
        "https://openreview.net/forum?id=Forum1",
    )
    for i, raw in enumerate(raws):
        at = f"h{i}.example.org/x"
        net.play(Reply(raw=raw), at=at)
        for service in (
            "arxiv.services.example.org/query",
            "doi.services.example.org/handles/10.1000/1",
            "or2.services.example.org/notes",
        ):
            net.play(Reply(raw=raw), at=service)
        urls = (f"http://{at}#frag", *(services if i % 6 == 0 else ()))
        for verdict in net.check(*urls, total_s=2).values():
            assert verdict.cls in link_classes.CLASSES


def test_no_address_makes_it_raise(net):
    dice = random.Random(1)
    pieces = [
        "http",
        "https",
        ":",
        "//",
        "/",
        "?",
        "#",
        "@",
        "[",
        "]",
        "%",
        "%zz",
        "\x00",
        " ",
        "é",
        "。",
        "a.example.org",
        "..",
        ":99999",
        "ftp",
        "127.1",
        "\u202e",
        "?id=",
        "10.1/",
    ]
    urls = {"".join(dice.choices(pieces, k=dice.randint(0, 9))) for _ in range(400)}
    urls |= {f"http://a.example.org/{''.join(dice.choices(pieces, k=4))}" for _ in range(60)}
    verdicts = net.check(*urls)
    assert set(verdicts) == urls
    assert {verdict.cls for verdict in verdicts.values()} <= set(link_classes.CLASSES)


def test_no_page_makes_it_raise():
    dice = random.Random(2)
    pieces = [
        b"<title>",
        b"</title>",
        b"<!--",
        b"-->",
        b"id=",
        b'"',
        b"'",
        b"&#x110000;",
        b"&eacute;",
        b"\xff",
        b"404",
        b"captcha",
        b"\\",
        b"name = ",
    ]
    for _ in range(500):
        body = b"".join(dice.choices(pieces, k=dice.randint(0, 30)))
        answer = Answer(
            PAGE, dice.choice([200, 202, 304, 403, 404, 429, 503, 999, 0, -1]), {"content-type": "text/html"}, body
        )
        url = PAGE + dice.choice(["", "#a", "#%", "#%ff", "#" + "x" * 300])
        verdict = link_classes.judge(url, answer, START)
        assert verdict.cls in link_classes.CLASSES
        record = link_classes.remember(None, verdict, START)
        assert isinstance(link_classes.due(url, record, START, False), bool)
        assert json.loads(check_links.dump_state({url: record}))[url] == record


def test_shipped_files_are_sound():
    assert check_links.load_state(check_links.catalog.ROOT) is not None
    rules = check_links.load_rules(check_links.catalog.ROOT, max(TODAY, date.today()))
    assert all((rule.expires - rule.verified_on).days <= 180 for rule in rules)
