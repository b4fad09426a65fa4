"""No address of a backend, a webhook or a sign-in provider leads to where clouds keep their credentials."""

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.gateway.gateway_under_test import World, bearer, running_gateway
from tests.gateway.oidc_provider import CLIENT_ID, CLIENT_SECRET, Provider, running_provider
from tests.gateway.upstream import Upstream, running

from descant_gateway.catalogue.snapshot import Backend, LimitRule, Webhook
from descant_gateway.config import LimitsConfig, OidcConfig, Secret
from descant_gateway.egress.address import is_internal, keeps_credentials, normal_base_url
from descant_gateway.egress.connections import GuardedResolver, for_webhooks
from descant_gateway.identity.oidc import OidcClient
from descant_gateway.limits.limit import LimitKind
from descant_wire.errors import ApiError

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": []}
METADATA = "169.254.169.254"
SPELLINGS = [
    METADATA,
    "169.254.169.254.",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "0x646464c8",
    "168.63.129.16",
    "192.0.0.192",
    "::ffff:100.100.100.200",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_metadata_server_is_an_address(host: str) -> None:
    assert keeps_credentials(host)
    url = f"http://[{host}]:80" if ":" in host else f"http://{host}:80"
    with pytest.raises(ValueError, match="clouds keep their credentials"):
        normal_base_url(url)


@pytest.mark.parametrize("host", ["engine", "10.0.0.7", "127.0.0.1", "192.168.1.2", "::1", "fd00::7", "169.253.1.1"])
def test_engines_in_the_house_are_addresses(host: str) -> None:
    assert not keeps_credentials(host)
    normal_base_url(f"http://[{host}]:80" if ":" in host else f"http://{host}:80")


@pytest.fixture
def lying_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that says that evil.example is a metadata server."""
    truth = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host in ("evil.example", b"evil.example"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (METADATA, int(port or 0)))]
        return truth(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("name", ["evil.example", "0xa9fea9fe", "2852039166"])
async def test_a_name_is_looked_at_for_what_it_means(lying_names: None, name: str) -> None:
    with pytest.raises(OSError, match="clouds keep their credentials"):
        await GuardedResolver().resolve(name, 80)
    assert (await GuardedResolver().resolve("localhost", 80))[0]["host"] == "127.0.0.1"


async def test_a_backend_whose_name_turned_is_not_connected_to(lying_names: None, valkey_url: str) -> None:
    """The address was checked when it was set; what its name means is checked at each connection."""
    world = World()
    world.add_model("m", Backend(name="turned", base_url="http://evil.example"))
    async with running_gateway(world, valkey_url) as gateway, asyncio.timeout(5):
        state = gateway.gateway.backends.state("turned")
        assert not state.is_healthy
        reply = await gateway.client.post(CHAT, json=BODY, headers=bearer(world.add_key()))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_healthy_backend")


async def test_a_request_says_nothing_about_where_it_goes(valkey_url: str) -> None:
    """Fields and headers by which other gateways let a caller choose the address."""
    address = "http://127.0.0.1:9/stolen"
    async with running(Upstream()) as upstream:
        world = World()
        world.add_model("m", upstream.backend)
        async with running_gateway(world, valkey_url) as gateway:
            fields = dict.fromkeys(("api_base", "base_url", "custom_llm_provider", "url"), address)
            nested = {"user_config": {"api_base": address}, "litellm_params": {"api_base": address}}
            headers = bearer(world.add_key()) | {"x-descant-backend": address, "x-portkey-custom-host": address}
            reply = await gateway.client.post(CHAT, json=BODY | fields | nested, headers=headers)
        assert reply.status_code == 200
        (received,) = upstream.received
    assert received.path == CHAT
    assert address not in str(received.raw_headers)


class Hook:
    """Redirects what it gets to where it must not go."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.paths: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        return web.Response(status=307, headers={"location": self.target})


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    hook = Hook("/elsewhere")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hook.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield hook
    await runner.cleanup()


async def warned(world: World, valkey_url: str, url: str, **parts: object) -> dict[str, float]:
    """What became of the warning that the first request causes."""
    world.webhooks[world.organization_id] = Webhook(url, "a secret")
    team = world.add_team()
    world.limits[team.id] = (LimitRule(kind=LimitKind.REQUESTS_PER_MINUTE, capacity=10, warn_at=(1,)),)
    async with running_gateway(world, valkey_url, **parts) as gateway:
        assert (await gateway.client.post(CHAT, json=BODY, headers=bearer(world.add_key(team)))).status_code == 200
        async with asyncio.timeout(5):
            while not (counts := _warnings(gateway.gateway.metrics.registry)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    return counts


def _warnings(registry: Any) -> dict[str, float]:
    samples = [
        sample
        for metric in registry.collect()
        for sample in metric.samples
        if "warning" in sample.name and sample.name.endswith("_total")
    ]
    return {sample.labels["result"]: sample.value for sample in samples if sample.labels.get("result") and sample.value}


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("descant_gateway.limits.warnings._RETRY_DELAYS_S", ())
    async with running(Upstream()) as upstream:
        world = World()
        world.add_model("m", upstream.backend)
        yield world


async def test_a_webhook_s_redirect_is_not_followed(world: World, valkey_url: str, hook: Hook) -> None:
    assert await warned(world, valkey_url, f"{hook.url}/hook") == {"failed": 1}
    assert hook.paths == ["/hook"]


async def test_a_webhook_s_name_is_looked_at_too(lying_names: None, world: World, valkey_url: str) -> None:
    assert await warned(world, valkey_url, "http://evil.example/latest/api/token") == {"failed": 1}


INTERNAL = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0",
    "10.0.0.7",
    "172.16.3.4",
    "192.168.1.1",
    "100.64.0.1",
    "224.0.0.1",
    "::1",
    "::",
    "fd00::7",
    "ff02::1",
    "::ffff:10.0.0.7",
    "64:ff9b::7f00:1",
    *SPELLINGS,
]


@pytest.mark.parametrize("host", INTERNAL)
def test_no_spelling_of_an_internal_address_is_the_public_internet(host: str) -> None:
    assert is_internal(host)


@pytest.mark.parametrize("host", ["hooks.example.com", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_the_public_internet_is_open_to_webhooks(host: str) -> None:
    assert not is_internal(host)


def test_an_operator_opens_a_network_but_never_what_keeps_credentials() -> None:
    allowed = (ip_network("10.1.0.0/16"), ip_network("169.254.0.0/16"), ip_network("fd00::/8"))
    assert not is_internal("10.1.2.3", allowed)
    assert is_internal("10.2.2.3", allowed)
    assert is_internal(METADATA, allowed)
    assert is_internal("fd00:ec2::254", allowed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433"])
async def test_a_webhook_of_a_tenant_does_not_reach_into_the_house(
    world: World, valkey_url: str, hook: Hook, host: str
) -> None:
    """Whether the address stands in the URL or a name means it: nothing is connected to."""
    url = hook.url.replace("127.0.0.1", host)
    assert await warned(world, valkey_url, f"{url}/hook", limits=LimitsConfig()) == {"failed": 1}
    assert hook.paths == []


async def test_a_name_that_turns_between_two_looks_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: what was looked up is what gets connected to, and what gets connected to is looked at."""
    answers = iter(["93.184.215.14", "127.0.0.1"])
    truth = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "turning.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), int(port or 0)))]
        return truth(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolver = GuardedResolver(for_webhooks(()))
    assert (await resolver.resolve("turning.example", 80))[0]["host"] == "93.184.215.14"
    with pytest.raises(OSError, match="internal address"):
        await resolver.resolve("turning.example", 80)


async def test_a_backend_s_redirect_is_not_followed(valkey_url: str, hook: Hook) -> None:
    world = World()
    world.add_model("m", Backend(name="turned", base_url=hook.url))
    async with running_gateway(world, valkey_url) as gateway:
        reply = await gateway.client.post(CHAT, json=BODY, headers=bearer(world.add_key()))
    assert reply.status_code == 502
    assert "/elsewhere" not in hook.paths


@pytest.mark.parametrize("field", ["jwks_uri", "token_endpoint", "authorization_endpoint"])
@pytest.mark.parametrize("address", [f"http://{METADATA}/keys", "http://0xa9fea9fe/", "file:///etc/passwd", "/keys"])
async def test_what_a_provider_names_is_held_to_the_same(
    monkeypatch: pytest.MonkeyPatch, field: str, address: str
) -> None:
    async with running_provider(Provider()) as provider:
        truth = httpx.AsyncClient.get
        asked: list[str] = []

        async def get(client: httpx.AsyncClient, url: str, **kwargs: Any) -> httpx.Response:
            asked.append(str(url))
            reply = await truth(client, url, **kwargs)
            if url.endswith("openid-configuration"):
                return httpx.Response(200, json=reply.json() | {field: address}, request=reply.request)
            return reply

        monkeypatch.setattr(httpx.AsyncClient, "get", get)
        config = OidcConfig(issuer=provider.url, client_id=CLIENT_ID, client_secret=Secret(CLIENT_SECRET))
        with pytest.raises(ApiError, match="does not answer as it should"):
            await OidcClient(config, "http://127.0.0.1/callback").start()
    assert address not in asked
