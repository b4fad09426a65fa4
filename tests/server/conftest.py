"""A real server in a process of its own, on a tiny model with random weights and a tokenizer of one token a byte."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

START_SECONDS = 90
MAX_MODEL_LEN = 4096
HIDDEN, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 64, 2, 4, 2, 16
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass
class Server:
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return wait_for(lambda: next((m[1] for line in self.lines if (m := re.search(r"(http://\S+?),", line))), None))

    def wait_until_ready(self) -> "Server":
        wait_for(lambda: httpx.get(f"{self.url}/ready").status_code == 200 or None)
        return self

    @property
    def held_blocks(self) -> float:
        """Share of the pool; adapters stay in it when they are idle."""
        return self.metric("vllm:kv_cache_usage_perc")

    def is_idle(self) -> bool:
        """No request in the engine."""
        return not (self.metric("vllm:num_requests_running") or self.metric("vllm:num_requests_waiting"))

    def wait_until(self, look: Callable[[], bool], seconds: float = 10) -> None:
        wait_for(lambda: look() or None, seconds)

    def stop(self, seconds: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values whose labels include the given ones."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.partition("{")[0] == name and all(label in line for label in wanted)
        )


def wait_for(look: Callable[[], object], seconds: float = START_SECONDS) -> object:
    """What `look` returns once it is something."""
    deadline = time.monotonic() + seconds
    while (seen := look()) is None:
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return seen


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 264,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {"<eos>": 0} | {symbol: i + 1 for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def save_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An adapter on q_proj, strong enough to change every answer; another one for each seed."""

    def save(seed: int) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 4,
            "lora_alpha": 64,
            "target_modules": ["q_proj", "o_proj"],
            "bias": "none",
            "fan_in_fan_out": False,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        random = np.random.default_rng(seed)
        tensors = {}
        for layer in range(NUM_LAYERS):
            for module in ("q_proj", "o_proj"):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{name}.lora_A.weight"] = random.standard_normal((4, HIDDEN)).astype(np.float32)
                tensors[f"{name}.lora_B.weight"] = random.standard_normal((HIDDEN, 4)).astype(np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return save


@pytest.fixture(scope="session")
def start_server(model_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of `model_path` with further arguments, and ends them."""
    servers: list[Server] = []

    def start(*arguments: str, model: str | None = None) -> Server:
        command = [sys.executable, "-m", "descant_server", model or str(model_path), "--port", "0"]
        process = subprocess.Popen(
            [*command, "--load-format", "dummy", "--device", "cpu", "--served-model-name", "tiny", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        server = Server(process)
        threading.Thread(target=lambda: server.lines.extend(process.stdout or ()), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], save_adapter: Callable[[int], Path]) -> Server:
    """One with two adapters, for tests that leave it as they found it."""
    adapters = (f"pirate={save_adapter(1)}", f"lawyer={save_adapter(2)}")
    return start_server("--allow-runtime-lora", "--lora-modules", *adapters).wait_until_ready()
