"""The model `longspan` in lm-evaluation-harness: with stand-ins for the harness, and beside its own HF model (slow)."""

import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from longspan.pipeline import harness
from longspan.pipeline.evalverbs import eval_verb
from longspan.utils.errors import ConfigError

MODEL = Path(__file__).parents[2] / "examples" / "laptop-base"
TEXTS = ("It was a dark night, and", "She said that the house", "In the morning they", "Nobody had told her that he")


def request(*args):
    return SimpleNamespace(args=args)


@pytest.fixture
def stand_in(monkeypatch):
    """The few names of the harness that are used, with its own rule for splitting a pair."""

    class TemplateLM:
        def __init__(self):
            self.kept = []
            self.cache_hook = SimpleNamespace(add_partial=lambda *entry: self.kept.append(entry))

        def loglikelihood(self, requests):
            split = []
            for entry in requests:
                context, whole = self.tok_encode(entry.args[0]), self.tok_encode("".join(entry.args))
                split.append((entry.args, context, whole[len(context) :]))
            return self._loglikelihood_tokens(split, disable_tqdm=True)

    known, asked = {}, []
    registry = ModuleType("lm_eval.api.registry")
    registry.MODEL_REGISTRY = known
    registry.get_model = known.__getitem__
    registry.register_model = lambda name: lambda made: known.setdefault(name, made)
    model = ModuleType("lm_eval.api.model")
    model.TemplateLM = TemplateLM
    main = ModuleType("lm_eval.__main__")
    main.cli_evaluate = lambda: asked.append(list(sys.argv))
    for module in (registry, model, main, *map(ModuleType, ("lm_eval", "lm_eval.api", "lm_eval.models"))):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return known, asked


def test_the_class_in_the_registry_answers(stand_in):
    known, _ = stand_in
    made = harness.register()
    assert harness.register() is known["longspan"] is made
    lm = made(model=str(MODEL), batch_size=8)
    pair = (TEXTS[0], " then")
    ((logprob, hit),) = lm.loglikelihood([request(*pair)])
    assert logprob < 0
    assert hit in (True, False)
    assert lm.kept == [("loglikelihood", pair, (logprob, hit))]
    (whole,) = lm.loglikelihood_rolling([request("".join(pair))])
    assert whole < logprob  # all its tokens are scored
    replies = lm.generate_until([request(TEXTS[1], {"until": ["\n"], "max_gen_toks": 5, "do_sample": False})])
    assert len(replies) == 1
    assert "\n" not in replies[0]
    assert lm.tokenizer_name.endswith("laptop-base")
    with pytest.raises(ConfigError, match="drawn replies") as caught:
        lm.generate_until([request(TEXTS[1], {"do_sample": True, "temperature": 0.8})])
    assert caught.value.code == "eval.harness-sampling"


def test_its_own_command_is_run_with_its_own_words(stand_in):
    _, asked = stand_in
    before = list(sys.argv)
    eval_verb("harness", ["some/folder", "--tasks", "piqa", "--limit", "5"])
    words = ["lm_eval", "--model", "longspan", "--model_args", "model=some/folder", "--tasks", "piqa", "--limit", "5"]
    assert asked == [words]
    assert sys.argv == before


def test_without_the_harness_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(ConfigError, match="is not installed") as caught:
        harness.register()
    assert (caught.value.code, caught.value.fix) == ("eval.no-harness", "pip install 'longspan[harness]'")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_beside_the_harness_own_model_of_the_same_folder(tmp_path):
    """Written against lm_eval 0.4.13; run it where that is installed: PYTHONPATH=. python -m pytest this file."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    made = harness.register()
    ours = made(model=str(MODEL), device="cpu")
    theirs = get_model("hf")(pretrained=str(MODEL), device="cpu", dtype="float32", batch_size=4)
    draw = random.Random(0)
    words = ["the", "a", "sea", "house", "night", "was", "she", "had", "not", "and", "so", "long", "old"]
    pairs = [(text, " " + " ".join(draw.choices(words, k=3))) for text in TEXTS for _ in range(25)]
    pairs += [("", "The house was old."), (TEXTS[0] + " ", "then")]

    def asked(kind, all_args):
        return [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in all_args]

    for mine, other in zip(*(lm.loglikelihood(asked("loglikelihood", pairs)) for lm in (ours, theirs)), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-3, rel=1e-5)
        assert mine[1] == other[1]
    whole = [(" ".join(TEXTS),), (" ".join(draw.choices(words, k=300)),)]
    for mine, other in zip(
        *(lm.loglikelihood_rolling(asked("loglikelihood_rolling", whole)) for lm in (ours, theirs)), strict=True
    ):
        assert mine == pytest.approx(other, rel=1e-5)
    how = {"until": ["."], "max_gen_toks": 24, "do_sample": False}
    replies = [
        lm.generate_until(asked("generate_until", [(text, dict(how)) for text in TEXTS])) for lm in (ours, theirs)
    ]
    assert replies[0] == replies[1]

    docs = [{"text": text, "options": [" then", f" {words[at]}"], "label": 0} for at, text in enumerate(TEXTS)]
    (tmp_path / "docs.json").write_text("\n".join(map(json.dumps, docs)))
    task = {
        "task": "made_here",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "docs.json"), "cache_dir": str(tmp_path / "cache")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "label",
        "target_delimiter": "",
    }
    found = [
        simple_evaluate(model=model, model_args=args, tasks=[dict(task)], device="cpu", bootstrap_iters=0)
        for model, args in (("longspan", {"model": str(MODEL)}), ("hf", {"pretrained": str(MODEL), "dtype": "float32"}))
    ]
    accuracies = [entry["results"]["made_here"]["acc,none"] for entry in found]
    assert accuracies[0] == accuracies[1]
