"""Asks for links: politely, safely, and identifiers as identifiers. `link_classes` says what an answer means.

Addresses come from pull requests and redirects from strangers, so neither is trusted: every host is resolved here, its
address must be public, and the connection goes to that very address (a second look-up could tell another). No cookies,
no netrc, no proxies; the GitHub token goes to the host of the GitHub API and nowhere else.
"""

import ipaddress
import json
import random
import re
import socket
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urldefrag, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri
from urllib3.connection import HTTPConnection, HTTPSConnection

from scripts import link_classes, validate
from scripts.link_classes import Answer, Hop, Verdict

VERSION = 1
BODY_LIMIT = 512 * 1024
MAX_HOPS = 10  # DOI chains are long
LONG_WAIT_S = 120  # a host that asks for more is left alone until the next run
THREADS, PER_HOST = 16, 2
GAPS_S = {"github.com": 0.5, "api.github.com": 0.5, "arxiv.org": 3.0, "export.arxiv.org": 3.0}  # between two starts
GAP_S = 0.25
ARXIV_BATCH = 50  # ids a request: an answer stays below BODY_LIMIT
GITHUB_PAGES = ("orgs", "topics", "sponsors", "features", "settings", "users", "search", "collections")
HUGGINGFACE_PAGES = ("docs", "blog", "papers", "learn", "tasks", "collections", "api", "datasets", "spaces", "models")
ATOM = "{http://www.w3.org/2005/Atom}"

Resolver = Callable[[str, int], list[tuple[str, int]]]
Job = tuple[str, tuple[str, ...]]  # kind and identifiers (one, but for arXiv) or, for a page, its address


class Clock(NamedTuple):
    """Time, so that tests need not wait for it."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    utc: Callable[[], datetime] = lambda: datetime.now(UTC)
    jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.5)


class Services(NamedTuple):
    """Where identifiers are looked up; all public, none needs a key."""

    arxiv: str = "https://export.arxiv.org/api/query"
    doi: str = "https://doi.org/api/handles/"
    openreview: tuple[str, ...] = ("https://api2.openreview.net/notes", "https://api.openreview.net/notes")  # new, old
    github: str = "https://api.github.com/repos/"
    huggingface: str = "https://huggingface.co/api/"
    wayback: str = "https://archive.org/wayback/available"


class OutOfTime(Exception):
    """The budget of the run does not reach to the next request."""


def resolve(host: str, port: int) -> list[tuple[str, int]]:
    """Addresses of a host from the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(info[4][0]), info[4][1]) for info in found))


def recognise(url: str, token: bool = False) -> tuple[str, str]:
    """Kind and name of what an address identifies; ("page", address) if it is just a page.

    A repository of GitHub is an identifier only with a token: without one its API answers 60 times an hour.
    """
    try:
        parts = urlsplit(url)
        host, query = (parts.hostname or "").removeprefix("www."), parse_qs(parts.query)
    except ValueError:
        return "page", url
    path = unquote(parts.path).strip("/")
    if host in ("arxiv.org", "export.arxiv.org") and not parts.fragment:
        known = re.fullmatch(r"(?:abs|pdf|html)/(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?(?:\.pdf)?", path)
        if known:
            return "arxiv", known[1]
    if host in ("doi.org", "dx.doi.org") and re.match(r"10\.\d{4,9}/", path):
        return "doi", path
    if host == "openreview.net" and path in ("forum", "pdf") and re.fullmatch(r"[\w-]+", query.get("id", [""])[0]):
        return "openreview", query["id"][0]
    plain = not parts.query and not parts.fragment
    if host == "github.com" and token and plain and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        owner, repo = path.lower().split("/")
        if owner not in GITHUB_PAGES:
            return "github", f"{owner}/{repo.removesuffix('.git')}"
    if host == "huggingface.co" and plain:
        known = re.fullmatch(r"(datasets/|spaces/|)([\w.-]+)/([\w.-]+)(?:/tree/([\w.-]+))?", path)
        if known and known[2] not in HUGGINGFACE_PAGES:
            revision = f"/revision/{known[4]}" if known[4] else ""
            return "huggingface", f"{known[1] or 'models/'}{known[2]}/{known[3]}{revision}"
    return "page", urldefrag(url)[0]


class Gate:
    """Who may be asked when: two requests a host at once, a pause between two starts, nothing past the deadline."""

    def __init__(self, clock: Clock, deadline: float):
        self.clock, self.deadline, self.lock = clock, deadline, threading.Lock()
        self.places = defaultdict(lambda: threading.BoundedSemaphore(PER_HOST))
        self.gaps = defaultdict(lambda: GAP_S, GAPS_S)
        self.next_start: dict[str, float] = {}
        self.limits: Counter[str] = Counter()  # answers "not so fast", by host
        self.reached: set[str] = set()
        self.failed: set[str] = set()

    @contextmanager
    def turn(self, host: str) -> Iterator[None]:
        """Wait for a turn at a host and hold it."""
        with self.lock:
            place = self.places[host]
        with place:
            with self.lock:
                now = self.clock.monotonic()
                start = max(now, self.next_start.get(host, now))
                if start > self.deadline:
                    raise OutOfTime
                self.next_start[host] = start + self.gaps[host]
            if start > now:
                self.clock.sleep(start - now)
            yield

    def hold(self, host: str, seconds: float) -> None:
        """Let nobody start at a host for some time."""
        with self.lock:
            until = self.clock.monotonic() + seconds
            self.next_start[host] = max(self.next_start.get(host, until), until)

    def rest(self, seconds: float) -> None:
        """Wait for one link's sake."""
        if self.clock.monotonic() + seconds > self.deadline:
            raise OutOfTime
        self.clock.sleep(seconds)

    def limit(self, host: str) -> int:
        """Count an answer "not so fast"."""
        with self.lock:
            self.limits[host] += 1
            return self.limits[host]

    def paused(self, host: str) -> bool:
        """Whether a host said so three times: the rest of its links wait for the slow round."""
        return self.limits[host] >= 3

    def no_network(self) -> bool:
        """Whether so many hosts were out of reach that the fault is probably ours."""
        hosts = self.reached | self.failed
        return len(hosts) >= 3 and len(self.failed - self.reached) > 0.6 * len(hosts)


class PinnedAdapter(HTTPAdapter):
    """Connects to the addresses that were looked up and found public, and to no others."""

    def __init__(self, pins: dict[tuple[str, int], list[tuple[str, int]]], local: threading.local):
        self.pins, self.local = pins, local
        # Room for every host: a pool that is pushed out is closed under the thread that uses it.
        super().__init__(pool_connections=1000, pool_maxsize=PER_HOST)

    def init_poolmanager(self, *args, **kwargs) -> None:
        """Use pools whose connections go to the pinned addresses."""
        super().init_poolmanager(*args, **kwargs)
        pins, local = self.pins, self.local

        def pinned(base: type[HTTPConnection]) -> type[HTTPConnection]:
            class Pinned(base):
                def _new_conn(self) -> socket.socket:
                    host, port = self._dns_host, self.port
                    error = urllib3.exceptions.NewConnectionError(self, "no public address")
                    try:
                        for self._dns_host, self.port in pins.get((host.lower(), port), [])[:2]:
                            try:
                                sock = super()._new_conn()
                            except urllib3.exceptions.HTTPError as failure:
                                error = failure
                                continue
                            local.lines.append(sock.dup())  # the handle by which the watchdog hangs up
                            if not local.late.is_set():
                                return sock
                            sock.close()
                        raise error
                    finally:
                        self._dns_host, self.port = host, port

            return Pinned

        class Fresh:  # one connection a request, also where the host does not close it: see `talk`
            def _put_conn(self, connection: HTTPConnection | None) -> None:
                if connection:
                    connection.close()

        class Pool(Fresh, urllib3.HTTPConnectionPool):
            ConnectionCls = pinned(HTTPConnection)

        class SecurePool(Fresh, urllib3.HTTPSConnectionPool):
            ConnectionCls = pinned(HTTPSConnection)

        self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}


class Fetcher:
    """One run's way to the network. `allow_loopback` lets names lead to this machine: for tests, no option."""

    def __init__(
        self,
        *,
        max_time: float = 900,
        repo_url: str = "",
        token: str | None = None,
        clock: Clock | None = None,
        resolver: Resolver = resolve,
        services: Services | None = None,
        allow_loopback: bool = False,
        verify: bool | str = True,
        connect_s: float = 10,
        total_s: float = 20,
    ):
        self.clock = clock or Clock()
        self.gate = Gate(self.clock, self.clock.monotonic() + max_time)
        self.token, self.resolver, self.services = token, resolver, services or Services()
        self.allow_loopback, self.verify, self.connect_s, self.total_s = allow_loopback, verify, connect_s, total_s
        self.agent = f"awesome-diffusion-pruning-linkcheck/{VERSION}" + (f" (+{repo_url})" if repo_url else "")
        self.pins: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self.down: dict[str, Verdict] = {}  # hosts out of reach
        self.local = threading.local()
        self.adapter = PinnedAdapter(self.pins, self.local)

    # One request.

    def pin(self, host: str, port: int) -> tuple[str, str] | None:
        """Look a host up and keep its public addresses; error and detail if there are none."""
        if (host, port) in self.pins:
            return None
        try:
            found = self.resolver(host, port)
        except socket.gaierror as error:
            self.gate.failed.add(host)
            absent = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            return ("nxdomain", "no such host") if absent else ("dns", "the name service did not answer")
        except (OSError, UnicodeError) as error:
            return "refused", f"the host cannot be looked up ({error})"
        allowed = []
        for address, number in found:
            ip = ipaddress.ip_address(address.partition("%")[0])
            if (ip.is_global and not ip.is_multicast) or (self.allow_loopback and ip.is_loopback):
                allowed.append((address, number))
        if not allowed:
            return "refused", "the host has a private, loopback or reserved address"
        self.pins[host, port] = allowed
        return None

    def once(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """One request to one address; a redirect is an answer."""
        standard = {"User-Agent": self.agent, "Accept": "text/html,*/*;q=0.8", "Accept-Encoding": "gzip, deflate"}
        try:
            request = requests.Request(method, url, headers={**standard, "Connection": "close", **headers}).prepare()
            parts = urlsplit(request.url)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        except (requests.RequestException, ValueError) as error:
            return Answer(url, error="refused", detail=f"not an address ({error})")
        # The form that is sent counts: it may spell the host differently.
        if wrong := validate.url_problem(request.url):
            return Answer(url, error="refused", detail=f"the address {wrong}")
        with self.gate.turn(host):
            if problem := self.pin(host, port):
                return Answer(url, error=problem[0], detail=problem[1])
            return self.talk(request, host)

    def talk(self, request: requests.PreparedRequest, host: str) -> Answer:
        """Send a request and read at most BODY_LIMIT bytes, all within `total_s` however slowly they drip.

        Time limits of sockets start anew with every byte; so a timer hangs up the one connection of the request.
        """
        self.local.lines, self.local.late = lines, late = [], threading.Event()

        def hang_up() -> None:
            late.set()
            for line in lines:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

        watchdog = threading.Timer(self.total_s, hang_up)
        watchdog.daemon = True
        watchdog.start()
        url, connected = request.url, False
        try:
            waits = (self.connect_s, self.total_s)
            response = self.adapter.send(request, stream=True, timeout=waits, verify=self.verify, proxies={})
            connected = True
            with response:
                fields = {name.lower(): value for name, value in response.headers.items()}
                answer = Answer(url, response.status_code, fields)
                if request.method == "HEAD" or (300 <= response.status_code < 400):
                    return answer
                body = bytearray()
                for chunk in response.iter_content(16 * 1024):
                    body += chunk
                    if len(body) > BODY_LIMIT:
                        return answer._replace(body=bytes(body[:BODY_LIMIT]), cut=True)
            if late.is_set():
                raise requests.ReadTimeout
            return answer._replace(body=bytes(body))
        except requests.exceptions.SSLError as error:
            connected = True
            wrong = "certificate" in str(error).lower() or "doesn't match" in str(error)
            detail = "its certificate is not valid for this host and day" if wrong else "the TLS handshake failed"
            return Answer(url, error="certificate" if wrong else "tls", detail=detail)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            connected = connected or not isinstance(error, requests.ConnectTimeout)
            return Answer(url, error="timeout", detail=f"no answer within {self.total_s:g} s")
        except (requests.exceptions.ContentDecodingError, urllib3.exceptions.DecodeError):
            return Answer(url, error="protocol", detail="the body is not in the encoding that it claims")
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if late.is_set():
                return Answer(url, error="timeout", detail=f"no whole answer within {self.total_s:g} s")
            refused = "NewConnectionError" in repr(error) or "Failed to establish" in str(error)
            connected = connected or not refused
            kind, detail = ("connect", "no connection") if refused else ("reset", "the connection was cut off")
            return Answer(url, error=kind, detail=detail)
        finally:
            watchdog.cancel()
            (self.gate.reached if connected else self.gate.failed).add(host)
            for line in lines:
                line.close()

    # One link.

    def follow(self, method: str, url: str, headers: Mapping[str, str], hops: tuple[Hop, ...] = ()) -> Answer:
        """Ask for an address and follow its redirects by hand: each hop is checked like the first."""
        seen = {hop.url for hop in hops}
        while True:
            answer = self.once(method, url, headers)
            where = answer.headers.get("location")
            if answer.error or not where or answer.status not in (301, 302, 303, 307, 308):
                return answer._replace(url=url, hops=hops)
            hops = (*hops, Hop(answer.status, url))
            seen.add(url)
            if len(hops) > MAX_HOPS:
                return Answer(url, answer.status, hops=hops, error="hops", detail=f"more than {MAX_HOPS} redirects")
            with suppress(UnicodeError):  # header bytes arrive as Latin-1; in practice they are UTF-8
                where = where.encode("latin-1").decode("utf-8")
            try:
                target = requote_uri(urljoin(url, where.strip()))
                same_host = urlsplit(target)[:2] == urlsplit(url)[:2]
            except (ValueError, requests.RequestException):
                return Answer(url, answer.status, hops=hops, error="refused", detail="it redirects to no address")
            if target in seen:
                return Answer(url, answer.status, hops=hops, error="loop", detail="its redirects run in a circle")
            if not same_host:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target

    def ask(
        self,
        url: str,
        judge: Callable[[Answer], Verdict],
        *,
        method: str = "GET",
        need_body: bool = True,
        headers: Mapping[str, str] | None = None,
        attempts: int = 3,
    ) -> tuple[Verdict, Answer]:
        """Ask until the verdict will not change by asking again."""
        verdict = answer = None
        began = self.clock.monotonic()
        try:
            for attempt in range(attempts):
                answer = self.follow(method, url, headers or {})
                if method == "HEAD" and link_classes.wants_get(answer, need_body):
                    answer = self.follow("GET", answer.url, headers or {}, answer.hops)
                method = "GET"
                verdict = judge(answer)
                backoff = 2**attempt * self.clock.jitter()
                if verdict.cls == "limited":
                    host = urlsplit(answer.url).hostname or ""
                    if self.gate.limit(host) >= 3 or (verdict.wait or 0) > LONG_WAIT_S:
                        break
                    self.gate.hold(host, max(verdict.wait or 0, backoff))  # its other links wait as well
                elif attempt == attempts - 1:
                    break
                elif verdict.cls == "unavailable" and answer.error not in ("loop", "hops"):
                    self.gate.rest(backoff)
                elif answer.error == "nxdomain" and attempt == 0:
                    self.gate.rest(backoff)  # name services err: asked twice before a host counts as gone
                else:
                    break
        except OutOfTime:
            if verdict is None or answer is None:
                raise
        host = urlsplit(answer.url).hostname or ""
        if answer.error in ("nxdomain", "dns", "connect", "timeout") and host not in self.gate.reached:
            self.down[host] = verdict  # its other links need not wait for the same silence
        return verdict._replace(seconds=round(self.clock.monotonic() - began, 3)), answer

    def page(self, url: str, links: Iterable[str], state: Mapping[str, Mapping], attempts: int) -> dict[str, Verdict]:
        """Verdicts on a page and on links to its fragments, from one request."""
        links = list(links)
        records = [state.get(link, {}) for link in links]
        headers = {}
        if all(record.get("class") == "ok" and record.get("etag") for record in records):
            headers["If-None-Match"] = records[0]["etag"]
        need_body = any(not link_classes.NO_ANCHOR.match(urlsplit(link).fragment) for link in links)

        def judge(answer: Answer) -> Verdict:
            return link_classes.judge(url, answer, self.clock.utc())

        verdict, answer = self.ask(url, judge, method="HEAD", need_body=need_body, headers=headers, attempts=attempts)
        verdicts = {}
        for link, record in zip(links, records, strict=True):
            each = link_classes.judge(link, answer, self.clock.utc())
            if headers and answer.status == 304:
                each = link_classes.recall(record)._replace(cached=False)
            elif each.cls == "ok" and urlsplit(link).scheme == "http" and urlsplit(link).port is None:
                each = self.secure(link, each)
            verdicts[link] = each._replace(seconds=verdict.seconds)
        return verdicts

    def secure(self, link: str, verdict: Verdict) -> Verdict:
        """For a link in plain http: whether https answers as well."""
        better = "https" + link.removeprefix("http")
        try:
            answer = self.follow("HEAD", urldefrag(better)[0], {})
        except OutOfTime:
            return verdict
        if answer.status == 200 and urlsplit(answer.url).scheme == "https":
            return verdict._replace(cls="insecure", final_url=better, note="https answers as well")
        return verdict

    # Identifiers.

    def service(
        self, url: str, accept: str = "application/json", attempts: int = 3, **headers: str
    ) -> tuple[Verdict, Answer]:
        """Ask a service; the verdict is on the answer as such, with class ok for every 200."""

        def judge(answer: Answer) -> Verdict:
            plain = answer._replace(hops=(), headers={**answer.headers, "content-type": accept})
            return link_classes.judge(answer.url, plain, self.clock.utc())._replace(final_url="", etag="")

        verdict, answer = self.ask(url, judge, headers={"Accept": accept, **headers}, attempts=attempts)
        if verdict.cls == "ok" and "json" in accept and not parsed(answer):
            verdict = verdict._replace(cls="unavailable", note="the service's answer is not the documented one")
        return verdict, answer

    def arxiv(self, ids: tuple[str, ...], attempts: int) -> dict[str, Verdict]:
        """Title and first author of each id from the metadata service, many ids a request."""
        query = f"{self.services.arxiv}?id_list={quote(','.join(ids), safe=',/')}&max_results={len(ids)}"
        verdict, answer = self.service(query, "application/atom+xml", attempts)
        spoilt = answer.status == 400
        found: dict[str, Verdict] = {}
        if verdict.cls == "ok":
            try:
                entries = ElementTree.fromstring(answer.body or b"").iter(f"{ATOM}entry")
            except (ElementTree.ParseError, ValueError):
                return dict.fromkeys(ids, verdict._replace(cls="unavailable", note="arXiv's answer is not XML"))
            for entry in entries:
                where = entry.findtext(f"{ATOM}id", "")
                spoilt = spoilt or "/api/errors" in where
                name = re.sub(r"v\d+$", "", where.partition("/abs/")[2])
                title = link_classes.clean(entry.findtext(f"{ATOM}title", ""), 300)
                author = link_classes.clean(entry.findtext(f"{ATOM}author/{ATOM}name", ""))
                found[name] = verdict._replace(title=title, author=author)
        if spoilt and len(ids) > 1:  # one id of wrong form spoils the answer for all
            half = len(ids) // 2
            return self.arxiv(ids[:half], attempts) | self.arxiv(ids[half:], attempts)
        absent = verdict._replace(cls="gone", note="arXiv has no paper of this id")
        other = absent if verdict.cls == "ok" or spoilt else verdict
        return {name: found.get(name, other) for name in ids}

    def doi(self, name: str, attempts: int) -> Verdict:
        """Whether the handle service knows a DOI. Publishers are not asked: they refuse programs."""
        verdict, answer = self.service(f"{self.services.doi}{quote(name, safe='/')}?type=URL", attempts=attempts)
        code = parsed(answer).get("responseCode")
        if answer.status == 404 or code == 100:
            return verdict._replace(cls="gone", note="no such DOI is registered")
        if verdict.cls == "ok" and code != 1:
            return verdict._replace(cls="soft-gone", note="the DOI leads nowhere")
        return verdict

    def openreview(self, name: str, attempts: int) -> Verdict:
        """Title and first author of a forum; submissions live in one of two generations of the service."""
        verdict = Verdict("gone")
        for service in self.services.openreview:
            verdict, answer = self.service(f"{service}?id={quote(name)}", attempts=attempts)
            notes = parsed(answer).get("notes")
            note = notes[0] if isinstance(notes, list) and notes else None
            content = note.get("content") if isinstance(note, dict) else None
            if verdict.cls == "ok" and not isinstance(notes, list):
                return verdict._replace(cls="unavailable", note="the service's answer is not the documented one")
            if verdict.cls == "ok" and isinstance(content, dict):
                values = [content.get(key) for key in ("title", "authors")]
                title, authors = (value.get("value") if isinstance(value, dict) else value for value in values)
                first = authors[0] if isinstance(authors, list) and authors else ""
                title, first = (text if isinstance(text, str) else "" for text in (title, first))
                return verdict._replace(title=link_classes.clean(title, 300), author=link_classes.clean(first))
            if verdict.cls not in ("ok", "gone") and answer.status != 400:
                return verdict
        return verdict._replace(cls="gone", note="OpenReview has no public forum of this id")

    def github(self, name: str, attempts: int) -> Verdict:
        """Whether a repository exists, was renamed or archived."""
        url = self.services.github + name
        bearer = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        verdict, answer = self.service(url, "application/vnd.github+json", attempts, **bearer)
        facts = parsed(answer)
        if verdict.cls != "ok" or not isinstance(facts.get("full_name"), str):
            return verdict
        if facts.get("private"):
            return verdict._replace(cls="blocked", note="the repository is private")
        note = f"archived, last push {str(facts.get('pushed_at'))[:10]}" if facts.get("archived") else ""
        if facts["full_name"].lower() != name:
            better = f"https://github.com/{quote(facts['full_name'])}"
            return verdict._replace(cls="moved", final_url=better, note="the repository was renamed")
        return verdict._replace(note=note)

    def huggingface(self, name: str, attempts: int) -> Verdict:
        """Whether a model, data set or space, and the revision if one is named, exists."""
        verdict, answer = self.service(self.services.huggingface + quote(name), attempts=attempts)
        if answer.headers.get("x-error-code") in ("RepoNotFound", "RevisionNotFound"):
            return verdict._replace(cls="gone", note="no such public repository or revision")
        if answer.headers.get("x-error-code") == "GatedRepo":
            return verdict._replace(cls="ok", note="gated")
        kind, _, repo = name.partition("/revision/")[0].partition("/")
        now = parsed(answer).get("id")
        if verdict.cls == "ok" and isinstance(now, str) and now.lower() != repo.lower():
            better = f"https://huggingface.co/{'' if kind == 'models' else kind + '/'}{quote(now)}"
            return verdict._replace(cls="moved", final_url=better, note="the repository was renamed")
        return verdict

    def archived(self, url: str) -> str | None:
        """Address of an archived copy; "" if there is none, None if the archive did not say."""
        try:
            verdict, answer = self.service(f"{self.services.wayback}?url={quote(url, safe='')}", attempts=1)
        except OutOfTime:
            return None
        snapshots = parsed(answer).get("archived_snapshots")
        if verdict.cls != "ok" or not isinstance(snapshots, dict):
            return None
        closest = snapshots.get("closest")
        found = closest.get("url") if isinstance(closest, dict) and closest.get("available") is True else None
        known = (
            re.fullmatch(r"https?://(web\.archive\.org/web/\d{4,14}/\S+)", found) if isinstance(found, str) else None
        )
        return f"https://{known[1]}" if known else ""

    # All links.

    def do(self, job: Job, links: Mapping[str, list[str]], state: Mapping[str, Mapping], attempts: int) -> dict:
        """Verdicts by link for one job."""
        kind, names = job
        if kind == "page":
            return self.page(names[0], links[names[0]], state, attempts)
        one = {"doi": self.doi, "openreview": self.openreview, "github": self.github, "huggingface": self.huggingface}
        found = self.arxiv(names, attempts) if kind == "arxiv" else {names[0]: one[kind](names[0], attempts)}
        return {link: verdict for name, verdict in found.items() for link in links[name]}

    def check(self, urls: Iterable[str], state: Mapping[str, Mapping]) -> dict[str, Verdict]:
        """Verdicts on links: hosts side by side, then the throttled ones again, slowly."""
        links: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        verdicts: dict[str, Verdict] = {}
        for url in sorted(set(urls)):
            if wrong := validate.url_problem(url):
                verdicts[url] = Verdict("invalid", f"the address {wrong}")
                continue
            kind, name = recognise(url, bool(self.token))
            links[kind][name].append(url)
        queues: dict[str, deque[Job]] = defaultdict(deque)
        hosts = {"arxiv": self.services.arxiv, "doi": self.services.doi, "openreview": self.services.openreview[0]}
        hosts |= {"github": self.services.github, "huggingface": self.services.huggingface}
        for kind, names in links.items():
            ordered = sorted(names)
            size = ARXIV_BATCH if kind == "arxiv" else 1
            for i in range(0, len(ordered), size):
                job = (kind, tuple(ordered[i : i + size]))
                queues[urlsplit(hosts.get(kind, ordered[i])).hostname or ""].append(job)

        again: dict[str, deque[Job]] = defaultdict(deque)

        def drain(host: str, jobs: deque[Job], attempts: int) -> None:
            while True:
                try:
                    job = jobs.popleft()
                except IndexError:
                    return
                mine = [link for name in job[1] for link in links[job[0]][name]]
                try:
                    if host in self.down:
                        found = dict.fromkeys(mine, self.down[host]._replace(hops=(), seconds=0.0))
                    elif self.gate.paused(host):
                        found = dict.fromkeys(mine, Verdict("limited", "the host asks for fewer requests"))
                    else:
                        found = self.do(job, links[job[0]], state, attempts)
                except OutOfTime:
                    found = dict.fromkeys(mine, Verdict("skipped", "the time of the run is used up"))
                verdicts.update(found)
                if any(v.cls == "limited" and (v.wait or 0) <= LONG_WAIT_S for v in found.values()):
                    again[host].append(job)

        def round_of(jobs_of: dict[str, deque[Job]], lanes: int, attempts: int) -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                order = sorted(jobs_of, key=lambda host: (-len(jobs_of[host]), host))
                many = [1 if host == (urlsplit(self.services.arxiv).hostname or "") else lanes for host in order]
                tasks = [
                    pool.submit(drain, host, jobs_of[host], attempts)
                    for host, count in zip(order, many, strict=True)
                    for _ in range(min(count, len(jobs_of[host])))
                ]
            for task in tasks:
                task.result()

        round_of(queues, PER_HOST, 3)
        slow, again = again, defaultdict(deque)
        for host in slow:
            self.gate.gaps[host] = max(2.0, 4 * self.gate.gaps[host])
        self.gate.limits.clear()
        round_of(slow, 1, 1)
        return verdicts


def parsed(answer: Answer) -> dict:
    """The JSON object of an answer; {} if it holds none."""
    try:
        data = json.loads(answer.body or b"")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
