"""The engine's options on a command line, by vLLM's names. Every command that starts an engine has them."""

from dataclasses import dataclass
from typing import Final, Literal

import click
import msgspec

from descant_engine.config import Dtype, EngineConfig, Runner, StructuredOutputBackend
from descant_engine.pooling import PoolingType
from descant_server.options import ADAPTERS, MEMORY, MODEL, OUTPUT, Option, option, takes
from descant_server.speculation_options import SPECULATION_OPTIONS, speculative_config

RUNNER_OF_TASK: Final[dict[str, Runner]] = {
    "auto": "auto",
    "generate": "generate",
    **dict.fromkeys(("embed", "embedding", "score"), "pooling"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What was given, or its default."""

    tokenizer: str | None
    dtype: Dtype | Literal["auto"]
    device: Literal["auto", "cpu", "cuda"]
    load_format: Literal["auto", "dummy"]
    max_model_len: int | None
    runner: Runner
    task: str | None
    pooling_type: str | None
    hf_overrides: str
    seed: int
    gpu_memory_utilization: float
    block_size: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enable_prefix_caching: bool
    deterministic: bool
    structured_output_backend: StructuredOutputBackend
    speculative: Literal["ngram", "draft"] | None
    draft_model: str | None
    num_speculative_tokens: int | None
    speculative_config: str | None
    enable_lora: bool
    max_lora_rank: int
    max_loras: int | None

    def config(self, model: str, *, max_num_queued_requests: int, serves_adapters: bool) -> EngineConfig:
        """Raises click.BadParameter for what cannot be read, and click.UsageError for a number outside its range."""
        try:
            return self._config(model, max_num_queued_requests, serves_adapters)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    def _config(self, model: str, max_num_queued_requests: int, serves_adapters: bool) -> EngineConfig:
        return EngineConfig(
            model=model,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            device=self.device,
            load_format=self.load_format,
            seed=self.seed,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_queued_requests=max_num_queued_requests,
            enable_prefix_caching=self.enable_prefix_caching,
            deterministic=self.deterministic,
            structured_output_backend=self.structured_output_backend,
            speculative_config=speculative_config(
                self.speculative, self.draft_model, self.num_speculative_tokens, self.speculative_config
            ),
            enable_lora=self.enable_lora or serves_adapters,
            max_lora_rank=self.max_lora_rank,
            max_loras=self.max_loras,
            runner=self.runner if self.task is None else RUNNER_OF_TASK[self.task],
            pooling_type=None if self.pooling_type is None else PoolingType(self.pooling_type),
            matryoshka_dimensions=_matryoshka_dimensions(self.hf_overrides),
        )


class _Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] | None = None


def _matryoshka_dimensions(hf_overrides: str) -> tuple[int, ...] | None:
    try:
        given = msgspec.json.decode(hf_overrides, type=_Overrides)
    except msgspec.MsgspecError as error:
        raise click.BadParameter(str(error), param_hint="--hf-overrides") from None
    return () if given.is_matryoshka and given.matryoshka_dimensions is None else given.matryoshka_dimensions


_OPTIONS: Final[tuple[Option, ...]] = (
    option(MODEL, "--tokenizer", metavar="PATH", help="Where the tokenizer is, if not with the model."),
    option(
        MODEL,
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of weights, activations and KV. auto is the model's own on a GPU; float32 costs twice"
        " the memory of the others.",
    ),
    option(
        MODEL,
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="auto takes a GPU if there is one.",
    ),
    option(
        MODEL,
        "--load-format",
        type=click.Choice(["auto", "dummy"]),
        default="auto",
        show_default=True,
        help="dummy makes random weights of the model's shape: for benchmarks, no download, nonsense for answers.",
    ),
    option(
        MODEL,
        "--max-model-len",
        type=click.IntRange(min=1),
        metavar="TOKENS",
        help="Longest prompt and completion together; the model's own limit by default. Longer allows bigger requests,"
        " each of which may take more of the pool.",
    ),
    option(
        MODEL,
        "--runner",
        type=click.Choice(["auto", "generate", "pooling"]),
        default="auto",
        show_default=True,
        help="What the model is to do. auto: encoders make vectors or scores; decoders generate and, where their"
        " folder or"
        " --pooling-type says how, make vectors too. pooling: nothing but vectors.",
    ),
    option(
        MODEL,
        "--task",
        type=click.Choice(sorted(RUNNER_OF_TASK)),
        help="vLLM's older name for --runner.",
    ),
    option(
        MODEL,
        "--pooling-type",
        type=click.Choice(list(PoolingType), case_sensitive=False),
        help="Which hidden states make a text's vector, instead of what the model's folder says.",
    ),
    option(
        MODEL,
        "--hf-overrides",
        metavar="JSON",
        default="{}",
        help='In place of the model\'s config: {"is_matryoshka": true} or {"matryoshka_dimensions": [64, 128]} let'
        " requests cut vectors (`dimensions`). Nothing else can be overridden.",
    ),
    option(
        MODEL, "--seed", type=int, default=0, show_default=True, help="Of dummy weights and of requests without one."
    ),
    option(
        MEMORY,
        "--gpu-memory-utilization",
        type=float,
        default=0.9,
        show_default=True,
        help="Share of the GPU for weights and block pool. More means more requests at once, and"
        " less room for other programs.",
    ),
    option(
        MEMORY,
        "--block-size",
        type=int,
        default=16,
        show_default=True,
        metavar="TOKENS",
        help="Tokens per block of KV. Larger blocks share fewer prefixes and waste more at the end of a request.",
    ),
    option(
        MEMORY,
        "--max-num-seqs",
        type=int,
        metavar="N",
        help="Most requests in one step. More raises throughput and the time between tokens.",
    ),
    option(
        MEMORY,
        "--max-num-batched-tokens",
        type=int,
        metavar="TOKENS",
        help="Most tokens in one step. More shortens the wait for the first token, and makes long prompts interrupt"
        " running answers for longer.",
    ),
    option(
        MEMORY,
        "--enable-prefix-caching/--no-enable-prefix-caching",
        default=True,
        show_default=True,
        help="Reuse the KV of prompt beginnings seen before. Costs almost nothing.",
    ),
    option(
        MEMORY,
        "--deterministic",
        is_flag=True,
        help="The same bits for a request whatever else is in the batch. CUDA only; costs speed, at long contexts"
        " most.",
    ),
    option(
        OUTPUT,
        "--structured-output-backend",
        "--guided-decoding-backend",
        "structured_output_backend",
        type=click.Choice(["auto", "xgrammar", "llguidance"]),
        default="auto",
        show_default=True,
        help="What keeps outputs to JSON schemas and grammars. auto is xgrammar where it keeps to them exactly and in"
        " time, llguidance otherwise; either alone refuses more.",
    ),
    *SPECULATION_OPTIONS,
    option(
        ADAPTERS, "--enable-lora", is_flag=True, help="Serve LoRA adapters. Costs nothing while no request uses one."
    ),
    option(
        ADAPTERS,
        "--max-lora-rank",
        type=int,
        default=64,
        show_default=True,
        metavar="RANK",
        help="Adapters of a higher rank are refused. Memory is taken by each adapter's own rank, not by this.",
    ),
    option(
        ADAPTERS,
        "--max-loras",
        type=int,
        metavar="N",
        help="Most adapters on the device at once; by default as many as fit. Nothing is reserved for them, so a"
        " bound only"
        " makes room for KV.",
    ),
)

takes_engine_options = takes("engine", EngineOptions, _OPTIONS)
