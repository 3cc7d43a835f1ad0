"""The commands' answers to what they cannot serve: one sentence, status 2, nothing left."""

import string

import lowbit
import pytest
from lowbit.cli import main
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.models import tiny


@pytest.fixture
def model(tmp_path):
    """A directory with a tiny Llama model and a tokenizer of characters."""
    letters = {c: i for i, c in enumerate(string.ascii_lowercase + " ")}
    folder = tmp_path / "model"
    tiny("llama", vocab_size=128, max_position_embeddings=64).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(letters, [], unk_token="a")))
    tokenizer.eos_token, tokenizer.unk_token = "a", "a"
    tokenizer.save_pretrained(folder)
    return folder


def refused(capsys, *args: object) -> str:
    """The sentence that a command ends with."""
    assert main([str(a) for a in args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_a_damaged_model_is_named(model, tmp_path, capsys):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    said = refused(capsys, "quantize", model, tmp_path / "out", "--method", "rtn w4a4")
    assert said.startswith(f"lowbit quantize: model {model}: ") and not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_named(model, tmp_path, capsys):
    for file in model.glob("tokenizer*"):
        file.unlink()
    said = refused(capsys, "quantize", model, tmp_path / "out", "--method", "rtn w4a4")
    assert said.startswith(f"lowbit quantize: model {model}: expected a tokenizer: ")


def test_the_model_is_not_overwritten(model, capsys):
    before = sorted((p.name, p.stat().st_size) for p in model.iterdir())
    said = refused(capsys, "quantize", model, model, "--method", "rtn w4a4", "--overwrite")
    assert said == f"lowbit quantize: OUT {model}: model {model} lies there; expected another directory"
    assert sorted((p.name, p.stat().st_size) for p in model.iterdir()) == before


def test_text_beyond_the_model_is_refused_before_it_is_written(model, capsys):
    args = ("generate", model, "--prompt", "the quick", "--prompt", "a" * 60, "--max-new-tokens", 5)
    assert refused(capsys, *args) == (
        "lowbit generate: max_new_tokens: expected at most 4 after a prompt of 60 tokens, "
        "as the model takes 64, got 5"
    )
    assert main(["generate", str(model), "--prompt", "a" * 60, "--max-new-tokens", "4"]) == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_leaves_nothing(model, tmp_path, capsys, monkeypatch, overwrite):
    out = tmp_path / "out"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("kept")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for owner, name in ((lowbit, "quantize"), (PreTrainedTokenizerFast, "save_pretrained")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            args = ["quantize", str(model), str(out), "--method", "rtn w4a4", "--overwrite"]
            assert main(args) == 130
        assert capsys.readouterr().err.strip().endswith("lowbit: interrupted")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"][: 1 + overwrite]
        assert not overwrite or (out / "old").read_text() == "kept"
