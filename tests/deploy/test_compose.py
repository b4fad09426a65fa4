"""compose.yaml against the specification's schema, and against what the services really take."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from descant_gateway.config import GatewayConfig

from .compose_file import ROOT, MissingVariable, read

SECRETS = {
    "POSTGRES_PASSWORD": "p" * 64,
    "DESCANT_KEY_PEPPER": "k" * 64,
    "DESCANT_ADMIN_KEY": "a" * 64,
    "DESCANT_INTERNAL_KEY": "i" * 64,
}
SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text())


@pytest.fixture
def compose() -> Any:
    return read(SECRETS)


def test_file_meets_the_specification(compose: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(compose)


def test_schema_refuses_what_the_specification_does_not_know(compose: Any) -> None:
    compose["services"]["gateway"]["comand"] = ["descant"]
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.Draft202012Validator(SCHEMA).validate(compose)


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_must_be_given(name: str) -> None:
    with pytest.raises(MissingVariable, match=rf"{name}: run deploy/make-env.sh first"):
        read({**SECRETS, name: ""})


def test_no_secret_is_written_in_the_file() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for line in re.findall(r".*(?:PASSWORD|PEPPER|ADMIN_KEY|INTERNAL_KEY|://\w+:\S+@).*", text):
        assert "${" in line, line


def test_promised_services_are_there(compose: Any) -> None:
    services = compose["services"]
    assert services.keys() == {"postgres", "valkey", "migrate", "gateway", "engine-cpu", "engine-gpu", "prometheus"}
    assert services["engine-cpu"]["profiles"] == ["cpu"]
    assert services["engine-gpu"]["profiles"] == ["gpu"]
    (device,) = services["engine-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_long_running_services_have_health_checks(compose: Any) -> None:
    for name in ("postgres", "valkey", "gateway", "engine-cpu", "engine-gpu"):
        assert compose["services"][name]["healthcheck"]["test"][0] == "CMD"


def test_dependencies_and_volumes_exist(compose: Any) -> None:
    services = compose["services"]
    for service in services.values():
        assert service.get("depends_on", {}).keys() <= services.keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_images_name_a_version(compose: Any) -> None:
    for service in compose["services"].values():
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d", tag), service["image"]


def test_dockerfiles_exist_and_copy_only_what_is_there(compose: Any) -> None:
    files = {service["build"]["dockerfile"] for service in compose["services"].values() if "build" in service}
    assert files == {"deploy/Dockerfile.gateway", "deploy/Dockerfile.engine"}
    for file in files:
        for line in (ROOT / file).read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                *sources, _ = line.split()[1:]
                assert all((ROOT / source).exists() for source in sources), line


def test_gateway_image_installs_nothing_that_needs_torch() -> None:
    text = (ROOT / "deploy" / "Dockerfile.gateway").read_text()
    for package in ("packages/kernels", "packages/engine", "services/engine"):
        assert package not in text


class Asked(dict[str, str]):
    """An environment that knows which variables it was asked for."""

    def __init__(self, given: dict[str, str]) -> None:
        super().__init__(given)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def test_gateway_environment_is_what_the_gateway_reads(compose: Any) -> None:
    environment = Asked(compose["services"]["gateway"]["environment"])
    config = GatewayConfig.from_environment(environment)
    assert (config.process.host, config.process.port) == ("0.0.0.0", 8080)
    assert environment.keys() <= environment.names


def test_prometheus_reads_the_ports_that_the_services_have(compose: Any) -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scrape}
    assert targets == {"gateway": ["gateway:8080"], "engine": ["engine:8000"]}
    assert compose["services"]["gateway"]["environment"]["DESCANT_GATEWAY_PORT"] == "8080"
    assert "--port=8000" in compose["services"]["engine-cpu"]["command"]
    assert compose["services"]["engine-cpu"]["networks"]["default"]["aliases"] == ["engine"]


def test_make_env_writes_every_secret_once_and_for_the_owner_only(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "make-env.sh"
    script.parent.mkdir()
    script.write_text((ROOT / "deploy" / "make-env.sh").read_text())

    def run() -> int:
        return subprocess.run(["bash", script], timeout=20, check=False, capture_output=True).returncode

    assert run() == 0
    written = dict(line.split("=") for line in (tmp_path / ".env").read_text().split())
    assert written.keys() == SECRETS.keys()
    assert len(set(written.values())) == len(SECRETS)
    assert all(len(value) == 64 for value in written.values())
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    GatewayConfig.from_environment(read(written)["services"]["gateway"]["environment"])

    assert run() == 1
    assert dict(line.split("=") for line in (tmp_path / ".env").read_text().split()) == written
