"""Every command and every piece of code in the guides runs, in the order of the page, in an empty folder.

Commands run in this process, through the `main` of the module they name: importing torch again takes longer than they.
"""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from scripts import catalog

GUIDES = catalog.ROOT / "site" / "guides"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
# What a guide may tell a reader to type that asks another machine: tests of its own use recorded answers.
ONLINE = re.compile(
    r"python -m scripts\.add (arxiv:|doi:|https:)|gh |git |python -m scripts\.add paper --from issue\.md"
)


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def command(line: str) -> int:
    """Run `python -m MODULE ARGUMENTS` and give its exit code."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["python", "-m"], line
    module = import_module(words[2] if words[2] != "reference.bench" else "reference.bench.__main__")
    if words[2] == "reference":
        module = import_module("reference.__main__")
    return module.main(words[3:])


@pytest.mark.parametrize("guide", ["prune", "share", "add-a-method", "reproduce"])
def test_everything_in_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, ran = {"__name__": "guide"}, 0
    for language, text in blocks(GUIDES / f"{guide}.md"):
        if language == "python":
            exec(compile(text, f"{guide}.md", "exec"), names)
        else:
            assert language == "sh", f"{guide}.md: a block of {language} would not be tested"
            for line in text.replace("\\\n", " ").strip().splitlines():
                assert command(line) == 0, line
        ran += 1
    assert ran >= 3
    if guide == "prune":
        assert (tmp_path / "compare.png").stat().st_size > 0
        assert (tmp_path / "recovered" / "model_index.json").exists()


def test_commands_of_the_page_on_contributing(tmp_path, monkeypatch, capsys):
    """On a copy of the catalogue, with the programs told to look there."""
    for name in ("schemas", "papers.yaml", "tools.yaml", "articles.yaml", "links.lock.json", "mkdocs.yml", "README.md"):
        source = catalog.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    fields = "title: Pruning in Practice, a Page Nobody Wrote\nurl: https://example.org/pruning-in-practice\n"
    (tmp_path / "fields.yaml").write_text(fields)
    text = (catalog.ROOT / "site/contribute.md").read_text(encoding="utf-8")
    lines = [line for language, body in BLOCK.findall(text) if language == "sh" for line in body.strip().splitlines()]
    known = [line for line in lines if not ONLINE.match(line)]
    assert [shlex.split(line, comments=True)[2] for line in known] == [
        "scripts.add",
        "scripts.validate",
        "scripts.render",
    ]
    add, validate, render = (import_module(f"scripts.{name}") for name in ("add", "validate", "render"))
    assert add.main(shlex.split(known[0], comments=True)[3:], tmp_path) == 0
    assert "example.org/pruning-in-practice" in (tmp_path / "articles.yaml").read_text(encoding="utf-8")
    assert validate.main(tmp_path) == 1  # the places that only a person can fill in
    assert "FILL IN" in capsys.readouterr().out + (tmp_path / "articles.yaml").read_text(encoding="utf-8")
    assert render.main([], tmp_path) == 1  # and nothing is rendered from them
