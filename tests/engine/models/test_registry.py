from descant_engine.checkpoint.config_file import ARCHITECTURES
from descant_engine.models.registry import MODELS


def test_what_the_config_reader_accepts_can_be_built() -> None:
    assert set(ARCHITECTURES.values()) == set(MODELS)
