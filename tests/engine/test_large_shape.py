"""bfloat16 at the shape of Llama-3.1-8B on a GPU, beside transformers: no further from float32 than its bfloat16 is."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from descant_engine import LLM, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(400)]
VOCAB_SIZE = 128256
SHAPE = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    bos_token_id=None,
    eos_token_id=0,
)
NUM_OUTPUT = 32


@pytest.fixture(scope="module")
def model_8b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("llama-8b")
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(SHAPE)
        torch.set_default_dtype(torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={str(number): number for number in range(VOCAB_SIZE)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="0").save_pretrained(folder)
    del model
    free_memory()
    yield folder
    for file in folder.iterdir():
        file.unlink()


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def logprobs_of(folder: Path, texts: list[list[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """transformers: of each text's tokens but the first, [len - 1] float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).cuda().eval()
    scores = []
    for text in texts:
        ids = torch.tensor([text], device="cuda")
        with torch.inference_mode():
            rows = model(ids).logits[0, :-1].float().log_softmax(-1)
        scores.append(rows.gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1).cpu())
    del model
    free_memory()
    return scores


def test_logprobs_are_as_close_to_float32_as_the_reference_s_bfloat16(model_8b):
    rng = random.Random(1)
    prompts = [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in (1, 17, 200, 700)]
    llm = LLM(str(model_8b), dtype="bfloat16", device="cuda", max_model_len=1024, num_blocks=512)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True, logprobs=0, prompt_logprobs=0)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    del llm
    free_memory()
    texts = [[*prompt, *output.token_ids] for prompt, output in zip(prompts, outputs, strict=True)]
    ours = [
        torch.tensor([s.logprob for s in (*output.prompt_logprobs, *(t.logprobs for t in output.logprobs))])
        for output in outputs
    ]
    exact = torch.cat(logprobs_of(model_8b, texts, torch.float32))
    theirs = torch.cat(logprobs_of(model_8b, texts, torch.bfloat16))
    errors = [(torch.cat(ours) - exact).abs(), (theirs - exact).abs()]
    mean, reference_mean = (float(error.mean()) for error in errors)
    largest, reference_largest = (float(error.max()) for error in errors)
    print(f"mean error {mean:.5f} (transformers {reference_mean:.5f}), max {largest:.4f} ({reference_largest:.4f})")
    assert mean <= 1.1 * reference_mean
    assert largest <= 1.5 * reference_largest
