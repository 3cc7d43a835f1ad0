"""The `isa` fixture runs a test once for every instruction set that this machine and build can run (AMX: in
the modules of linear layers, which say so by GEMM_ISAS); on a GPU once.
"""

import lowbit.ops
import pytest


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        from .device import ISAS  # not before pytest has read --device

        metafunc.parametrize("isa", getattr(metafunc.module, "GEMM_ISAS", ISAS), indirect=True)


@pytest.fixture
def isa(request):
    from .device import set_isa

    before = lowbit.ops.isa()
    set_isa(request.param)
    yield request.param
    set_isa(before)
