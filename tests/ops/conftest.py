"""The `isa` fixture runs a test once for every instruction set that this machine and build can run."""

import lowbit.ops
import pytest

from .support import ISAS


@pytest.fixture(params=ISAS)
def isa(request):
    before = lowbit.ops.isa()
    lowbit.ops.set_isa(request.param)
    yield request.param
    lowbit.ops.set_isa(before)
