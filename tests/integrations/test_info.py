"""`lowbit info --gemm`: which CUDA kernel a layer gets, explained on a machine without a GPU."""

import pytest
from lowbit.cli import main


def explain(capsys, *words):
    assert main(["info", "--gemm", *words]) == 0
    return capsys.readouterr().out


def test_hopper_has_no_int4_tensor_cores(capsys):
    for bits in ("4", "8"):
        text = explain(capsys, "2048", "4096", "4096", "--sm", "90", "--activation-bits", bits)
        assert text.startswith("wgmma s8, tile 128 channels x 256 tokens, 32 x 8 tiles, 1 split"), text


def test_ampere_has(capsys):
    words = ("2048", "4096", "4096", "--sm", "80", "--activation-bits")
    assert explain(capsys, *words, "4").startswith("mma.sync s4, tile 128 channels x 128 tokens")
    assert explain(capsys, *words, "8").startswith("mma.sync s8, tile 128 channels x 128 tokens")
    assert explain(capsys, *words, "4", "--weight", "int4_group").startswith("mma.sync s8")


def test_a_token_splits_k(capsys):
    assert " 8 splits of 4 stages" in explain(capsys, "1", "4096", "4096")


@pytest.mark.parametrize("shape", [("0", "64", "64"), ("64", "-1", "64"), ("64", "64", str(2**31))])
def test_a_shape_that_is_none(shape):
    with pytest.raises(SystemExit, match="--gemm: expected M, N, K of 1 to"):
        main(["info", "--gemm", *shape])
