"""The `isa` fixture runs a test once for every instruction set that this machine and build can run (AMX and
AVX512_BF16: in the modules of linear layers, which say so by GEMM_ISAS and FP_ISAS); on a GPU once.
"""

import lowbit.ops
import pytest


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        from .device import ISAS  # not before pytest has read --device

        module = metafunc.module
        names = getattr(module, "FP_ISAS", getattr(module, "GEMM_ISAS", ISAS))
        metafunc.parametrize("isa", names, indirect=True)


@pytest.fixture
def isa(request):
    from .device import set_isa

    before = lowbit.ops.isa()
    set_isa(request.param)
    yield request.param
    set_isa(before)
