"""What an answer means for a link: a class instead of a status, memory over days, dated exceptions. Nothing here asks.

`link_fetch` asks, this module judges, `check_links` reports. A list that shouts at every 403 is soon ignored, and one
that accepts every 403 hides dead pages; so the class decides, and only what stays bad for days fails a scheduled run.
"""

import difflib
import html
import re
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from scripts import catalog

FINE = ("ok", "moved", "redirected", "insecure")  # a page answered
STRIKE = ("gone", "soft-gone", "unavailable")  # bad today; only days of it make a failure
CLASSES = (*FINE, *STRIKE, "blocked", "limited", "mismatch", "invalid", "allowed", "skipped")
TTL_DAYS = {"ok": 7, "moved": 7, "redirected": 7, "insecure": 7, "blocked": 3}  # every other class is asked again
TTL_IDENTIFIER = 14
MAX_RULE_DAYS = 180
GRACE_DAYS = 14  # an expired rule warns for so long, then fails
KEPT = ("status", "final_url", "title", "author", "etag", "note")  # what the state keeps of a verdict
IDLE_DAYS = 60  # a rule that matches nothing may go after so long

ERRORS = {  # what kept an answer from coming -> its class
    "refused": "invalid",
    "nxdomain": "gone",
    "certificate": "insecure",
    **dict.fromkeys(("dns", "connect", "timeout", "reset", "tls", "protocol", "loop", "hops"), "unavailable"),
}
HEAD_PROVES = ("github.com", "raw.githubusercontent.com", "huggingface.co", "gitlab.com")  # their HEAD tells the truth
NOT_FOUND = re.compile(
    r"^\W*(?:(?:error|http)\W*)?(?:404|410)\b|\bpage (?:was |is |could |can)?(?:n[o']t )(?:be )?(?:found|available)\b"
    r"|^\W*not found\W*$|\bpage (?:does not|doesn't|no longer) exists?\b|\b404\W+(?:error|page|not found)\b",
    re.I,
)
MISSING_PATH = re.compile(r"/(?:404|(?:page[-_]?)?not[-_]?found)(?:\.\w+)?/?$", re.I)
LOGIN_PATH = re.compile(r"/(?:log-?in|sign-?in|sso|oauth2?|authorize|consent|captcha)(?:[/._]|$)", re.I)
CHALLENGE_TITLE = re.compile(
    r"^\W*just a moment|^\W*attention required|\bare you (?:a )?(?:robot|human)\b|\bverify(?:ing)? (?:that )?you are "
    r"(?:a )?human|^\W*(?:client|bot) challenge\W*$|\bmaking sure you're not a bot",
    re.I,
)
CHALLENGE_BODY = re.compile(rb"captcha|cf-chl|challenge-platform|awswaf|enable javascript and cookies", re.I)
NO_ANCHOR = re.compile(r"^(?::~:text=.*|L\d+.*|page=\d+.*|[/!].*|top|(?:issuecomment-|discussion_r)\d+)?$", re.S)
ANCHOR = re.compile(r"""\b(?:id|name)\s*=\s*\\?(?:"([^"]*?)\\?"|'([^']*)'|([^\s"'>\\]+))""", re.I)


class Hop(NamedTuple):
    """One redirect: the address that answered with it."""

    status: int
    url: str


class Answer(NamedTuple):
    """What came back for an address, redirects followed."""

    url: str  # the address that answered last
    status: int | None = None
    headers: Mapping[str, str] = {}  # names in lower case
    body: bytes | None = None  # None after HEAD
    cut: bool = False  # the body is longer than what was read
    hops: tuple[Hop, ...] = ()
    error: str = ""  # a key of ERRORS
    detail: str = ""


class Verdict(NamedTuple):
    """What the answer means for the link."""

    cls: str
    note: str = ""
    status: int | None = None
    final_url: str = ""  # for moved and insecure links the exact replacement
    title: str = ""
    author: str = ""
    etag: str = ""
    wait: float | None = None  # seconds that the host asked us to stay away
    hops: tuple[Hop, ...] = ()
    seconds: float = 0.0
    cached: bool = False

    @property
    def fix(self) -> str:
        """The address to write instead, if there is one."""
        return self.final_url if self.cls in ("moved", "insecure") else ""


def clean(text: str, limit: int = 200) -> str:
    """Text from a stranger on one line, without control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_html(answer: Answer) -> bool:
    """Whether an answer is a page in HTML, or does not say what it is."""
    kind = answer.headers.get("content-type", "").lower()
    return not kind or "html" in kind


def text_of(answer: Answer) -> str:
    """The body as text; wrong bytes become question marks."""
    named = re.search(r"charset=[\"']?([\w-]+)", answer.headers.get("content-type", ""), re.I)
    known = named and re.fullmatch(r"iso-8859-\d+|windows-\d+|gb\w+|big5|shift_jis|euc-\w+|koi8-\w+", named[1], re.I)
    try:  # only encodings of pages: Python knows others that take minutes for half a megabyte
        return (answer.body or b"").decode(named[1] if known else "utf-8", "replace")
    except LookupError:
        return (answer.body or b"").decode("utf-8", "replace")


def page_title(text: str) -> str:
    """The title of an HTML page."""
    found = re.search(r"<title\b[^>]{0,200}>([^<]*)", text, re.I)
    return clean(html.unescape(found[1])) if found else ""


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the host asks us to wait: `Retry-After` as number or date, or the reset of an empty quota."""

    def moment(text: str) -> datetime | None:
        try:
            when = parsedate_to_datetime(text)
            return when if when.tzinfo else when.replace(tzinfo=UTC)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None

    wanted = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", wanted):
        return float(wanted)
    if when := moment(wanted):
        # Against the host's own clock where it tells it: ours and theirs may differ by minutes.
        return max(0.0, (when - (moment(headers.get("date", "")) or now)).total_seconds())
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and re.fullmatch(r"\d{1,11}", reset):
        return max(0.0, float(reset) - now.timestamp())
    return None


def wants_get(answer: Answer, need_body: bool) -> bool:
    """Whether an answer to HEAD is not enough."""
    status = answer.status
    if answer.error or status is None or limited(status, answer.headers):
        return False
    if status in (202, 204, 205, 400, 403, 404, 405, 406) or 500 <= status < 600:
        return True
    proven = (urlsplit(answer.url).hostname or "") in HEAD_PROVES and not need_body
    return 200 <= status < 300 and is_html(answer) and not proven


def limited(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the host says "not so fast"."""
    quota_empty = headers.get("x-ratelimit-remaining") == "0"
    return status == 429 or (status in (403, 503) and ("retry-after" in headers or quota_empty))


def challenged(status: int, headers: Mapping[str, str], title: str, body: bytes | None) -> bool:
    """Whether the answer asks for a proof that a human reads it."""
    if "challenge" in headers.get("cf-mitigated", "") or headers.get("x-amzn-waf-action") in ("challenge", "captcha"):
        return True
    if status in (200, 202, 403, 503) and CHALLENGE_TITLE.search(title):
        return True
    return status in (202, 403, 503) and bool(CHALLENGE_BODY.search(body or b""))


def status_class(url: str, final_url: str, status: int, title: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """Class and reason as far as status, title and last address tell; "ok" is refined by `judge`."""
    if limited(status, headers):
        return "limited", "the host asks for fewer requests"
    if status in (404, 410):
        return "gone", ""
    if status in (408, 425) or 500 <= status < 600:
        return "unavailable", ""
    if status not in (200, 203, 204, 205, 206):
        return "blocked", "it cannot be verified from here"
    before, after = urlsplit(url), urlsplit(final_url)
    if before.path.strip("/") and not after.path.strip("/") and not after.query:
        return "soft-gone", "it leads to the front page of a site"
    if MISSING_PATH.search(after.path) and not MISSING_PATH.search(before.path):
        return "soft-gone", "it leads to a page for missing pages"
    if NOT_FOUND.search(title):
        return "soft-gone", f"the page calls itself '{title}'"
    if LOGIN_PATH.search(after.path) and not LOGIN_PATH.search(before.path):
        return "blocked", "it leads to a login or consent page"
    return "ok", ""


def find_fragment(fragment: str, text: str) -> str | None:
    """The name under which a page has a fragment: itself, decoded, or in another case; None if it has none."""
    first, *others = text.split("<!--")
    text = first + "".join(part.partition("-->")[2] for part in others)
    names = {html.unescape(next(filter(None, groups), "")) for groups in ANCHOR.findall(text)}
    for name in (fragment, unquote(fragment)):
        if name in names or f"user-content-{name}" in names:  # GitHub writes the latter for headings of Markdown
            return fragment
    return {name.casefold(): name for name in names}.get(unquote(fragment).casefold())


def judge(url: str, answer: Answer, now: datetime) -> Verdict:
    """The verdict on a link from the answer to it. `url` is the link as written, with its fragment."""
    known = Verdict("", status=answer.status, hops=answer.hops, etag=clean(answer.headers.get("etag", "")))
    if answer.error or answer.status is None:
        return known._replace(cls=ERRORS[answer.error or "protocol"], note=clean(answer.detail), etag="")
    page = is_html(answer) and answer.body is not None
    text = text_of(answer) if page else ""
    title = page_title(text)
    final = answer.url if answer.hops else ""
    known = known._replace(title=title, final_url=final, wait=retry_after(answer.headers, now))
    if challenged(answer.status, answer.headers, title, answer.body):
        return known._replace(cls="blocked", note="the host asks for a proof that a human reads it", wait=None)
    cls, note = status_class(url, answer.url, answer.status, title, answer.headers)
    if cls == "ok" and answer.body == b"":
        cls, note = "soft-gone", "the page is empty"
    if cls != "ok":
        return known._replace(cls=cls, note=note)

    source, fragment = urlsplit(url), urlsplit(url).fragment
    if page and not NO_ANCHOR.match(fragment):
        name = find_fragment(fragment, text)
        if name is None and not answer.cut:
            return known._replace(cls="gone", note=f"the page has no '#{clean(fragment, 80)}'")
        if name is not None and name != fragment:
            fixed = (final or url).partition("#")[0] + "#" + name
            return known._replace(cls="moved", final_url=fixed, note="the fragment differs in case")
        note = "" if name else "the page is longer than what is read; its fragment was not checked"
    if not answer.hops:
        return known._replace(cls="ok", note=note)

    end = urlsplit(final)
    if fragment and not end.fragment:
        final += f"#{fragment}"
    if source.scheme == "https" and end.scheme == "http":
        return known._replace(cls="insecure", final_url="", note="it redirects from https to http")
    if final == "https" + url.removeprefix("http"):
        return known._replace(cls="insecure", final_url=final, note="https answers as well")
    if all(hop.status in (301, 308) for hop in answer.hops):
        return known._replace(cls="moved", final_url=final, note="moved for good")
    return known._replace(cls="redirected", final_url=final, note=note)


def compare(title: str, author: str, verdict: Verdict) -> tuple[str, str]:
    """Whether an identifier is that of the paper: ("", "") if so, else ("warn" or "fail", what differs).

    A wrong id is worse than a dead link: it vouches for the wrong paper. Papers are retitled between versions, so
    titles that are merely close, and another first author, warn.
    """
    if not verdict.title:
        return "", ""
    ours, theirs = catalog.fold(title), catalog.fold(verdict.title)
    short, long = sorted((ours, theirs), key=len)
    likeness = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).ratio()
    alike = likeness >= 0.93 or (len(short) >= 20 and long.startswith(short))  # a subtitle may be left out
    names = [catalog.fold(name.split()[-1]) if name.split() else "" for name in (author, verdict.author)]
    same_author = names[0] in catalog.fold(verdict.author) or names[1] in catalog.fold(author)
    if alike and same_author:
        return "", ""
    if alike:
        return "warn", f"the first author there is '{clean(verdict.author)}'"
    if likeness >= 0.6 and same_author:
        return "warn", f"the title there is '{clean(verdict.title)}'"
    return "fail", f"the identifier is that of '{clean(verdict.title)}' by {clean(verdict.author) or 'others'}"


# The state: url -> record. Days are days, `first_bad` and `not_before` are moments; what is unknown is left out.


def due(url: str, record: Mapping | None, now: datetime, identifier: bool) -> bool:
    """Whether a link has to be asked for again."""
    if not record:
        return True
    if record["class"] == "limited" and "not_before" in record:
        return now >= datetime.fromisoformat(record["not_before"])
    days = TTL_DAYS.get(record["class"], 0)
    days = TTL_IDENTIFIER if identifier and record["class"] in FINE else days
    spread = 0.8 + 0.4 * zlib.crc32(url.encode()) / 2**32  # or all links would expire on one day
    age = (now.date() - date.fromisoformat(record["last_checked"])).days
    if age < 0 or age >= days * spread or not days:
        return True
    if identifier or "status" not in record:
        return False
    # The rules may have changed since: what they read differently today is asked again.
    final, title = record.get("final_url") or url, record.get("title", "")
    cls, _ = status_class(url, final, record["status"], title, {})
    if challenged(record["status"], {}, title, None):
        cls = "blocked"
    return record["class"] != cls and not (cls in FINE and record["class"] in FINE) and record["class"] != "blocked"


def check_dates(record: Mapping) -> None:
    """Raise ValueError for a record with a day that the calendar lacks."""
    for name in ("last_checked", "last_ok", "archive_checked"):
        date.fromisoformat(record.get(name, "2000-01-01"))
    for name in ("first_bad", "not_before"):
        datetime.fromisoformat(record.get(name, "2000-01-01"))


def recall(record: Mapping) -> Verdict:
    """The verdict that a record remembers."""
    fields = {
        name: record[name] for name in ("status", "final_url", "title", "author", "etag", "note") if name in record
    }
    return Verdict(record["class"], **fields, cached=True)


def remember(record: Mapping | None, verdict: Verdict, now: datetime) -> dict:
    """The record after a check. Strikes count checks that went badly since the last good one."""
    day, old = now.date().isoformat(), dict(record or {})
    new = {name: old[name] for name in ("last_ok", "archive_url", "archive_checked") if name in old}
    new |= {"class": verdict.cls, "last_checked": day}
    if verdict.cls in STRIKE:
        new["strikes"] = old.get("strikes", 0) + 1
        new["first_bad"] = old.get("first_bad", now.isoformat(timespec="seconds"))
    elif verdict.cls not in FINE:  # blocked, limited: neither good nor bad
        new |= {name: old[name] for name in ("strikes", "first_bad") if name in old}
    elif verdict.status is not None:
        new["last_ok"] = day
    if verdict.cls == "limited" and verdict.wait and verdict.wait > 120:
        until = now + timedelta(seconds=min(verdict.wait, 7 * 86400))
        new["not_before"] = until.isoformat(timespec="seconds")
    return new | {name: getattr(verdict, name) for name in KEPT if getattr(verdict, name) not in (None, "")}


def failing(record: Mapping, now: datetime) -> bool:
    """Whether a link has been bad for long enough to fail a scheduled run."""
    if record["class"] not in STRIKE or "first_bad" not in record:
        return False
    age = now - datetime.fromisoformat(record["first_bad"])
    strikes, hours = (2, 24) if record["class"] == "gone" else (3, 7 * 24)
    return record["strikes"] >= strikes and age >= timedelta(hours=hours)


def wants_archive(record: Mapping, today: date) -> bool:
    """Whether to look for an archived copy: at once for what is gone, else on the second strike; monthly at most."""
    asked = record.get("archive_checked")
    if asked and (today - date.fromisoformat(asked)).days < 30:
        return False
    return record["class"] == "gone" or record.get("strikes", 0) >= 2


class Rule(NamedTuple):
    """A dated exception: links that people have seen with their own eyes."""

    line: int
    col: int
    match: str  # exact, host or regex
    pattern: str
    cls: str
    reason: str
    verified_by: str
    verified_on: date
    expires: date

    def covers(self, url: str) -> bool:
        """Whether the rule is about this address."""
        if self.match == "regex":
            return bool(re.search(self.pattern, url))
        if self.match == "exact":
            return url == self.pattern
        host = (urlsplit(url).hostname or "").removeprefix("www.")
        return host == self.pattern.removeprefix("www.")

    @property
    def place(self) -> str:
        """Where it stands, as editors write it."""
        return f"linkcheck-allow.yaml:{self.line}:{self.col}"


def rule_problem(entry: Mapping, today: date) -> str | None:
    """Why a rule of the right shape is still wrong."""
    try:
        seen, end = date.fromisoformat(entry["verified_on"]), date.fromisoformat(entry["expires"])
    except ValueError:
        return "verified_on or expires is not a day of the calendar"
    if seen > today:
        return f"verified_on {seen} lies in the future"
    if not 0 <= (end - seen).days <= MAX_RULE_DAYS:
        return f"expires must be at most {MAX_RULE_DAYS} days after verified_on ({seen})"
    try:
        re.compile(entry["pattern"] if entry["match"] == "regex" else "")
    except re.error as error:
        return f"the pattern is not a regular expression ({error})"
    return None


def rule_for(rules: Iterable[Rule], url: str, cls: str, today: date) -> Rule | None:
    """The unexpired rule that allows a link to be of this class; a rule for `blocked` never hides `gone`."""
    return next((rule for rule in rules if rule.cls == cls and today <= rule.expires and rule.covers(url)), None)
