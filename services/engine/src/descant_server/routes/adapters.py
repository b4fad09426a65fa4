"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: vLLM's bodies and answers."""

from litestar import MediaType, post
from litestar.di import NamedDependency

from descant_server.bodies import HttpRequest, read_json
from descant_server.config import AdapterSource
from descant_server.service import Service
from descant_wire.adapters import LoadAdapterRequest, UnloadAdapterRequest


@post("/v1/load_lora_adapter", status_code=200, media_type=MediaType.TEXT)
async def load_adapter(request: HttpRequest, service: NamedDependency[Service]) -> str:
    asked = await read_json(request, LoadAdapterRequest)
    await service.load_adapter(AdapterSource(asked.lora_name, asked.lora_path), replace=asked.load_inplace)
    return f"Success: LoRA adapter '{asked.lora_name}' added successfully."


@post("/v1/unload_lora_adapter", status_code=200, media_type=MediaType.TEXT)
async def unload_adapter(request: HttpRequest, service: NamedDependency[Service]) -> str:
    asked = await read_json(request, UnloadAdapterRequest)
    await service.unload_adapter(asked.lora_name)
    return f"Success: LoRA adapter '{asked.lora_name}' removed successfully."
