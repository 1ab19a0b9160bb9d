"""Fixtures: real processes on free loopback ports. Needs BATON_BIN; most tests need BATON_DEMO_MODEL."""

import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / ".make" / "pb")]

from procs import Cluster, required_env  # noqa: E402


@pytest.fixture(scope="session")
def storm():
    """Long versions: `make storm`."""
    return os.environ.get("BATON_STORM") == "1"


@pytest.fixture(scope="session")
def model():
    return required_env("BATON_DEMO_MODEL")


@pytest.fixture(scope="session")
def shared():
    """Reference data beside the checkout; tests that need it skip loudly where it is absent."""
    path = pathlib.Path(os.environ.get("BATON_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"NO REFERENCE DATA at {path}: this check did not run")
    return path


@pytest.fixture(scope="module")
def cluster(model):
    """One prefill and one decode worker, shared by a module's tests."""
    with Cluster("up", "--model", model) as c:
        yield c


@pytest.fixture(scope="module")
def single(model):
    with Cluster("single", "--model", model) as c:
        yield c
