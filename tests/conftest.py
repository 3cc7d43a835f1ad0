"""Settings of the whole suite: no network, repeatable examples, slow tests on request."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--device", help="where the op tests run: cpu (default), cuda, or proxy (see ops/device.py)"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: needs --slow")
    if device := config.getoption("--device"):
        os.environ["LOWBIT_TEST_DEVICE"] = (
            device  # read when the test modules are imported, and by xdist's workers
        )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="needs --slow"))
