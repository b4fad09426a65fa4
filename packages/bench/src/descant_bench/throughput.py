"""Offline throughput of the engine on recorded requests, token ids in and out, nothing (de)tokenised.

    python -m descant_bench.throughput --model FOLDER --requests FILE.jsonl [--adapters FOLDER]

FILE.jsonl has {"prompt_token_ids": [...], "max_tokens": n, "adapter": number or null} a line; adapter 7 is FOLDER/0007.
Prints one JSON object a file and run: s, out_tok_s, total_tok_s, req_s over the whole call, prefill included.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from descant_engine.adapter_files import read_adapter
from descant_engine.config import EngineConfig, ResolvedConfig
from descant_engine.engine import Engine
from descant_engine.model_config import resolve
from descant_engine.request import EngineRequest
from descant_engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    adapter: int | None


def read_requests(path: Path) -> list[RecordedRequest]:
    with path.open() as lines:
        records = [json.loads(line) for line in lines]
    return [RecordedRequest(tuple(r["prompt_token_ids"]), r["max_tokens"], r.get("adapter")) for r in records]


class Replay:
    """Runs recorded requests on one engine; adapters are registered when a request first names them."""

    def __init__(self, config: ResolvedConfig, adapter_root: Path | None) -> None:
        self._config = config
        self._adapter_root = adapter_root
        self._engine = Engine(config)
        self._digests: dict[int, str] = {}

    def run(self, requests: list[RecordedRequest], run: str) -> dict[str, float]:
        for number in {request.adapter for request in requests} - self._digests.keys() - {None}:
            self._register(number)
        start = time.perf_counter()
        for index, request in enumerate(requests):
            self._engine.submit(self._engine_request(request, f"{run}-{index}", run))
        num_output_tokens = sum(self._output_lengths())
        seconds = time.perf_counter() - start
        num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        return {
            "s": round(seconds, 3),
            "out_tok_s": round(num_output_tokens / seconds, 1),
            "total_tok_s": round((num_prompt_tokens + num_output_tokens) / seconds, 1),
            "req_s": round(len(requests) / seconds, 2),
        }

    def _output_lengths(self) -> Iterator[int]:
        while self._engine.has_work:
            for delta in self._engine.step():
                if delta.error is not None:
                    raise SystemExit(f"request {delta.request_id}: {delta.error}")
                yield len(delta.token_ids)

    def _engine_request(self, request: RecordedRequest, request_id: str, salt: str) -> EngineRequest:
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=request.prompt_token_ids,
            params=SamplingParams(temperature=0.0, max_tokens=request.max_tokens, ignore_eos=True),
            adapter_digest=None if request.adapter is None else self._digests[request.adapter],
            tenant_salt=salt,  # every run begins with nothing of its own in the prefix cache
        )

    def _register(self, number: int | None) -> None:
        if self._adapter_root is None or number is None:
            raise SystemExit("the requests name adapters: say where they are with --adapters FOLDER")
        folder = self._adapter_root / f"{number:04d}"
        manifest = read_adapter(folder, self._config.shape, self._config.user.max_lora_rank)
        self._engine.register_adapter(manifest)
        self._digests[number] = manifest.digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=Path, nargs="+", required=True)
    parser.add_argument("--adapters", type=Path)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    parser.add_argument("--max-lora-rank", type=int, default=64)
    args = parser.parse_args()
    start = time.perf_counter()
    config = resolve(
        EngineConfig(
            model=args.model,
            dtype=args.dtype,
            device=args.device,
            load_format=args.load_format,
            max_model_len=args.max_model_len,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            gpu_memory_utilization=args.gpu_memory_utilization,
            enable_lora=args.adapters is not None,
            max_lora_rank=args.max_lora_rank,
            max_num_queued_requests=1 << 30,
        )
    )
    replay = Replay(config, args.adapters)
    print(json.dumps({"startup_s": round(time.perf_counter() - start, 1)}), flush=True)
    for path in args.requests:
        requests = read_requests(path)
        for run in range(args.runs):
            result = replay.run(requests, f"{path.stem}-{run}")
            print(json.dumps({"workload": path.stem, "run": run} | result), flush=True)


if __name__ == "__main__":
    main()
