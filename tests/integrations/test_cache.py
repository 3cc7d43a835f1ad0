"""Int4Cache: what it stores, that its history does not matter, and that models and generate use it."""

import lowbit
import pytest
import torch
from lowbit.integrations.hf import Int4Cache
from lowbit.integrations.hf.cache import CACHE, OLD_CACHE
from transformers import DynamicCache

from tests.models import tiny, token_ids
from tests.oracle import compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle


def states(tokens, seed=0, batch=2, heads=3, d=16, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, tokens, d, generator=g).to(dtype) for _ in range(2)]


def expected(x, clip, block):
    """The oracle's quantise and dequantise of x, with the rotation of the keys around it."""
    values = x.float().numpy()
    if block:
        values = had.transform_fp32(values, block**-0.5, block)
    codes, params = oracle.kv4_quantize_exact(values, clip)
    back = oracle.kv4_dequantize_exact(codes, params)
    return had.transform_fp32(back, block**-0.5, block) if block else back


@pytest.mark.parametrize("clip,block", [(1.0, None), (0.95, 16), (0.9, 8)])
def test_update_returns_the_quantised_states(clip, block):
    keys, values = states(11)
    got_keys, got_values = Int4Cache(clip, block).update(keys, values, 0)
    compare.exact(got_keys, expected(keys, clip, block))
    compare.exact(got_values, expected(values, clip, None))
    error = ((got_values - values).norm() / values.norm()).item()
    assert 0.01 <= error <= 0.15


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 5], [8, 1], [70, 1, 70, 3]])
def test_append_equals_rebuild(sizes):
    """However the tokens came, and across every growth of the buffers."""
    keys, values = states(sum(sizes))
    want = Int4Cache(0.95, 16).update(keys, values, 0)
    cache = Int4Cache(0.95, 16)
    for k, v in zip(keys.split(sizes, 2), values.split(sizes, 2), strict=True):
        got = cache.update(k, v, 0)
    for a, b in zip(got, want, strict=True):
        compare.exact(a, b)
    assert cache.get_seq_length() == sum(sizes)


def test_layers_are_independent():
    cache = Int4Cache(1.0)
    one, two = states(5, 1), states(5, 2)
    first = cache.update(*one, 0)
    second = cache.update(*two, 1)
    compare.exact(second[0], expected(two[0], 1.0, None))
    compare.exact(cache.update(one[0][:, :, :1], one[1][:, :, :1], 0)[0][:, :, :5], first[0])


@pytest.mark.parametrize("keep", [1, 6, 8])
def test_crop_forgets_the_tail(keep):
    keys, values = states(8)
    more = states(3, 9)
    cache = Int4Cache(0.95, 16)
    cache.update(keys, values, 0)
    cache.crop(keep - 8)
    assert cache.get_seq_length() == keep
    got = cache.update(*more, 0)
    want = Int4Cache(0.95, 16).update(
        torch.cat((keys[:, :, :keep], more[0]), 2), torch.cat((values[:, :, :keep], more[1]), 2), 0
    )
    for a, b in zip(got, want, strict=True):
        compare.exact(a, b)


def test_reorder_select_and_repeat():
    keys, values = states(7, batch=3)
    tail = states(1, 4, batch=3)

    def filled():
        cache = Int4Cache(0.95, 16)
        cache.update(keys, values, 0)
        return cache

    for change, order in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        cache = filled()
        change(cache)
        one = [torch.cat([t[:1]] * len(order)) for t in tail]
        got = cache.update(*one, 0)
        want = Int4Cache(0.95, 16).update(
            torch.cat((keys[order], one[0]), 2), torch.cat((values[order], one[1]), 2), 0
        )
        for a, b in zip(got, want, strict=True):
            compare.exact(a, b)


def test_it_is_small():
    keys, values = states(256, d=64, dtype=torch.bfloat16)
    cache = Int4Cache()
    cache.update(keys, values, 0)
    full = 2 * keys.numel() * keys.element_size()
    assert cache.nbytes() <= 0.29 * full  # 4 of 16 bits, and two fp16 numbers per 64 values


def test_bad_clip_is_refused():
    for clip in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"clip: expected a value in \(0, 1\], got "):
            Int4Cache(clip)


@pytest.fixture(scope="module")
def model():
    return lowbit.quantize(tiny("llama"), "quarot rtn w4a4kv4", progress=False)


def test_a_plain_call_goes_through_the_cache(model):
    """The logits of one forward are those with an explicit Int4Cache, and not those without quantised keys.
    """
    ids = token_ids(2, 20)
    with torch.no_grad():
        plain = model(ids)
        explicit = model(ids, **{CACHE: Int4Cache(0.95, 4)}).logits
        unquantised = model(ids, use_cache=False, **{CACHE: None}).logits
    assert type(getattr(plain, CACHE)) is Int4Cache
    assert model.config.hidden_size // model.config.num_attention_heads == 12  # largest power of two: 4
    compare.exact(plain.logits, explicit)
    kept = lowbit.quantize(tiny("llama"), "quarot rtn w8a8", progress=False)
    assert type(getattr(kept(ids), CACHE)) is DynamicCache
    assert unquantised.shape == plain.logits.shape


def test_token_by_token_equals_at_once(model):
    """With causal attention over a quantised cache, decoding sees what prefill saw."""
    ids = token_ids(1, 12)
    with torch.no_grad():
        at_once = model(ids).logits
        cache, steps = None, []
        for i in range(12):
            out = model(ids[:, i : i + 1], **{CACHE: cache})
            cache = getattr(out, CACHE)
            steps.append(out.logits)
    assert type(cache) is Int4Cache and cache.get_seq_length() == 12
    span = (at_once.max() - at_once.min()).item()
    # attention's own fp32 order differs; a code of a later layer may move by one step
    assert (torch.cat(steps, 1)[:, 0] - at_once[:, 0]).abs().max().item() <= 1e-4 * span
    assert (torch.cat(steps, 1) - at_once).abs().mean().item() <= 0.05 * span


def test_generate_uses_it_greedy_and_with_beams(model):
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    greedy = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, return_dict_in_generate=True
    )
    assert type(getattr(greedy, CACHE)) is Int4Cache
    with torch.no_grad():  # the same by hand
        cache, sequence, step = Int4Cache(0.95, 4), ids, ids
        for _ in range(greedy.sequences.shape[1] - 6):
            out = model(step, **{CACHE: cache})
            step = out.logits[:, -1:].argmax(-1)
            sequence = torch.cat((sequence, step), 1)
    done = (greedy.sequences == 2).cumsum(1) > 0
    assert torch.equal(torch.where(done, 0, greedy.sequences), torch.where(done, 0, sequence))
    beams = model.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=3, do_sample=False)
    assert beams.shape[0] == 2 and torch.equal(beams[:, :6], ids)


def test_a_cache_of_the_caller_is_left_alone(model):
    ids = token_ids(1, 6)
    own = DynamicCache()
    with torch.no_grad():
        model(ids, **{CACHE: Int4Cache(1.0)})
        own.update(*states(1, batch=1, heads=2, d=12), 0)
        out = model(ids[:, :1], **{CACHE: own})
    assert getattr(out, CACHE) is own


@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
@pytest.mark.parametrize("name", sorted({CACHE, OLD_CACHE}))
@pytest.mark.parametrize("fused", [False, True])
def test_both_names_of_the_cache(fused, name):
    """transformers 5.24 calls `cache` what was `past_key_values`, and takes both."""
    model = lowbit.quantize(tiny(), "quarot rtn w4a4kv4", progress=False)
    model, ids = lowbit.fuse(model) if fused else model, token_ids(1, 7)
    for part in (model, model.model):
        with torch.no_grad():
            cache = getattr(part(ids, use_cache=True), CACHE)
            out = part(ids[:, :1], **{name: cache})
        assert getattr(out, CACHE) is cache and cache.get_seq_length() == 8
