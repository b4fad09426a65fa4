"""One small tokenizer of each family, trained on a few lines of many scripts."""

import json

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from descant_engine.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Stop here, please! 1234567890",
    "Größere Übungen müssen sorgfältig geprüft werden. Ça va très bien, où est-il?",
    "日本語のテキストも、中文文本也一样。한국어도 있어요.",
    "Emojis: 🎉🎉 👩‍👩‍👧 🇫🇷 and accents: é à ü ñ; code: def f(x):\n    return x + 1\n",
] * 4
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|bos|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool call>", special=False), AddedToken("<größe>", special=False)])
    backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral have it: spaces as U+2581, unknown characters as byte tokens."""
    special = ["<unk>", "<s>", "</s>"]
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    # Byte tokens are plain ones.
    vocab = backend.get_vocab()
    model = models.BPE(vocab=vocab, merges=_merges(backend), byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    rebuilt = Backend(model)
    rebuilt.normalizer = backend.normalizer
    rebuilt.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rebuilt.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=rebuilt, eos_token="</s>")


def _merges(backend: Backend) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


BUILDERS = {"byte_level": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Both families, one after the other."""
    return Tokenizer(BUILDERS[request.param]())


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    return Tokenizer(byte_level())


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> Tokenizer:
    return Tokenizer(sentencepiece())
