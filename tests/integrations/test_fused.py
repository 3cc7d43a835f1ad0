"""lowbit.fuse: the fused decoder writes what the model's own modules write."""

import copy
import io
import warnings
from dataclasses import replace

import lowbit
import pytest
import torch
from lowbit import fused
from lowbit.fused import NotFusable
from lowbit.integrations.hf import FusedCache, Int4Cache, fused_cache
from lowbit.integrations.hf import fused as hf_fused
from lowbit.integrations.hf.cache import CACHE, PREFIX
from lowbit.nn import QuantizedLinear
from lowbit.recipes import Recipe
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache

from tests.models import ARCHITECTURES, tiny, token_ids

METHODS = [
    "quarot rtn w4a4kv4",
    "quarot gptq w4a4kv4 g32 +shift",
    "quarot gptq w4a8kv4",
    "mergequant w4a4",
    "mergequant w4a8 no-r1",
    "best w4a4kv4",
    "quarot gptq w4a4kv4 g64 +shift +prefix",
]
PREFIXED = METHODS[-2:]
FLOATS = [  # layers that take floats, caches of floats
    "fp6 gptq e2m3",
    "int4 w4a16 g32",
    "zeroquant fp6",
    "llm-fp4 w4a8",
    "llm-fp4 w4a4 pre-shift",
    "llm-fp4 w4a4kv4 pre-shift",
    "quarot llm-fp4 gptq w4a4kv4",
    "quarot rtn w8a8",
    replace(Recipe.from_name("mergequant w4a4"), rank=4, name="mergequant w4a4 rank 4"),
    Recipe(activation_bits=16, kv_bits=4, name="int4 kv4"),
    replace(Recipe.from_name("mergequant w4a8 no-r1"), kv_bits=16, name="mergequant w4a8 kv16"),
]
ALL = METHODS + FLOATS


def name_of(method: str | Recipe) -> str:
    return getattr(method, "name", method)


def quantized(architecture: str = "llama", method: str | Recipe = METHODS[0], **changes):
    model = tiny(architecture, **changes)
    return lowbit.quantize(model, method, token_ids(4, 64), progress=False)


def own_cache(model) -> Int4Cache | DynamicCache:
    """The cache of the model's own modules, with a prompt that attends as in the fused decoder."""
    hook = next((h for h in model.model._forward_pre_hooks.values() if hasattr(h, "key_block")), None)
    if hook is None:
        return DynamicCache()
    return Int4Cache(hook.clip, hook.key_block, getattr(model.model, PREFIX, None), exact_prefill=True)


def away(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / (want.max() - want.min()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ALL, ids=name_of)
def test_logits_of_prompt_and_steps(architecture, method):
    """Now and then a value on the edge between two codes falls to the other side: hence no equality."""
    model = quantized(architecture, method)
    ids = token_ids(2, 40)
    cache, want = own_cache(model), []
    with torch.no_grad():
        want.append(model(ids[:, :20], **{CACHE: cache}).logits)
        want += [model(ids[:, i : i + 1], **{CACHE: cache}).logits for i in range(20, 30)]
        want.append(model(ids[:, 30:], **{CACHE: cache}).logits)  # a second prompt, after what is there
        lowbit.fuse(model)
        out = model(ids[:, :20], use_cache=True)
        cache = getattr(out, CACHE)
        assert isinstance(cache, FusedCache)
        got = [out.logits]
        got += [model(ids[:, i : i + 1], **{CACHE: cache}).logits for i in range(20, 30)]
        got.append(model(ids[:, 30:], **{CACHE: cache}).logits)
    assert cache.get_seq_length() == 40
    errors = [away(g, w) for g, w in zip(got, want, strict=True)]
    assert max(errors) < 0.05, errors
    assert sorted(errors)[len(errors) // 2] < 0.02, errors


@pytest.mark.parametrize("method", ALL, ids=name_of)
def test_generate_writes_the_same_tokens(method):
    model = quantized("llama", method)
    ids = token_ids(1, 12)
    settings = dict(max_new_tokens=24, do_sample=False, pad_token_id=0)
    want = model.generate(ids, **{CACHE: own_cache(model)}, **settings)
    got = lowbit.fuse(model).generate(ids, **settings)
    assert torch.equal(got, want)
    assert torch.equal(model.generate(ids, **settings), got)  # and again
    assert torch.equal(lowbit.unfuse(model).generate(ids, **{CACHE: own_cache(model)}, **settings), want)


def test_int8_weights_take_four_bit_codes_one_per_byte():
    """On every device: there is no kernel of nibbles for them."""
    model = quantized(method=Recipe(weight_bits=8, activation_bits=4, rotate=True, kv_bits=4))
    ids = token_ids(1, 12)
    with torch.no_grad():
        want = model(ids, **{CACHE: own_cache(model)}).logits
        got = lowbit.fuse(model)(ids).logits
    assert away(got, want) < 0.05


@pytest.mark.parametrize("method", PREFIXED)
def test_a_prefix_is_in_the_result_and_in_no_length(method):
    model = lowbit.fuse(quantized("mistral", method, sliding_window=100))
    ids = token_ids(1, 20)
    with torch.no_grad():
        out = model(ids, use_cache=True)
        cache, step = getattr(out, CACHE), ids[:, :1]
        assert cache.get_seq_length() == 20 and cache.max_tokens == 99
        want = model(step, **{CACHE: cache}).logits
        cache.crop(20)
        assert torch.equal(model(step, **{CACHE: cache}).logits, want)
        prefix = getattr(model.model, PREFIX)
        setattr(model.model, PREFIX, torch.zeros_like(prefix))
        other = lowbit.fuse(model)(ids).logits
    assert away(other, out.logits) > 0.01
    with pytest.raises(NotFusable, match="sliding window 100 less a prefix of 1, got 100"):
        lowbit.fuse(model, max_tokens=100)


def test_rows_of_a_batch_do_not_see_each_other():
    """Up to the hidden states, that is: the head is torch's, whose sums depend on the number of rows."""
    model = lowbit.fuse(quantized(method=PREFIXED[0])).model
    ids = token_ids(3, 30)
    with torch.no_grad():
        whole = model(ids, use_cache=True)
        step = model(ids[:, :1], **{CACHE: getattr(whole, CACHE)}).last_hidden_state
        for row in range(3):
            one = model(ids[row : row + 1], use_cache=True)
            assert torch.equal(one.last_hidden_state[0], whole.last_hidden_state[row])
            alone = model(ids[row : row + 1, :1], **{CACHE: getattr(one, CACHE)}).last_hidden_state
            assert torch.equal(alone[0], step[row])


LENGTHS = (30, 18, 7)  # of the rows of a padded batch


def padded():
    """(ids [3, 30], mask): rows of LENGTHS, padded at the left."""
    mask = torch.arange(30) >= 30 - torch.tensor(LENGTHS)[:, None]
    return token_ids(3, 30) * mask, mask.long()


@pytest.mark.parametrize("method", ALL, ids=name_of)
def test_rows_of_several_lengths_as_the_modules_have_them(method):
    """Logits of tokens, not of padding: a prompt, steps, a second prompt."""
    model = quantized(method=method)
    ids, mask = padded()
    more = token_ids(3, 14)
    cuts = [(0, 1), (1, 2), (2, 3), (3, 14)]

    def run(cache):
        seen, known = [], mask
        for part in [ids, *(more[:, a:b] for a, b in cuts)]:
            known = mask if part is ids else torch.cat((known, torch.ones_like(part)), 1)
            positions = (known.cumsum(1) - 1).clamp(0)[:, -part.shape[1] :]
            out = model(
                part, attention_mask=known, position_ids=positions, **{CACHE: cache}, use_cache=True
            )
            cache = getattr(out, CACHE)
            seen.append(out.logits[mask.bool()] if part is ids else out.logits)
        return seen, cache

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        want, _ = run(own_cache(model))
        lowbit.fuse(model)
        got, cache = run(None)
    assert isinstance(cache, FusedCache) and cache.get_seq_length() == 44
    assert cache.stored() == [n + 14 for n in LENGTHS]
    errors = [away(g, w) for g, w in zip(got, want, strict=True)]
    assert max(errors) < 0.05, errors
    cache.crop(37)
    assert cache.get_seq_length() == 37 and cache.stored() == [n + 7 for n in LENGTHS]
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert cache.get_seq_length() == 37 and cache.stored() == [LENGTHS[2] + 7, LENGTHS[0] + 7]
    cache.crop(-27)  # into the padding of the first
    assert cache.get_seq_length() == 10 and cache.stored() == [0, 10]
    cache.crop(-27)
    assert cache.get_seq_length() == 0 and cache.stored() == [0, 0]


@pytest.mark.parametrize("method", [METHODS[0], PREFIXED[0], FLOATS[0]])
def test_padding_may_come_in_pieces(method):
    """Down to one place per call: it is not stored, and the tokens behind it are those of a whole prompt."""
    model = lowbit.fuse(quantized(method=method))
    ids, mask = padded()
    positions = (mask.cumsum(1) - 1).clamp(0)
    with torch.no_grad():
        want = model(ids, attention_mask=mask, position_ids=positions, use_cache=True).logits[:, -1]
        for size in (1, 4):
            cache = None
            for i in range(0, 30, size):
                part = slice(i, i + size)
                out = model(
                    ids[:, part], attention_mask=mask[:, : i + size], position_ids=positions[:, part],
                    **{CACHE: cache}, use_cache=True,
                )  # fmt: skip
                cache = getattr(out, CACHE)
            assert cache.stored() == list(LENGTHS)
            # older tokens are read as stored, in 4 bits: close, not equal
            assert torch.isfinite(out.logits).all() and away(out.logits[:, -1], want) < 0.25


def test_what_a_page_held_before_does_not_matter():
    """A NaN in a place that no token has is not read, though its weight would be 0."""
    model = lowbit.fuse(quantized())
    ids, mask = padded()
    positions = (mask.cumsum(1) - 1).clamp(0)
    more = dict(attention_mask=torch.ones(3, 34).long(), position_ids=torch.arange(30, 34).expand(3, -1))
    more["attention_mask"][:, :30] = mask

    def run(spoil):
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        cache = getattr(out, CACHE)
        if spoil:
            free = torch.ones(cache.pages.caches(0)[1].shape[0] * cache.pages.page, dtype=torch.bool)
            table = cache.pages.tables(cache.sequences)[0].long()
            for row, n in enumerate(cache.stored()):
                at = torch.arange(n)
                free[table[row, at // cache.pages.page] * cache.pages.page + at % cache.pages.page] = False
            free = free.view(-1, 1, cache.pages.page, 1)
            for layer in range(cache.pages.layers):
                for params in cache.pages.caches(layer)[1::2]:
                    params.masked_fill_(free, torch.nan)
        return model(token_ids(3, 4), **{CACHE: cache}, **more).logits

    with torch.no_grad():
        assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("method", [METHODS[0], PREFIXED[0], FLOATS[0]])
def test_a_padded_batch_writes_what_its_rows_write_alone(method):
    model = lowbit.fuse(quantized(method=method))
    ids, mask = padded()
    settings = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = model.generate(ids, attention_mask=mask, **settings)
    for row, n in enumerate(LENGTHS):
        alone = model.generate(ids[row : row + 1, 30 - n :], **settings)
        assert torch.equal(together[row, 30:], alone[0, n:])


@pytest.mark.parametrize("method", [METHODS[0], PREFIXED[0], FLOATS[0]])
def test_beams_score_what_their_tokens_score_alone(method):
    """A beam that has changed places goes on with its own past."""
    model = lowbit.fuse(quantized(method=method))
    ids = token_ids(2, 9)
    settings = dict(max_new_tokens=6, num_beams=3, num_return_sequences=3, do_sample=False, pad_token_id=0)
    beams = model.generate(ids, output_scores=True, return_dict_in_generate=True, **settings)
    assert (beams.beam_indices[:, 1:] != beams.beam_indices[:, :-1]).any()  # they did change places
    for tokens, score in zip(beams.sequences, beams.sequences_scores, strict=True):
        cache, step, alone = None, tokens[None, :9], 0.0
        for token in tokens[9:]:
            with torch.no_grad():
                out = model(step, **{CACHE: cache}, use_cache=True)
            cache, step = getattr(out, CACHE), token.view(1, 1)
            alone += float(out.logits[0, -1].log_softmax(-1)[token])
        assert abs(alone / 6 - float(score)) < 1e-4


@pytest.mark.parametrize("method", [METHODS[0], PREFIXED[0], FLOATS[0]])
def test_copies_are_fused_models_of_their_own(method):
    model, ids = lowbit.fuse(quantized(method=method), 60), token_ids(1, 12)
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    want, saved = model.generate(ids, **settings), io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    copies = [copy.deepcopy(model), torch.load(saved, weights_only=False)]
    del model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in copies:
            assert torch.equal(other.generate(ids, **settings), want)
            cache = getattr(other(ids, use_cache=True), CACHE)
            assert isinstance(cache, FusedCache) and cache.max_tokens == 60


@pytest.mark.parametrize("method", [METHODS[0], FLOATS[0]])
def test_autocast_leaves_the_fused_layers_alone(method):
    model, ids = lowbit.fuse(quantized(method=method)).eval(), token_ids(1, 12)
    with torch.no_grad():
        want = model.model(ids, use_cache=True).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.model(ids, use_cache=True).last_hidden_state, want)


def test_training_runs_the_modules_of_the_model():
    model = lowbit.fuse(quantized(method=FLOATS[0])).train()
    with pytest.warns(UserWarning, match="not used for a call with gradients"):
        model(token_ids(2, 12), labels=token_ids(2, 12)).loss.backward()
    norm = model.model.layers[0].input_layernorm.weight
    assert norm.grad is not None and norm.grad.abs().sum() > 0


def test_sampling_runs():
    model, ids = lowbit.fuse(quantized()), token_ids(2, 9)
    torch.manual_seed(0)
    assert model.generate(ids, max_new_tokens=6, do_sample=True, pad_token_id=0).shape == (2, 15)


def test_crop_takes_tokens_back():
    model = lowbit.fuse(quantized())
    ids = token_ids(1, 20)
    with torch.no_grad():
        cache = getattr(model(ids[:, :10], use_cache=True), CACHE)
        first = model(ids[:, 10:11], **{CACHE: cache}).logits
        cache.crop(-1)
        assert cache.get_seq_length() == 10
        assert torch.equal(model(ids[:, 10:11], **{CACHE: cache}).logits, first)
        cache.crop(5)
        assert cache.get_seq_length() == 5


def test_saving_and_the_weights_are_as_before(tmp_path):
    model = quantized()
    before = copy.deepcopy(model.state_dict())
    lowbit.fuse(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    model.save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m")
    ids = token_ids(1, 12)
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(lowbit.fuse(again).generate(ids, **settings), model.generate(ids, **settings))


def test_memory_is_shared_between_layers_and_products():
    model = quantized("mistral")
    lowbit.fuse(model)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            seen[name] = module._tiles.untyped_storage().data_ptr()
    layer = "model.layers.0.self_attn."
    assert seen[layer + "q_proj"] == seen[layer + "k_proj"] == seen[layer + "v_proj"]


@pytest.mark.parametrize("method", [METHODS[0], PREFIXED[0], FLOATS[0]])
def test_a_call_it_cannot_serve_goes_the_old_way(method):
    model = quantized(method=method)
    ids = token_ids(2, 16)
    mask = torch.ones_like(ids)
    mask[0, 4:7] = 0  # a hole
    settings = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    want = model.generate(ids, **settings)
    lowbit.fuse(model)
    with pytest.warns(UserWarning, match="padding"):
        got = model.generate(ids, **settings)
    assert torch.equal(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_layers_that_change_afterwards_are_not_ignored():
    """An adapter put on later, or other weights: the fused layers know nothing of them."""
    model = quantized()
    ids = token_ids(1, 8)
    lowbit.fuse(model)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight.data = layer.weight.data * 0.5
    with pytest.warns(UserWarning, match="changed"), torch.no_grad():
        got = model(ids).logits
    with torch.no_grad():
        assert torch.equal(got, lowbit.unfuse(model)(ids).logits)
        want = model(ids, **{CACHE: own_cache(model)}).logits
        assert away(lowbit.fuse(model)(ids).logits, want) < 0.05


@pytest.mark.parametrize("method", ["mergequant w4a4 no-r1", "best w4a4kv4", "quarot gptq w4a4kv4"])
def test_codes_as_a_card_wants_them_change_no_bit(method, monkeypatch):
    """One per byte, and in columns that make whole pieces of a row."""
    model, ids = quantized("qwen3", method), token_ids(1, 12)
    with torch.no_grad():
        want = lowbit.fuse(model)(ids).logits
        monkeypatch.setattr(fused, "on_card", lambda x: True)
        seen, quantize = [], fused.ops.rms_norm_quantize

        def watched(*args, **options):
            seen.append(quantize(*args, **options))
            return seen[-1]

        monkeypatch.setattr(fused.ops, "rms_norm_quantize", watched)
        got = lowbit.fuse(model)(ids).logits
    assert len(seen) == 4 and all(q.dtype == torch.int8 and q.shape[1] % 16 == 0 for q, _, _ in seen)
    assert torch.equal(got, want)


class _Ops(TorchDispatchMode):
    """Names of the library's ops, in the order of their calls."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lowbit":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_a_step_is_eight_calls(method):
    model = lowbit.fuse(quantized("llama", method)).model
    with torch.no_grad():
        cache = getattr(model(token_ids(1, 5), use_cache=True), CACHE)
        with _Ops() as ops:
            model(token_ids(1, 1), **{CACHE: cache})
    layer = ["rms_norm_quantize", "int4_linear", "kv4_attend_quantize", "int4_linear"]
    layer += ["rms_norm_quantize", "int4_linear", "gated_quantize", "int4_linear"]
    assert ops.names == 2 * layer


def test_a_graph_is_captured_once_and_again_when_the_batch_changes(monkeypatch):
    """The bookkeeping around CUDA graphs, with graphs that run their function when they are replayed."""
    made = []

    class Graph:
        def __init__(self, run, inputs):
            made.append(tuple(t.shape for t in inputs))
            self.run = run

        def __call__(self, inputs):
            return self.run(*inputs)

    model = quantized()
    ids = token_ids(2, 12)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    want = lowbit.fuse(model).generate(ids, **settings), model.generate(ids[:1], **settings)
    monkeypatch.setattr(hf_fused, "StepGraph", Graph)
    for module in (hf_fused, fused_cache):
        monkeypatch.setattr(module, "on_card", lambda x: True)
    assert torch.equal(model.generate(ids, **settings), want[0]) and len(made) == 1
    assert torch.equal(model.generate(ids[:1], **settings), want[1]) and len(made) == 2
    assert made[0][3] == (2, 16)  # the block table, widened


def test_more_tokens_than_allowed():
    model = lowbit.fuse(quantized(), max_tokens=24)
    with pytest.raises(ValueError, match="24"):
        model.generate(token_ids(1, 20), max_new_tokens=8, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: tiny("llama"), ["quantised layers", "Linear", "q_proj"]),
        (lambda: torch.nn.Linear(3, 3), ["llama", "Linear"]),
        (lambda: quantized(architecture="mistral", sliding_window=100), ["sliding window 100", "200"]),
    ],
)
def test_refusals(make, words):
    with pytest.raises(NotFusable) as error:
        lowbit.fuse(make(), max_tokens=200)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
