"""The engine behind HTTP: an OpenAI-compatible server for one model and its LoRA adapters."""
