"""lm-eval's HFLM runs a quantised model on a local task, without a network."""

import json
import math

import lowbit
import pytest
import torch
from lowbit.integrations.hf import Int4Cache
from lowbit.integrations.hf.cache import CACHE

from tests.models import VOCABULARY, tiny

lm_eval = pytest.importorskip("lm_eval")

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tokenizer(tmp_path):
    """One token per letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(ord("!") + i) for i in range(VOCABULARY - 4)]
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "Ġ", *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def test_hflm_on_a_local_task(tmp_path, tokenizer):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    docs = [
        {"question": q, "choices": ["a", "b", "cd"], "answer": i % 3}
        for i, q in enumerate(["hello", "what", "xyz"])
    ]
    (tmp_path / "docs.json").write_text("\n".join(json.dumps(d) for d in docs))
    (tmp_path / "tiny_choice.yaml").write_text(TASK.format(data=tmp_path / "docs.json"))
    model = lowbit.quantize(tiny(), "quarot rtn w4a4kv4", progress=False)
    caches = []
    model.base_model.register_forward_pre_hook(
        lambda m, args, kwargs: caches.append(type(kwargs.get(CACHE))), with_kwargs=True
    )
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=2, max_length=64)
    result = lm_eval.simple_evaluate(
        model=lm,
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        bootstrap_iters=0,
    )
    accuracy = result["results"]["tiny_choice"]["acc,none"]
    assert caches and set(caches) == {Int4Cache}

    def score(question, choice):  # the same log-likelihoods by hand
        prompt = tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids
        answer = tokenizer(choice, return_tensors="pt", add_special_tokens=False).input_ids
        ids = torch.cat((prompt, answer), 1)
        with torch.no_grad():
            logp = model(ids[:, :-1]).logits.log_softmax(-1)[0, -answer.shape[1] :]
        return logp.gather(1, answer[0][:, None]).sum().item()

    scores = [[score(d["question"], " " + c) for c in d["choices"]] for d in docs]
    assert all(math.isfinite(s) for row in scores for s in row)
    hits = sum(row.index(max(row)) == d["answer"] for row, d in zip(scores, docs, strict=True))
    assert accuracy == pytest.approx(hits / 3)
