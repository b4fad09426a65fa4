"""What a report says it was made by: something that can be typed on another machine."""

import pytest

from descant_bench.environment import command_line


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["descant bench grammar-cost", "--rounds", "3"], "descant bench grammar-cost --rounds 3"),
        (["/a/descant_bench/latency.py", "--model", "/b/c"], "python -m descant_bench.latency --model c"),
        (["scripts/tool_calls.py", "models/small.gguf"], "python scripts/tool_calls.py models/small.gguf"),
        (["/a/scripts/tool_calls.py", "two words"], "python scripts/tool_calls.py 'two words'"),
    ],
)
def test_command_line(argv: list[str], command: str) -> None:
    assert command_line(argv) == command
