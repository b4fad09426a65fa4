import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from descant_engine.text.tokenizer import TextNotUnicode, TextTooLong, Tokenizer, TokenizerError

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@quick
@given(text=texts)
def test_encodes_as_transformers_does(tokenizer: Tokenizer, text: str) -> None:
    for special in (True, False):
        expected = tokenizer.pretrained(text, add_special_tokens=special).input_ids
        assert tokenizer.encode(text, add_special_tokens=special) == expected


@quick
@given(text=texts)
def test_decodes_what_transformers_decodes(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=True)
    for skip in (True, False):
        expected = tokenizer.pretrained.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


@quick
@given(token_ids=st.lists(st.integers(0, 600), max_size=40))
def test_decodes_any_byte_level_ids_as_transformers_does(byte_level_tokenizer: Tokenizer, token_ids: list[int]) -> None:
    known = [i for i in token_ids if i < byte_level_tokenizer.vocab_size]
    expected = byte_level_tokenizer.pretrained.decode(known, skip_special_tokens=True)
    # Ids that no token has add nothing: a model's vocabulary may be padded.
    assert byte_level_tokenizer.decode(token_ids, skip_special_tokens=True) == expected


def test_token_bytes_cut_inside_characters(byte_level_tokenizer: Tokenizer) -> None:
    token_ids = byte_level_tokenizer.encode("ｗ", add_special_tokens=False)
    assert len(token_ids) > 1
    assert b"".join(byte_level_tokenizer.token_bytes(i) for i in token_ids) == "ｗ".encode()


def test_special_tokens_have_no_visible_bytes(byte_level_tokenizer: Tokenizer) -> None:
    end = byte_level_tokenizer.pretrained.eos_token_id
    assert byte_level_tokenizer.token_bytes(end) == b""
    assert byte_level_tokenizer.token_bytes(end, skip_special_tokens=False) == b"<|end|>"
    assert byte_level_tokenizer.is_special(end)
    (tool_call,) = byte_level_tokenizer.encode("<tool call>", add_special_tokens=False)
    assert byte_level_tokenizer.token_bytes(tool_call) == b"<tool call>"


def test_a_text_that_cannot_fit_is_not_encoded(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextTooLong) as caught:
        tokenizer.encode("a" * 10_000_000, add_special_tokens=True, max_tokens=100)
    assert caught.value.min_tokens > 100
    longest = max(tokenizer.pretrained.get_vocab(), key=len)
    tokenizer.encode("a" * 100 * len(longest), add_special_tokens=True, max_tokens=100)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextNotUnicode):
        tokenizer.encode("a\ud800b", add_special_tokens=True)


def test_truncation_of_the_training_run_is_ignored() -> None:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokenizer.encode("a" * 20, add_special_tokens=False) == [0] * 20


def test_a_decoder_without_token_bytes_is_refused_by_name(tmp_path: Path) -> None:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.decoder = decoders.BPEDecoder()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="BPEDecoder"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("place", ["nothing-here", "nothing-here.gguf"])
def test_a_missing_tokenizer_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(TokenizerError, match=place):
        Tokenizer.load(str(tmp_path / place))


def test_loads_from_a_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.pretrained.save_pretrained(tmp_path)
    loaded = Tokenizer.load(str(tmp_path))
    assert loaded.encode("Stop here, 日本 🎉", add_special_tokens=True) == tokenizer.encode(
        "Stop here, 日本 🎉", add_special_tokens=True
    )


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    lines = [f"The quick fox {number} 日本語 🎉" for number in range(64)]
    expected = [tokenizer.encode(line, add_special_tokens=True) for line in lines]
    start = threading.Barrier(4)

    def encode_all(_: int) -> list[list[int]]:
        start.wait(5)
        return [tokenizer.encode(line, add_special_tokens=True) for line in lines]

    with ThreadPoolExecutor(4) as threads:
        assert all(result == expected for result in threads.map(encode_all, range(4)))


def test_a_front_needs_no_torch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.pretrained.save_pretrained(tmp_path)
    code = (
        "import sys; import descant_engine.async_engine; from descant_engine.text.tokenizer import Tokenizer;"
        "print(Tokenizer.load(sys.argv[1]).decode(Tokenizer.load(sys.argv[1]).encode('Hi', add_special_tokens=False)));"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "Hi\n"), ran.stderr


@pytest.mark.slow
def test_a_gguf_file_gives_the_tokenizer_that_transformers_reads_from_it(smollm2_path: Path) -> None:
    ours = Tokenizer.load(str(smollm2_path))
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    text = "Hello, wörld! 🎉 <|im_start|>user\n  two  spaces<|im_end|>\n"
    assert ours.encode(text, add_special_tokens=True) == theirs(text).input_ids
    assert ours.decode(theirs(text).input_ids) == text
    assert ours.pretrained.chat_template == theirs.chat_template
    assert ours.pretrained.all_special_ids == theirs.all_special_ids


def test_word_pieces_are_cut_inside_their_special_tokens(minilm_path: Path) -> None:
    tokenizer = Tokenizer.load(str(minilm_path))
    assert not tokenizer.can_write
    whole = tokenizer.encode("one two three", add_special_tokens=True)
    assert tokenizer.encode_start("one two three", 4, add_special_tokens=True) == [*whole[:3], whole[-1]]
    assert tokenizer.encode_start("one two three", 9, add_special_tokens=True) == whole
    assert tokenizer.encode_start("one two three", 2, add_special_tokens=False) == whole[1:3]
    assert tokenizer.decode(whole, skip_special_tokens=True) == "one two three"
    # However long, a word may be one unknown token.
    assert tokenizer.encode("a" * 100_000, add_special_tokens=True, max_tokens=3)[1:-1] == [100]


def test_pairs_are_cut_at_the_end_of_their_second_text(minilm_path: Path) -> None:
    tokenizer = Tokenizer.load(str(minilm_path))
    expected = tokenizer.pretrained("one two", "three four")
    token_ids, num_first_tokens = tokenizer.encode_pair("one two", "three four")
    assert token_ids == expected["input_ids"]
    assert num_first_tokens == expected["token_type_ids"].count(0) == 4
    assert tokenizer.encode_pair("one two", "three four", keep_first=6) == ([*token_ids[:5], token_ids[-1]], 4)
