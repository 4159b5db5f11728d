"""The workflow that publishes the site: what it runs, and that the addresses it fills in reach the programs."""

import os
import shutil
import subprocess

import yaml

from scripts import catalog, export, render

STEPS = yaml.safe_load((catalog.ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8"))["jobs"]


def test_pages_are_made_by_make_site_and_published_by_a_job_that_runs_nothing_of_ours():
    build, deploy = STEPS["build"], STEPS["deploy"]
    runs = [step.get("run", "") for step in build["steps"]]
    assert "make site" in runs
    assert build["steps"][-1]["uses"].startswith("actions/upload-pages-artifact@")
    assert build["steps"][-1]["with"]["path"] == "_site"
    assert build["permissions"] == {"contents": "read"}
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}
    assert all("run" not in step for step in deploy["steps"])


def test_the_addresses_are_filled_in(tmp_path):
    shutil.copy(catalog.ROOT / "mkdocs.yml", tmp_path)
    script = next(step["run"] for step in STEPS["build"]["steps"] if "site_url" in step.get("run", ""))
    names = {"GITHUB_REPOSITORY_OWNER": "someone", "GITHUB_REPOSITORY": "someone/list"}
    names |= {"GITHUB_SERVER_URL": "https://github.com", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=names, check=True)
    assert export.site_url(tmp_path) == "https://someone.github.io/list"
    assert render.repo_url(tmp_path) == "https://github.com/someone/list"
