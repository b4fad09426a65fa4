"""The engine's options on a measurement's command line, by vLLM's names."""

import argparse

from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig, ResolvedConfig

UNLIMITED_QUEUE = 1 << 30


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--model", required=True, help="a folder, a .gguf file or a hub id")
    group.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    group.add_argument(
        "--load-format", default="dummy", choices=["auto", "dummy"], help="dummy, the default: random weights"
    )
    group.add_argument("--max-model-len", type=int, help="default: 16384, or what the model allows")
    group.add_argument("--max-num-seqs", type=int, default=256)
    group.add_argument("--max-num-batched-tokens", type=int)
    group.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    group.add_argument("--num-blocks", type=int, help="size of the block pool; default: what fits")
    group.add_argument("--max-lora-rank", type=int, default=64)
    group.add_argument("--max-loras", type=int, help="most adapters on the device; default: what fits")
    group.add_argument("--adapter-host-bytes", type=int, default=4 << 30)
    group.add_argument("--enable-lora", action="store_true", help="implied by adapters; alone: LoRA enabled, unused")
    group.add_argument("--deterministic", action="store_true", help="the same bits in any batch (decision 0022)")
    group.add_argument("--no-enable-prefix-caching", dest="prefix_caching", action="store_false")
    group.add_argument("--seed", type=int, default=0)


def engine_config(args: argparse.Namespace, *, with_adapters: bool) -> ResolvedConfig:
    """Raises SystemExit, with the reason, for options that the engine refuses."""
    try:
        return resolve(_user_config(args, with_adapters))
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _user_config(args: argparse.Namespace, with_adapters: bool) -> EngineConfig:
    return EngineConfig(
        model=str(args.model),
        dtype=args.dtype,
        device=args.device,
        load_format=args.load_format,
        seed=args.seed,
        max_model_len=args.max_model_len or _usual_model_len(args.model),
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        gpu_memory_utilization=args.gpu_memory_utilization,
        deterministic=args.deterministic,
        enable_prefix_caching=args.prefix_caching,
        enable_lora=args.enable_lora or with_adapters,
        max_lora_rank=args.max_lora_rank,
        max_loras=args.max_loras,
        adapter_host_bytes=args.adapter_host_bytes,
        max_num_queued_requests=UNLIMITED_QUEUE,
    )


def _usual_model_len(model: str) -> int:
    return min(16384, resolve(EngineConfig(model=model)).max_model_len)
