"""Settings of the whole suite: no network, repeatable examples, slow tests on request."""

import os
import sys

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


@pytest.fixture(autouse=True)
def card_still_works(request):
    """On a card: after an illegal access every later call of the process fails, whatever it tests. So the
    process ends here and names the test; a worker of xdist is replaced.
    """
    yield
    if not os.environ.get("LOWBIT_TEST_DEVICE", "").startswith("cuda"):
        return
    import torch

    try:
        torch.cuda.synchronize()
    except Exception as error:
        if capture := request.config.pluginmanager.getplugin("capturemanager"):
            capture.suspend_global_capture(in_=True)
        print(f"\n{request.node.nodeid}: the card is lost: {error}", file=sys.stderr, flush=True)
        os._exit(70)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="needs --slow"))
