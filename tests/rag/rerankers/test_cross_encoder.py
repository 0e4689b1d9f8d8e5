"""The cross-encoder, with a small BERT made here: its weights are random, all else is real."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ConfigError, ModelUnavailable
from rag.rerankers.cross_encoder import CrossEncoderReranker

WINDOW = 24  # tokens that the model reads
WORDS = "the pump runs for fourteen hours how long does it run light house ##s keeper x".split()
QUESTION = "how long does the pump run"
TEXTS = ["the pump runs for fourteen hours", "x", "lighthouse keeper", "", "it runs long " * 40]


def make(folder: Path, labels: int = 1, **settings: Any) -> Path:
    """A cross-encoder of BERT's kind, as transformers saves one."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=WINDOW,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=WINDOW,
        num_labels=labels,
        initializer_range=0.5,  # else all texts have nearly the same score
        **settings,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "cross-encoder")


def reranker(folder: Path, **options: Any) -> CrossEncoderReranker:
    return CrossEncoderReranker(
        model=str(folder), **{"models_dir": folder.parent, "device": "cpu", **options}
    )


def logits(folder: Path, question: str, texts: list[str]) -> list[float]:
    """What transformers gives, a pair at a time."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for text in texts:
        # In lists: outside of them, an empty text would count as none.
        pair = tokenizer(
            [question], [text], truncation="only_second", max_length=WINDOW, return_tensors="pt"
        )
        assert set(pair["token_type_ids"][0].tolist()) == {0, 1}
        with torch.inference_mode():
            found.append(float(model(**pair).logits[0, 0]))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_scores_are_the_logits_of_the_model_in_the_order_of_the_texts(
    folder: Path, batch_size: int
) -> None:
    found = reranker(folder, batch_size=batch_size).scores(QUESTION, TEXTS)
    assert found == pytest.approx(logits(folder, QUESTION, TEXTS), abs=1e-4)
    assert len({round(score, 2) for score in found}) == len(TEXTS)
    backwards = reranker(folder, batch_size=batch_size).scores(QUESTION, TEXTS[::-1])
    assert backwards == pytest.approx(found[::-1], abs=1e-4)


def test_the_question_comes_first_and_the_text_second(folder: Path) -> None:
    one, other = "the pump runs", "how long does it run"
    (ours,) = reranker(folder).scores(one, [other])
    assert ours == pytest.approx(logits(folder, one, [other])[0], abs=1e-4)
    assert ours != pytest.approx(logits(folder, other, [one])[0], abs=1e-2)


def test_no_activation_stands_between_even_if_the_model_names_one(tmp_path: Path) -> None:
    """A sigmoid would give 1.0 to all logits above 17."""
    saved = make(
        tmp_path / "sigmoid", sbert_ce_default_activation_function="torch.nn.modules.Sigmoid"
    )
    found = reranker(saved).scores(QUESTION, TEXTS)
    assert found == pytest.approx(logits(saved, QUESTION, TEXTS), abs=1e-4)


def test_only_the_passage_is_cut(folder: Path) -> None:
    question, text = "the pump runs for fourteen hours x how long", "it runs " * 6 + "x x x x x"
    (ours,) = reranker(folder).scores(question, [text])
    assert ours == pytest.approx(logits(folder, question, [text])[0], abs=1e-4)
    (same,) = reranker(folder).scores(question, [text + " keeper" * 500])
    assert same == ours


def test_of_a_question_over_half_of_the_window_the_end_is_cut(folder: Path) -> None:
    """So much is left that a passage is read up to half of the window too, and whole if short."""
    asking = reranker(folder)
    words = "how long does the pump run for fourteen hours x it the light runs keeper the".split()
    room = WINDOW - 3
    for passage in ("x", "the pump runs for", "it runs"):
        left = room - len(passage.split())
        long, cut = " ".join(words * 50), " ".join((words * 50)[:left])
        found = asking.scores(long, [passage])
        assert found == pytest.approx(logits(folder, cut, [passage]), abs=1e-4)
    both = asking.scores(" ".join(words * 50), ["the pump runs for " * 50, "keeper x " * 50])
    assert abs(both[0] - both[1]) > 0.01


def test_threads_do_not_disturb_each_other(folder: Path) -> None:
    asking = reranker(folder)
    alone = asking.scores(QUESTION, TEXTS)
    found: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: found.append(asking.scores(QUESTION, TEXTS)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [pytest.approx(alone, abs=1e-4)] * 8


def test_no_texts_load_no_weights(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no weights"
    shutil.copytree(folder, empty, ignore=shutil.ignore_patterns("*.safetensors"))
    asking = reranker(empty)
    assert asking.scores(QUESTION, []) == []
    with pytest.raises(ModelUnavailable, match="cannot be loaded on device cpu"):
        asking.scores(QUESTION, ["a"])


def test_weights_that_are_cut_short_are_said(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        reranker(broken).scores(QUESTION, ["a"])


def test_weights_that_give_nan_are_said(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = make(tmp_path / "nan") / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.bias"][:] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="gave a score that is no number"):
        reranker(weights.parent).scores(QUESTION, ["a"])


def test_an_unknown_device_is_said(folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"on device abacus.*rerank\.device"):
        reranker(folder, device="abacus").scores(QUESTION, ["a"])


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="gives 3 scores for a passage"):
        reranker(make(tmp_path / "three", labels=3)).scores(QUESTION, ["a"])


def test_an_embedder_is_no_cross_encoder(models_dir: Path) -> None:
    """It would be given a head of random weights."""
    with pytest.raises(ModelUnavailable, match="all-MiniLM-L6-v2 is no cross-encoder"):
        CrossEncoderReranker(model="all-MiniLM-L6-v2", models_dir=models_dir)


def test_what_sentence_transformers_saves_can_be_used(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text())
    found = reranker(tmp_path / "saved").scores(QUESTION, TEXTS)
    assert found == pytest.approx(reranker(folder).scores(QUESTION, TEXTS), abs=1e-4)


def test_a_model_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rerank\.model is not set"):
        CrossEncoderReranker(model="", models_dir=tmp_path)
    for missing in ("nothing", f"{tmp_path}/"):
        with pytest.raises(ModelUnavailable, match=r"set rerank\.model"):
            CrossEncoderReranker(model=missing, models_dir=tmp_path)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_scores(folder: Path) -> None:
    found = reranker(folder, device="auto").scores(QUESTION, TEXTS)
    assert found == pytest.approx(reranker(folder).scores(QUESTION, TEXTS), abs=1e-2)
