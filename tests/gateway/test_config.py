from pathlib import Path

import msgspec
import pytest

from descant_gateway.config import ConfigError, GatewayConfig, Secret

GOOD = {
    "DESCANT_DATABASE_URL": "postgresql://descant:canary-1@db:5432/descant",
    "DESCANT_VALKEY_URL": "redis://:canary-2@valkey:6379/0",
    "DESCANT_KEY_PEPPER": "canary-3" * 4,
    "DESCANT_ADMIN_KEY": "canary-4" * 2,
}


def problems(env: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        GatewayConfig.from_environment(env)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_defaults_and_overrides() -> None:
    config = GatewayConfig.from_environment({**GOOD, "DESCANT_GATEWAY_PORT": "0", "DESCANT_VALKEY_TIMEOUT_S": "0.05"})
    assert (config.process.host, config.process.port, config.valkey.timeout_s) == ("127.0.0.1", 0, 0.05)
    assert config.database.url.reveal() == GOOD["DESCANT_DATABASE_URL"]


def test_everything_missing_is_told_at_once() -> None:
    assert [line.partition(":")[0] for line in problems({})] == list(GOOD)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DESCANT_GATEWAY_PORT", "eighty", "port number"),
        ("DESCANT_GATEWAY_PORT", "65536", "port number"),
        ("DESCANT_GATEWAY_PORT", "٣", "port number"),
        ("DESCANT_GATEWAY_PORT", "tcp://10.0.0.7:8080", "enableServiceLinks: false"),
        ("DESCANT_MAX_BODY_BYTES", "0", "above 0"),
        ("DESCANT_UPSTREAM_IDLE_TIMEOUT_S", "-1", "above 0"),
        ("DESCANT_UPSTREAM_IDLE_TIMEOUT_S", "nan", "above 0"),
        ("DESCANT_LOG_LEVEL", "loud", "debug, info, warning, error"),
        ("DESCANT_DATABASE_URL", "mysql://db/x", "postgresql://"),
        ("DESCANT_DATABASE_URL", "postgresql://db", "postgresql://"),
        ("DESCANT_DATABASE_URL", "postgresql://a:p#b@db:x/y", "percent-encoded"),
        ("DESCANT_VALKEY_URL", "http://valkey", "redis://"),
        ("DESCANT_KEY_PEPPER", "short", "at least 32"),
        ("DESCANT_ADMIN_KEY", "short", "at least 16"),
        ("DESCANT_ADMIN_KEY_FILE", "/nowhere", "not both"),
    ],
)
def test_a_malformed_value_is_named(name: str, value: str, said: str) -> None:
    (line,) = problems({**GOOD, name: value})
    assert line.startswith(name.removesuffix("_FILE"))
    assert said in line


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("x" * 40 + "\n")
    env = {key: value for key, value in GOOD.items() if key != "DESCANT_KEY_PEPPER"}
    config = GatewayConfig.from_environment({**env, "DESCANT_KEY_PEPPER_FILE": str(tmp_path / "pepper")})
    assert config.identity.key_pepper.reveal() == "x" * 40
    (line,) = problems({**env, "DESCANT_KEY_PEPPER_FILE": str(tmp_path / "absent")})
    assert "cannot read the file" in line
    assert "absent" in line


def test_no_secret_is_ever_shown() -> None:
    config = GatewayConfig.from_environment(GOOD)
    assert "canary" not in repr(config) + str(config) + f"{config.identity.admin_key}"
    with pytest.raises(TypeError):
        msgspec.json.encode(config.identity.admin_key)
    bad = {name: "canary" if name.endswith(("PEPPER", "KEY")) else f"bad://{value}" for name, value in GOOD.items()}
    assert "canary" not in "\n".join(problems(bad))


def test_secrets_compare_by_their_text() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("ü").matches("ü")
    assert not Secret("ü").matches("\udcfc")


def test_signing_in_needs_the_whole_provider() -> None:
    oidc = {"DESCANT_OIDC_ISSUER": "https://id.example.com/", "DESCANT_OIDC_CLIENT_SECRET": "canary-5"}
    with pytest.raises(ConfigError) as caught:
        GatewayConfig.from_environment(GOOD | oidc)
    assert "DESCANT_OIDC_CLIENT_ID: missing" in str(caught.value)
    assert "DESCANT_PUBLIC_URL: missing" in str(caught.value)
    rest = {"DESCANT_OIDC_CLIENT_ID": "descant", "DESCANT_PUBLIC_URL": "https://llm.example.com"}
    config = GatewayConfig.from_environment(GOOD | oidc | rest)
    assert config.identity.oidc is not None
    assert config.identity.oidc.issuer == "https://id.example.com"
    assert "canary" not in repr(config)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DESCANT_OIDC_ISSUER", "http://id.example.com", "must look like https://host"),
        ("DESCANT_PUBLIC_URL", "https://llm.example.com/path", "scheme, host and port only"),
        ("DESCANT_TRUSTED_PROXIES", "10.0.0.1/8", "write 10.0.0.0/8"),
        ("DESCANT_DATABASE_LISTEN", "perhaps", "true or false"),
        ("DESCANT_SESSION_HOURS", "0", "at most 90 days"),
    ],
)
def test_a_wrong_setting_of_identity_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GatewayConfig.from_environment(GOOD | {name: value})
