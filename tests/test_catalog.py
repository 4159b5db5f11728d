"""The catalogue: every rule of the validator, the renderer, and text that tries to act as Markdown."""

import datetime
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
import yaml
from mkdocs.utils import meta

from reference.bench import results
from scripts import catalog, evidence, render, validate

TODAY = datetime.date(2026, 11, 21)

# Two papers, one tool, one article. Cases below replace one piece of text; the first line here is line 1.
PAPERS = """\
- id: alpha-pruning
  title: "Alpha Pruning of Diffusion Models"
  authors: [Ada Example, Ben Example]
  authors_complete: true
  year: 2023
  month: 5
  arxiv: "2305.00001"
  doi: 10.1000/alpha
  openreview: AlphaForum
  venue: {name: NeurIPS, year: 2023, status: published}
  url: https://arxiv.org/abs/2305.00001
  code: {url: "https://github.com/example/alpha", official: true}
  project_page: https://alpha.example.org/
  family: pruning
  granularity: [channel]
  schedule: [one-shot]
  criterion: [taylor]
  recovery: [finetune]
  targets: [ddpm-cifar10]
  claims:
    - id: cifar10-fid
      metric: fid
      setting: "DDPM, CIFAR-10, 100 steps"
      unit: fid
      dense: 4.19
      pruned: 5.29
      hardware: null
      where: "Table 1"
      evidence: https://arxiv.org/abs/2305.00001
  evidence:
    - {url: "https://arxiv.org/abs/2305.00001", what: "title, authors, abstract", seen: 2026-11-20}
  confidence: high
  added: 2026-11-20
  checked: 2026-11-20
  summary: "Removes channels in one shot by a Taylor score and fine-tunes."
- id: beta-caching
  title: "Beta: Caching in Diffusion Models"
  authors: [Cid Example]
  authors_complete: false
  year: 2024
  url: https://beta.example.org/paper
  family: caching
  granularity: []
  schedule: [dynamic]
  criterion: []
  recovery: [none]
  targets: [sdxl]
  evidence:
    - {url: "https://beta.example.org/paper", what: "title", seen: 2026-11-20}
  confidence: low
  added: 2026-11-20
  summary: "Reuses features of earlier steps of a text-to-image model."
"""
TOOLS = """\
- id: alpha-tool
  name: AlphaTool
  kind: library
  url: https://github.com/example/alpha-tool
  license: MIT
  language: Python
  granularity: [channel]
  supports_diffusion: yes
  status: active
  version_seen: "1.10"
  works_with: [alpha-pruning]
  evidence:
    - {url: "https://github.com/example/alpha-tool", what: "README", seen: 2026-11-20}
  confidence: high
  added: 2026-11-20
  checked: 2026-11-20
  summary: "Removes channels of any traced network."
"""
ARTICLES = """\
- id: alpha-guide
  title: "A Guide to Alpha"
  authors: []
  publisher: Example
  kind: tutorial
  url: https://example.org/guide
  published: "2024-05"
  language: en
  topics: [structured]
  about: [alpha-pruning, alpha-tool]
  evidence:
    - {url: "https://example.org/guide", what: "the text", seen: 2026-11-20}
  confidence: high
  added: 2026-11-20
  checked: 2026-11-20
  summary: "Walks through the removal of channels."
"""
README = "# A list\n\nBy hand.\n" + "".join(
    f"\n## {name}\n\n<!-- generated:{name} -->\n<!-- /generated:{name} -->\n"
    for name in ("papers", "tools", "articles", "results")
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small valid catalogue."""
    shutil.copytree(catalog.ROOT / "schemas", tmp_path / "schemas")
    for name, text in (("papers", PAPERS), ("tools", TOOLS), ("articles", ARTICLES)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text("repo_url: https://github.com/example/list\n", encoding="utf-8")
    return tmp_path


def change(root: Path, file: str, old: str, new: str) -> None:
    """Replace the first `old` in a file, which must be there."""
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")


def messages(root: Path) -> list[str]:
    """All problems, as printed."""
    return [str(problem) for problem in validate.check(root, TODAY)[0]]


def test_small_catalogue_is_valid(root, capsys):
    assert messages(root) == []
    assert validate.main(root, TODAY) == 0
    captured = capsys.readouterr()
    assert captured.out == "valid: 2 papers with 1 claims, 1 tools, 1 articles\n"
    assert captured.err == ""


CLAIM = PAPERS[PAPERS.index("    - id: cifar10-fid") : PAPERS.index("  evidence:\n")]
BETA_URL = "url: https://beta.example.org/paper\n"
CASES = {
    # shape
    "missing key": ("papers", "  year: 2024\n", "", "36:3  beta-caching: the key 'year' is missing", "add `year:`"),
    "unknown key": ("papers", "  family: p", "  familly: p", "14:3  alpha-pruning.familly: the key", "'family'?"),
    "word outside the vocabulary": ("papers", "[taylor]", "[tailor]", "17:15  alpha-pruning.criterion[0]", "'taylor'?"),
    "id with capitals": ("papers", "id: alpha-p", "id: Alpha-p", '1:3  Alpha-pruning.id: "Alpha', "lower-case words"),
    "arxiv without quotes": ("papers", '"2305.00001"', "2305.00001", "7:3  alpha-pruning.arxiv", "put it in quotes"),
    "arxiv with version": ("papers", '"2305.00001"', '"2305.00001v2"', "7:3  alpha-pruning.arxiv", "without version"),
    "null for unknown": ("papers", "  month: 5", "  month: null", "6:3  alpha-pruning.month", "leave the key out"),
    "sentence as a claim": (
        "papers",
        "pruned: 5.29",
        "pruned: about 5",
        "26:7  alpha-pruning.claims[cifar10-fid].pruned",
        "null if none",
    ),
    "long summary": ("papers", "Reuses features", "R" * 300, "52:3  beta-caching.summary: it has", "shorten it"),
    "same value twice": ("papers", "[channel]", "[channel, channel]", "15:3  alpha-pruning.granularity", "keep one"),
    "no evidence": (
        "tools",
        "evidence:\n    - {",
        "evidence: []\n  limits: {",
        "12:3  alpha-tool.evidence: [] is too short",
        "primary ones first",
    ),
    "not a list": ("articles", ARTICLES, "id: alpha-guide\n", "1:1  (file): the file holds", "a list of entries"),
    "empty file": ("articles", ARTICLES, "", "1:1  (file): the file holds null", "[] for none"),
    # reading
    "syntax error": (
        "papers",
        'title: "Beta: Caching in Diffusion Models"',
        "title: Beta: Caching",
        "37:14  beta-caching: this cannot be read: mapping values",
        "belongs in quotes",
    ),
    "tab": ("tools", "  kind:", "\tkind:", "3:1  alpha-tool: this cannot be read", "indentation"),
    "duplicate key": (
        "papers",
        "  month: 5\n",
        "  month: 5\n  year: 2023\n",
        "7:3  alpha-pruning: the key 'year' appears twice",
        "keep one",
    ),
    "alias": (
        "tools",
        "name: AlphaTool\n  kind: library\n  url: https://github.com/example/alpha-tool\n  license: MIT",
        "name: &a AlphaTool\n  kind: library\n  url: https://github.com/example/alpha-tool\n  license: *a",
        "2:9  alpha-tool: an alias (*name) is used",
        "write the value out",
    ),
    "unknown tag": (
        "tools",
        "language: Python",
        "language: !!python/name:os.system x",
        "6:13  alpha-tool: this cannot be read",
        "quotes",
    ),
    # identity
    "id twice": (
        "papers",
        "id: beta-caching",
        "id: alpha-pruning",
        "36:3  alpha-pruning.id: the id is already that of entry 1",
        "merge",
    ),
    "title twice": (
        "papers",
        "Beta: Caching in Diffusion Models",
        "ALPHA pruning - of diffusion módels!",
        "37:3  beta-caching.title: the title is already",
        "merge",
    ),
    "arxiv twice": (
        "papers",
        "  year: 2024\n",
        '  year: 2023\n  arxiv: "2305.00001"\n',
        "41:3  beta-caching.arxiv: the arxiv is already",
        "merge",
    ),
    "doi twice": (
        "papers",
        "  year: 2024\n",
        "  year: 2024\n  doi: 10.1000/ALPHA\n",
        "41:3  beta-caching.doi: the doi is already",
        "merge",
    ),
    "openreview twice": (
        "papers",
        "  year: 2024\n",
        "  year: 2024\n  openreview: AlphaForum\n",
        "41:3  beta-caching.openreview: ",
        "merge",
    ),
    "address twice": (
        "papers",
        BETA_URL,
        "url: http://www.arxiv.org/pdf/2305.00001v3.pdf\n",
        "41:3  beta-caching.url: the address is already that of entry 1, alpha-pruning.url",
        "merge",
    ),
    "address of a project page": (
        "papers",
        BETA_URL,
        "url: https://alpha.example.org?utm_source=x\n",
        "41:3  beta-caching.url: the address is already that of entry 1, alpha-pruning.project_page",
        "merge",
    ),
    "claim id twice": (
        "papers",
        CLAIM,
        CLAIM + CLAIM,
        "30:7  alpha-pruning.claims[cifar10-fid].id: the claim id",
        "its own id",
    ),
    "unsorted": (
        "papers",
        "id: alpha-pruning",
        "id: gamma-pruning",
        "36:3  beta-caching.id: it stands after 'gamma-pruning'",
        "sort the entries",
    ),
    # agreement
    "year against arXiv": (
        "papers",
        "year: 2023\n  month",
        "year: 2024\n  month",
        "5:3  alpha-pruning.year: it disagrees with arXiv 2305.00001",
        "write 2023",
    ),
    "month against arXiv": (
        "papers",
        "month: 5",
        "month: 6",
        "6:3  alpha-pruning.month: it disagrees with arXiv 2305.00001",
        "write 5",
    ),
    "url against arXiv": (
        "papers",
        "url: https://arxiv.org/abs/2305.00001",
        "url: https://arxiv.org/abs/2305.00002",
        "11:3  alpha-pruning.url: it leads to another arXiv id",
        "make both the same",
    ),
    "tool refers to nothing": (
        "tools",
        "[alpha-pruning]",
        "[alpha-pruing]",
        "11:16  alpha-tool.works_with[0]: there is no entry 'alpha-pruing'",
        "'alpha-pruning'?",
    ),
    "tool refers to a tool": (
        "tools",
        "[alpha-pruning]",
        "[alpha-tool]",
        "11:16  alpha-tool.works_with[0]: there is no entry",
        "entry",
    ),
    "article refers to nothing": (
        "articles",
        "alpha-tool]",
        "zzz]",
        "10:26  alpha-guide.about[1]: there is no entry 'zzz'",
        "add that entry first",
    ),
    "pruning of nothing": (
        "papers",
        "granularity: [channel]",
        "granularity: []",
        "15:3  alpha-pruning.granularity: it is empty",
        "one removed unit",
    ),
    # dates
    "checked before added": (
        "papers",
        "checked: 2026-11-20",
        "checked: 2026-11-19",
        "34:3  alpha-pruning.checked: it is before added",
        "day of the check",
    ),
    "added in the future": (
        "tools",
        "  added: 2026-11-20\n  checked: 2026-11-20",
        "  added: 2026-11-22\n  checked: 2026-11-22",
        "15:3  alpha-tool.added: 2026-11-22 lies in the future",
        "up to 2026-11-21",
    ),
    "seen in the future": (
        "papers",
        "seen: 2026-11-20}\n  confidence: low",
        "seen: 2027-01-01}\n  confidence: low",
        "49:62  beta-caching.evidence[0].seen: 2027-01-01",
        "up to 2026",
    ),
    "published in the future": (
        "articles",
        '"2024-05"',
        '"2027"',
        "7:3  alpha-guide.published: 2027 lies in the future",
        "up to 2026",
    ),
    "no such day": (
        "papers",
        "added: 2026-11-20\n  summary",
        "added: 2026-02-30\n  summary",
        "51:3  beta-caching.added: 2026-02-30 is not a day",
        "existing day",
    ),
    # honesty
    "low confidence with claims": (
        "papers",
        "confidence: high",
        "confidence: low",
        "20:3  alpha-pruning.claims: an entry of low confidence has claims",
        "check them",
    ),
    "confidence without a check": (
        "papers",
        "confidence: low",
        "confidence: medium",
        "50:3  beta-caching.confidence: medium confidence needs `checked`",
        "`confidence: low`",
    ),
    "claim without numbers": (
        "papers",
        "dense: 4.19\n      pruned: 5.29",
        "dense: null\n      pruned: null",
        "26:7  alpha-pruning.claims[cifar10-fid].pruned: the claim has no number",
        "remove it",
    ),
    "claim on a copy": (
        "papers",
        'what: "title, authors, abstract"',
        'what: "Copy of the arXiv record"',
        "29:7  alpha-pruning.claims[cifar10-fid].evidence: the claim was seen on a copy only",
        "or remove the claim",
    ),
    "high confidence on copies": (
        "tools",
        'what: "README"',
        'what: "reading list"',
        "14:3  alpha-tool.confidence: every page under `evidence` is a copy",
        "`confidence: medium`",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_broken_entry(root, capsys, case):
    file, old, new, place, fix = case
    change(root, f"{file}.yaml", old, new)
    found = [line for line in messages(root) if line.startswith(f"{file}.yaml:{place}")]
    assert len(found) == 1, messages(root)
    assert re.fullmatch(r"\w+\.yaml:\d+:\d+  \S+: .+  fix: .+", found[0])
    assert fix in found[0].split("  fix: ")[1]
    assert validate.main(root, TODAY) == 1
    assert found[0] in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("javascript:alert(1)", "does not have the right form"),
        ("ftp://example.org/x", "does not have the right form"),
        ("https://user:secret@example.org/", "carries credentials"),
        ("https://@example.org/", "carries credentials"),
        ("http://localhost:8000/", "no public host"),
        ("http://intranet/page", "no public host"),
        ("http://printer.local/", "no public host"),
        ("http://127.0.0.1/", "private, loopback or reserved"),
        ("http://127.1/", "private, loopback or reserved"),
        ("http://0x7f000001/", "private, loopback or reserved"),
        ("http://2130706433/", "private, loopback or reserved"),
        ("http://10.0.0.8/", "private, loopback or reserved"),
        ("http://192.168.1.1/", "private, loopback or reserved"),
        ("http://169.254.169.254/latest/", "private, loopback or reserved"),
        ("http://[::1]/", "private, loopback or reserved"),
        ("http://[::ffff:127.0.0.1]/", "private, loopback or reserved"),
        ("http://[::1/", "is not an address"),
        ("https://example.org:99999/", "is not an address"),
        ("https:///path", "no public host"),
        ("https://example.org\\\\@localhost/", "does not have the right form"),
    ],
)
@pytest.mark.parametrize("field", ["url", "code", "project_page", "evidence", "claim"])
def test_refused_address(root, url, reason, field):
    old = {
        "url": "url: https://arxiv.org/abs/2305.00001",
        "code": 'code: {url: "https://github.com/example/alpha"',
        "project_page": "project_page: https://alpha.example.org/",
        "evidence": '- {url: "https://arxiv.org/abs/2305.00001"',
        "claim": "evidence: https://arxiv.org/abs/2305.00001",
    }[field]
    change(root, "papers.yaml", old, f'{old.split(" ")[0]} {"{url: " * ("{" in old)}"{url}"')
    found = messages(root)
    assert len(found) == 1, found
    assert reason in found[0]
    assert "http(s) address" in found[0]


def test_two_papers_may_share_a_repository(root):
    change(
        root,
        "papers.yaml",
        BETA_URL,
        BETA_URL + '  code: {url: "https://github.com/Example/alpha.git", official: true}\n',
    )
    assert messages(root) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://arxiv.org/abs/2305.10924", "http://www.arxiv.org/pdf/2305.10924v3.pdf", True),
        ("https://arxiv.org/abs/2305.10924", "https://arxiv.org/html/2305.10924v1/", True),
        ("https://arxiv.org/abs/2305.10924", "https://arxiv.org/abs/2305.10925", False),
        ("https://github.com/VainF/Diff-Pruning.git", "http://github.com/vainf/diff-pruning/", True),
        ("https://github.com/a/b/tree/main/Docs", "https://github.com/a/b/tree/main/docs", False),
        ("https://example.org/a?utm_source=x&b=1&a=2", "https://www.example.org/a/?a=2&b=1", True),
        ("https://example.org/a?id=1", "https://example.org/a?id=2", False),
        ("https://example.org/a#one", "https://example.org/a#two", False),
        ("https://example.org:443/a", "http://example.org/a", True),
        ("https://example.org:8443/a", "https://example.org/a", False),
    ],
)
def test_normalised_addresses(one, other, same):
    assert (catalog.normalise_url(one) == catalog.normalise_url(other)) is same


def test_all_problems_at_once(root):
    change(root, "papers.yaml", "month: 5", "month: 6")
    change(root, "papers.yaml", "targets: [sdxl]", "targets: [sdxxl]")
    change(root, "tools.yaml", "kind: library", "kind: libary")
    assert len(messages(root)) == 3


def test_scalars_are_those_of_yaml_1_2(root):
    (root / "x.yaml").write_text("[yes, no, on, 12:30, 2026-11-21, 007, 1_000, true, 4.10, -3, 1e3, ~]\n")
    expected = ["yes", "no", "on", "12:30", "2026-11-21", "007", "1_000", True, 4.1, -3, 1000.0, None]
    assert catalog.read(root / "x.yaml").data == expected


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00",
        b"- \x07",
        b"[" * 3000,
        b"{" * 3000,
        b"a: &a [*a]",
        b"--- 1\n--- 2",
        b"? [1, 2]\n: 3",
        b"<<: 1",
        b"%",
    ],
)
def test_no_file_makes_the_validator_raise(root, text):
    (root / "papers.yaml").write_bytes(text)
    assert all("  fix: " in line for line in messages(root))
    assert messages(root)


def test_no_unsafe_loader():
    for path in (catalog.ROOT / "scripts").glob("*.py"):
        loads = re.findall(
            r"yaml\.(?:load|load_all|unsafe_load|full_load)\(|\b(?:Unsafe|Full)Loader\b", path.read_text()
        )
        assert not loads, path.name
    assert issubclass(catalog.Loader, yaml.CSafeLoader)


# Vocabulary and schemas


def test_schema_copy_of_the_vocabulary(root):
    change(
        root,
        "schemas/vocab.yaml",
        "  ddpm-cifar10:",
        "  new-model: {label: New, definition: Just added.}\n  ddpm-cifar10:",
    )
    expected = (
        "schemas/vocab.schema.json:1:1  (file): it differs from schemas/vocab.yaml  fix: run `python -m scripts.render`"
    )
    assert messages(root) == [expected]
    change(root, "papers.yaml", "[sdxl]", "[new-model]")  # the new word counts at once
    assert messages(root) == [expected]
    assert render.main([], root) == 0
    assert messages(root) == []


def test_vocabulary_without_definition(root):
    change(root, "schemas/vocab.yaml", "family:\n", "family:\n  odd: {label: Odd}\n")
    place = (root / "schemas/vocab.yaml").read_text().split("\n").index("  odd: {label: Odd}") + 1
    assert messages(root)[0].startswith(
        f"schemas/vocab.yaml:{place}:3  family.odd: label or definition is missing  fix: "
    )


def test_missing_vocabulary(root):
    change(root, "schemas/vocab.yaml", "\nrecovery:\n", "\nrecoveries:\n")
    expected = "schemas/vocab.yaml:1:1  (file): the vocabulary 'recovery' is missing  fix: restore it from git"
    assert messages(root)[0] == expected
    assert render.main([], root) == 1


@pytest.mark.parametrize("text", ["", "[]", "family: {a: b", "family: []", "\xff"])
def test_broken_vocabulary(root, capsys, text):
    (root / "schemas" / "vocab.yaml").write_text(text, encoding="latin-1")
    assert messages(root)[0].startswith("schemas/vocab.yaml:")
    assert render.main([], root) == 1
    assert "  fix: " in capsys.readouterr().err


def test_every_field_has_a_description():
    count = 0
    for path in (catalog.ROOT / "schemas" / f"{name}.schema.json" for name in ("common", *catalog.FILES)):
        stack = [json.loads(path.read_text(encoding="utf-8"))]
        while stack:
            node = stack.pop()
            for name, field in node.get("properties", {}).items():
                assert len(field["description"]) > 10, (path.name, name)
                count += 1
            assert node.get("additionalProperties") is False or "properties" not in node, path.name
            stack += [v for v in node.values() if isinstance(v, dict)]
    assert count > 60


# Rendering


def test_render_is_idempotent_and_check_sees_a_hand_edit(root, capsys):
    assert render.main(["--check"], root) == 1
    assert "block 'papers'" in capsys.readouterr().err
    assert render.main([], root) == 0
    generated = root / "site" / "generated"
    paths = [root / "README.md", *sorted(path for path in generated.rglob("*") if path.is_file())]
    names = ["articles", "claims", "coverage", "criteria", "damage", "glossary", "lab", "papers", "quality", "recovery"]
    names += ["results", "runs", "speed", "tools"]
    assert sorted(path.name for path in generated.glob("*.md")) == [f"{name}.md" for name in names]
    assert sorted(path.name for path in generated.glob("papers/*")) == ["alpha-pruning.md", "beta-caching.md"]
    scripts = ["bibtex.js", "lab.js", "run-fields.js", "runs.js", "verdicts.xml"]
    assert sorted(path.name for path in generated.glob("data/*")) == scripts
    charted = ("claims", "criteria", "damage", "quality", "recovery", "results", "speed", "vega")
    scripts = [f"{page}.js" for page in charted]
    assert sorted(path.name for path in generated.glob("charts/*")) == scripts
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert render.main([], root) == 0
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before
    assert render.main(["--check"], root) == 0

    change(root, "README.md", "By hand.", "Written by hand.")  # outside the markers people may write
    assert render.main(["--check"], root) == 0
    change(root, "README.md", "Removes channels of any", "Removes all channels of any")
    assert render.main(["--check"], root) == 1
    error = capsys.readouterr().err
    assert "block 'tools'" in error
    assert "'papers'" not in error
    assert "  fix: " in error
    assert "all channels" in (root / "README.md").read_text()  # --check wrote nothing


def test_readme_lines(root):
    render.main([], root)
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert (
        "- [Alpha Pruning of Diffusion Models](https://arxiv.org/abs/2305.00001) - Removes channels in one shot by a "
        "Taylor score and fine-tunes. (NeurIPS 2023) [code](https://github.com/example/alpha)\n"
    ) in readme
    assert readme.index("### Papers: pruning") < readme.index("#### Channel") < readme.index("### Papers: caching")
    assert readme.count("\n- [") == 4
    assert "Generated from papers.yaml" in readme
    assert "\n\n\n" not in readme


def test_paper_page(root):
    render.main([], root)
    page = (root / "site/generated/papers/alpha-pruning.md").read_text(encoding="utf-8")
    assert "\n# Alpha Pruning of Diffusion Models\n" in page
    cells = {
        "Dense": "4.19",  # its unit is the metric itself
        "Pruned": "5.29",
        "Hardware": "not stated",
        "Printed in": '<a href="https://arxiv.org/abs/2305.00001">Table 1</a>',
        "Measured here": "not comparable: our runs are of openmoji-mmdit, openmoji-unet; no run measures FID",
    }
    assert "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in cells.items()) in page
    assert "https://github.com/example/list/edit/main/papers.yaml#L1)" in page
    assert "- 2026-11-20: [title, authors, abstract](https://arxiv.org/abs/2305.00001)" in page
    assert "- tool [AlphaTool](../tools.md#alpha-tool)" in page
    assert "\n@inproceedings{alpha-pruning,\n" in page
    other = (root / "site/generated/papers/beta-caching.md").read_text(encoding="utf-8")
    assert "https://github.com/example/list/edit/main/papers.yaml#L36)" in other
    assert "Cid Example and others" in other
    assert "No number of this paper is in the catalogue yet." in other
    assert [page.count("link not yet checked") for page in (page, other)] == [1, 1]
    tools = (root / "site/generated/tools.md").read_text(encoding="utf-8")
    assert '<a href="papers/alpha-pruning.html">alpha-pruning</a>' in tools

    change(root, "papers.yaml", "id: beta-caching", "id: gamma-caching")
    assert render.main([], root) == 0
    assert not (root / "site/generated/papers/beta-caching.md").exists()  # no page outlives its entry


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- generated:tools -->\n<!-- /generated:tools -->\n", "", "README.md:1  block 'tools' has no markers"),
        ("<!-- /generated:tools -->\n", "", "README.md:12  block 'tools' has unbalanced markers"),
        ("<!-- generated:tools -->", "<!-- generated:tolls -->", "README.md:12  unknown block 'tolls'"),
        (
            "<!-- generated:tools -->\n<!-- /generated:tools -->",
            "<!-- /generated:tools -->\n<!-- generated:tools -->",
            "README.md:12  block 'tools' has unbalanced",
        ),
        (
            "<!-- /generated:papers -->\n\n## tools\n\n<!-- generated:tools -->",
            "<!-- generated:tools -->\n<!-- /generated:papers -->",
            "overlap",
        ),
    ],
)
def test_bad_markers(root, capsys, old, new, message):
    change(root, "README.md", old, new)
    before = (root / "README.md").read_bytes()
    assert render.main([], root) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "  fix: " in error
    assert (root / "README.md").read_bytes() == before


def test_render_refuses_an_invalid_catalogue(root, capsys):
    change(root, "papers.yaml", "month: 5", "month: 6")
    assert render.main([], root) == 1
    assert "papers.yaml:6:3  alpha-pruning.month" in capsys.readouterr().err
    assert (root / "README.md").read_text(encoding="utf-8") == README


# Hostile text


class Page(HTMLParser):
    """Elements and visible text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.shown += data


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "](javascript:alert(1)) [x](javascript:alert(2))",
    "![x](http://evil.example.org/pixel.png)",
    "a | b | c |",
    "`code` and ``` fence",
    "one\n\n# two\n\n::: os\n\n- three",
    "::: os.system",
    "# Heading",
    "1. first",
    "- item",
    "> quote",
    '!!! danger "x"',
    "text { onclick=alert(1) #alpha }",
    "*bold* **bold** _under_ __under__ ~~gone~~ $x^2$",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "<!-- /generated:papers --> <!-- comment",
    "[TOC] [^1] [x]: http://evil.example.org",
    "\\] \\( back\\slash \\",
    "\x02klzzwxh:0000\x03 placeholder",
    "left\u202eright",
]
EXTENSIONS = ["admonition", "attr_list", "tables", "toc", "pymdownx.highlight", "pymdownx.superfences"]


def shape_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    """Elements of a page with their attributes, but for ids made from titles and for numbers of lines."""
    html = re.sub(r"(\.yaml#L)\d+", r"\1", html)
    return [(tag, {k: v for k, v in attrs.items() if k != "id"}) for tag, attrs in Page(html).tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(root, text):
    """With hostile text in every free field, the pages have the same elements as before and show the text as it is."""
    render.main([], root)
    names = ("papers", "tools", "articles")
    pages = (*names, "claims", "papers/alpha-pruning", "papers/beta-caching")
    before = {name: (root / f"site/generated/{name}.md").read_text(encoding="utf-8") for name in pages}
    readme_before = (root / "README.md").read_text(encoding="utf-8")

    padded = text + "." if len(text) >= 20 else text + " padded to twenty characters."
    free = {
        "title",
        "name",
        "authors",
        "publisher",
        "language",
        "license",
        "setting",
        "unit",
        "where",
        "what",
        "summary",
    }
    for name in names:
        entries = catalog.read(root / f"{name}.yaml").data
        for i, entry in enumerate(entries):
            for part in [entry, *entry["evidence"], *entry.get("claims", [])]:
                for key in free & part.keys() - ({"language"} if name == "articles" else set()):
                    limit = {"unit": 40, "language": 40}.get(key, 80)
                    mark = f" {i}" if key in ("title", "name") else ""
                    part[key] = [f"{padded[:80]} {i}"] if key == "authors" else padded[:limit] + mark
        (root / f"{name}.yaml").write_text(
            yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    assert messages(root) == []
    assert render.main([], root) == 0

    shown = "".join(c for c in " ".join(padded[:40].split()) if c not in "\x02\x03\u202e").rstrip()
    for name in pages:
        (was, _), (now, head) = map(
            meta.get_data, (before[name], (root / f"site/generated/{name}.md").read_text(encoding="utf-8"))
        )
        assert not re.search('[<>"]', head.get("description", ""))  # the theme does not escape it
        was, now = (markdown.markdown(page, extensions=EXTENSIONS) for page in (was, now))
        assert shape_of(now) == shape_of(was)
        assert Page(now).shown.count(shown) >= (1 if name == "claims" else 3)
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert readme.count("\n") == readme_before.count("\n")
    was, now = (markdown.markdown(page, extensions=["tables"]) for page in (readme_before, readme))
    assert shape_of(now) == shape_of(was)
    assert render.main(["--check"], root) == 0


def test_hostile_address_stays_an_address(root):
    change(root, "papers.yaml", BETA_URL, "url: 'https://beta.example.org/a)[x](b|c`d`&copy;*e*_f_{#g}'\n")
    change(root, "papers.yaml", '{url: "https://beta.example.org/paper"', '{url: "https://beta.example.org/a)b"')
    assert render.main([], root) == 0
    html = markdown.markdown((root / "README.md").read_text(encoding="utf-8"))
    links = [attrs["href"] for tag, attrs in Page(html).tags if tag == "a"]
    assert "https://beta.example.org/a%29%5Bx%5D%28b%7Cc%60d%60&copy;%2Ae%2A_f_%7B#g%7D" in links


def test_archived_copy_of_an_article(root):
    """`archive_url` is shown beside the address, is refused where an address would be, and is nobody's identity."""
    copy = "https://web.archive.org/web/2024/https://example.org/guide"
    url = "  url: https://example.org/guide\n"
    change(root, "articles.yaml", url, f"{url}  archive_url: {copy}\n")
    assert messages(root) == []
    assert render.main([], root) == 0
    page = markdown.markdown((root / "site/generated/articles.md").read_text(encoding="utf-8"))
    assert [attrs["href"] for tag, attrs in Page(page).tags if tag == "a"].count(copy) == 1
    assert "Archived copy" in Page(page).shown
    change(root, "articles.yaml", copy, "https://archive.local/x")
    (found,) = messages(root)
    assert "alpha-guide.archive_url" in found
    assert "no public host" in found


def test_runs_of_others_are_labelled_third_party(tmp_path):
    for run in evidence.published():
        run["environment"]["cpu"] = "<b>[x](javascript:1)</b>"
        del run["path"]
        results.write(run, tmp_path / "results" / "embedded" / "gpu-of-someone")  # checks the schema
    machines = evidence.other_machines(tmp_path)
    assert list(machines) == ["embedded/gpu-of-someone"]
    section = evidence.third_party(machines)
    assert "### embedded/gpu-of-someone (third-party)" in section
    assert "**Third-party**" in section
    assert section.count("\n| ") == len(machines["embedded/gpu-of-someone"]) + 2
    assert not {tag for tag, _ in Page(markdown.markdown(section, extensions=["tables"])).tags} & {"b", "a"}
    assert "gpu-of-someone" not in evidence.readme_block([])
    published = {run["path"].parent for run in evidence.published()}
    assert not {run["path"].parent for runs in evidence.other_machines().values() for run in runs} & published
    assert evidence.third_party({}) == ""


def test_a_single_run_of_others_needs_no_baseline(tmp_path):
    lone = evidence.published()[-1]
    del lone["path"]
    assert not lone["subject"]["is_baseline"]
    results.write(lone, tmp_path / "results" / "embedded" / "phone")
    section = evidence.third_party(evidence.other_machines(tmp_path))
    assert f"No table, for '{lone['subject']['baseline_run']}' is not among these runs: {lone['run_id']}." in section


# What is shipped


def test_shipped_catalogue_is_valid():
    problems, documents = validate.check()
    assert [str(problem) for problem in problems] == []
    assert all(len(documents[name].data) > 0 for name in catalog.FILES)


def test_shipped_readme_is_rendered():
    assert render.main(["--check"]) == 0
