"""Many adapters on little disk are still adapters of their own."""

from pathlib import Path

from descant_bench.random_adapters import modules_named, write_adapters
from descant_engine.adapters.files import read_adapter
from descant_engine.adapters.manifest import TargetModule
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig


def test_each_has_an_identity_and_a_scaling_of_its_own(tiny_config: Path, tmp_path: Path) -> None:
    shape = resolve(EngineConfig(model=str(tiny_config))).shape
    write_adapters(tmp_path, shape, 40, lora_rank=4, num_files=3)
    manifests = [read_adapter(tmp_path / f"{number:04d}", shape, 8) for number in range(40)]
    assert len({manifest.digest for manifest in manifests}) == 40
    assert len({manifest.modules[0].scaling for manifest in manifests}) == 40
    assert len({manifest.path.stat().st_ino for manifest in manifests}) == 3
    assert all(len(manifest.modules) == 7 * shape.num_layers for manifest in manifests)


def test_modules_by_name() -> None:
    assert modules_named("all") == tuple(TargetModule)
    assert modules_named("q_proj, v_proj") == (TargetModule.Q_PROJ, TargetModule.V_PROJ)
    assert TargetModule.DOWN_PROJ not in modules_named("attention")
