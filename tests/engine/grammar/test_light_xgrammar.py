"""xgrammar is loaded without torch and transformers, and works; where they are loaded, they stay what they are."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(60)

COMPILE = """
from descant_engine.grammar.build import Backends, Build, builds
from descant_engine.grammar.spec import BackendName, GrammarKind, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

backends = Backends(Vocabulary.of_model((b"", b"a", b"b"), 3, (0,)), (BackendName.XGRAMMAR,))
*_, build = builds(GrammarSpec(GrammarKind.EBNF, 'root ::= "a" "b"'), backends)
matcher = backends.load(build).matcher()
assert matcher.accept(1) and not matcher.is_complete and matcher.accept(2) and matcher.is_complete
"""
ALONE = f"""
import sys
{COMPILE}
assert "torch" not in sys.modules and "transformers" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""
BESIDE_TORCH = f"""
import torch
{COMPILE}
import xgrammar.matcher
assert xgrammar.matcher.torch is torch
from transformers import PreTrainedTokenizerFast
assert PreTrainedTokenizerFast.__module__.startswith("transformers.")
"""
CHANGED = f"""
import sys
import descant_engine.grammar.light_xgrammar as light

class Unfit:
    def __init__(self, name): raise TypeError(name)

light._StandIn = Unfit
{COMPILE}
assert "torch" in sys.modules
"""


@pytest.mark.parametrize("program", [ALONE, BESIDE_TORCH, CHANGED], ids=["alone", "beside torch", "stand-ins unfit"])
def test_it_works(program: str) -> None:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert ran.returncode == 0, ran.stderr
