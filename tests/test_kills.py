"""A `fit` that is killed goes on as if nothing had happened. `reference.kills` tries many more."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fits run in forked processes")
def test_a_killed_run_equals_one_that_ran_through():
    # A program of its own: a process that has run steps can't be forked safely.
    program = [sys.executable, "-W", "ignore", "-m", "tests.reference.kills"]
    arguments = ["--recipe", "loss scale", "--kills", "2", "--details"]
    run = subprocess.run(
        [*program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 kills" in run.stdout
