"""The `isa` fixture runs a test once for every instruction set that this machine and build can run; on a GPU
once.
"""

import lowbit.ops
import pytest


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        from .device import ISAS  # not before pytest has read --device

        metafunc.parametrize("isa", ISAS, indirect=True)


@pytest.fixture
def isa(request):
    from .device import set_isa

    before = lowbit.ops.isa()
    set_isa(request.param)
    yield request.param
    set_isa(before)
