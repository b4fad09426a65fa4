"""What the user asked for (EngineConfig) and what it comes to (ModelShape, ResolvedConfig). All frozen; no torch."""

from dataclasses import dataclass
from typing import Literal, TypedDict

from descant_engine.adapters.manifest import TargetModule
from descant_engine.pooling import PoolingConfig, PoolingType, Task
from descant_engine.ranges import MAX_INT32, MAX_INT64, require, require_given
from descant_engine.speculation.config import SpeculativeConfig

Dtype = Literal["float32", "float16", "bfloat16"]
Device = Literal["cpu", "cuda"]
StructuredOutputBackend = Literal["auto", "xgrammar", "llguidance"]
Runner = Literal["auto", "generate", "pooling"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The user's wishes, by vLLM's names where the meaning is the same. `None` and "auto" are settled by `resolve`.

    Raises:
        ValueError: a number outside its range; the message names the field, the value and the range. `max_model_len`
            is `resolve`'s to check, which knows the model's own.
    """

    model: str
    """A folder with safetensors, a .gguf file, or a hub id."""
    tokenizer: str | None = None
    dtype: Dtype | Literal["auto"] = "auto"
    device: Device | Literal["auto"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    seed: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    """Overrides the memory profile: the size of the pool in blocks."""
    gpu_memory_utilization: float = 0.9
    cpu_pool_bytes: int = 1 << 30
    """Size of the block pool on the CPU."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    """The step's token budget."""
    max_num_queued_requests: int = 1024
    enable_prefix_caching: bool = True
    deterministic: bool = False
    """Outputs are the same bits whatever else is in the batch. CUDA only; slower, see docs/results/."""
    structured_output_backend: StructuredOutputBackend = "auto"
    """auto is xgrammar where it keeps to a grammar exactly and in time, llguidance otherwise."""
    enable_lora: bool = False
    max_lora_rank: int = 64
    max_loras: int | None = None
    """Most adapters on the device at once; by default as many as the pool has room for."""
    adapter_host_bytes: int = 4 << 30
    """Host memory for adapters: a copy of each that was used lately. On CUDA it is pinned as it is needed, and kept."""
    runner: Runner = "auto"
    """auto: encoders give vectors, decoders generate and, where their folder says how, give vectors too."""
    pooling_type: PoolingType | None = None
    """How vectors are made, whatever the model's folder says."""
    speculative_config: SpeculativeConfig | None = None
    """How tokens are guessed, to compute several of a request in one step; None guesses nothing."""
    matryoshka_dimensions: tuple[int, ...] | None = None
    """Lengths that vectors may be cut to, empty for any; None is what the model's config says."""

    def __post_init__(self) -> None:
        require("seed", self.seed, -MAX_INT64 - 1, MAX_INT64)
        require("block_size", self.block_size, 1, MAX_INT32)
        require_given("num_blocks", self.num_blocks, 1, MAX_INT32)
        require("gpu_memory_utilization", self.gpu_memory_utilization, 0.0, 1.0, above_low=True)
        require("cpu_pool_bytes", self.cpu_pool_bytes, 1, MAX_INT64)
        require_given("max_num_seqs", self.max_num_seqs, 1, MAX_INT32)
        require_given("max_num_batched_tokens", self.max_num_batched_tokens, 1, MAX_INT32)
        require("max_num_queued_requests", self.max_num_queued_requests, 1, MAX_INT64)
        require("max_lora_rank", self.max_lora_rank, 1, MAX_INT32)
        require_given("max_loras", self.max_loras, 1, MAX_INT32)
        require("adapter_host_bytes", self.adapter_host_bytes, 0, MAX_INT64)
        for length in self.matryoshka_dimensions or ():
            require("matryoshka_dimensions", length, 1, MAX_INT32)


class EngineOptions(TypedDict, total=False):
    """EngineConfig's fields but for the models, for callers that pass them on by name."""

    tokenizer: str | None
    dtype: Dtype | Literal["auto"]
    device: Device | Literal["auto"]
    load_format: Literal["auto", "dummy"]
    seed: int
    max_model_len: int | None
    block_size: int
    num_blocks: int | None
    gpu_memory_utilization: float
    cpu_pool_bytes: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_num_queued_requests: int
    enable_prefix_caching: bool
    deterministic: bool
    structured_output_backend: StructuredOutputBackend
    enable_lora: bool
    max_lora_rank: int
    max_loras: int | None
    adapter_host_bytes: int
    runner: Runner
    pooling_type: PoolingType | None
    matryoshka_dimensions: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Rotary embedding parameters; `kind` is transformers' rope_type."""

    kind: Literal["default", "linear", "llama3", "dynamic", "yarn"]
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """YaRN: multiplies cosines and sines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """What an encoder has and a decoder has not."""

    activation: Literal["gelu", "gelu_tanh", "relu"]
    type_vocab_size: int
    is_cross_encoder: bool = False
    has_sigmoid: bool = False
    """Over a cross-encoder's score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers that fix a model's tensors, read from its config once."""

    architecture: str
    """transformers' class name, for example LlamaForCausalLM."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    """Longest context the weights allow (the sliding window, where the model has one)."""
    rope: RopeScaling
    tie_word_embeddings: bool
    attention_bias: bool = False
    """Biases on q, k and v."""
    output_bias: bool = False
    """A bias on o."""
    mlp_bias: bool = False
    encoder: EncoderShape | None = None
    """None for a decoder."""

    @property
    def kv_elements_per_token(self) -> int:
        """K and V of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def linear_shape(self, module: TargetModule) -> tuple[int, int]:
        """(in_features, out_features) of a linear layer that an adapter may change."""
        q_width, kv_width = self.num_q_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            TargetModule.Q_PROJ: (self.hidden_size, q_width),
            TargetModule.K_PROJ: (self.hidden_size, kv_width),
            TargetModule.V_PROJ: (self.hidden_size, kv_width),
            TargetModule.O_PROJ: (q_width, self.hidden_size),
            TargetModule.GATE_PROJ: (self.hidden_size, self.intermediate_size),
            TargetModule.UP_PROJ: (self.hidden_size, self.intermediate_size),
            TargetModule.DOWN_PROJ: (self.intermediate_size, self.hidden_size),
        }[module]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """EngineConfig with every open question answered, except the number of blocks: the memory profile returns it."""

    user: EngineConfig
    shape: ModelShape
    dtype: Dtype
    device: Device
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    eos_token_ids: tuple[int, ...]
    tasks: tuple[Task, ...] = (Task.GENERATE,)
    """What may be asked of the model."""
    pooling: PoolingConfig | None = None
    """None if it only generates."""
    draft_shape: ModelShape | None = None
    """The draft model's, if there is one."""

    @property
    def caches_prefixes(self) -> bool:
        """An encoder's tokens see what comes after them: equal beginnings are not computed equal."""
        return self.user.enable_prefix_caching and self.shape.encoder is None

    @property
    def block_elements(self) -> int:
        """Elements of one block: K and V of `block_size` tokens, all layers."""
        return self.user.block_size * self.shape.kv_elements_per_token

    @property
    def block_bytes(self) -> int:
        return self.block_elements * DTYPE_BYTES[self.dtype]
