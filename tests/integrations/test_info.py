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


@pytest.mark.parametrize("weight", ["e3m2", "e2m3", "e2m1", "e3m0", "int4"])
def test_weight_only_layers(capsys, weight):
    words = ("--weight", weight, "--activation-bits", "16", "--sm")
    for sm in ("80", "90"):
        text = explain(capsys, "1", "4096", "4096", *words, sm)
        assert text.startswith("mma.sync, tile 128 channels x 16 tokens, 32 x 1 tiles, "), text
    assert explain(capsys, "128", "4096", "4096", *words, "80").startswith(
        "mma.sync, tile 128 channels x 64 tokens, 32 x 2 tiles"
    )
    text = explain(capsys, "128", "4096", "4096", *words, "90")
    assert text.startswith("wgmma, tile 192 channels x 128 tokens, 22 x 1 tiles, "), text
    grouped = ("--weight", f"{weight}_group", "--activation-bits", "16", "--sm", "90")
    assert explain(capsys, "128", "4096", "4096", *grouped).startswith("wgmma, tile 192 channels x 128")


def test_many_tokens_are_torchs(capsys):
    for sm, tokens in (("80", 512), ("90", 1024)):
        words = ("4096", "4096", "--weight", "e3m2", "--sm", sm)
        text = explain(capsys, str(tokens), *words)
        assert text.startswith("torch's matmul on the weight as fp16 or bf16"), text
        assert f"from {tokens} tokens" in text
        assert "tile" in explain(capsys, str(tokens - 1), *words)
        odd = explain(capsys, str(tokens), "4096", "4095", *words[2:])
        assert "tile" in odd, odd  # torch wants rows of 16 bytes


def test_activations_that_a_weight_does_not_take():
    for weight, bits, want in (("int8", "16", "4 or 8"), ("e2m1", "8", "16"), ("e3m2_group", "4", "16")):
        with pytest.raises(SystemExit, match=f"--activation-bits: expected {want} with {weight}, got {bits}"):
            main(["info", "--gemm", "1", "64", "64", "--weight", weight, "--activation-bits", bits])
