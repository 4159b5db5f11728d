"""Runs `on_second_device.py` in a process of its own: torch counts devices once, at the first gradient of a process."""

import subprocess
import sys
from pathlib import Path


def test_everything_on_the_second_device():
    checks = Path(__file__).with_name("on_second_device.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checks.parents[1], check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
