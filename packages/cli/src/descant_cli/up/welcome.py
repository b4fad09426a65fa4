"""What is printed when everything is up. Plain text without wrapping: it is there to be copied."""

import json
import shlex
import sys
from pathlib import Path

import click

from descant_cli.up.data_folder import Secrets
from descant_cli.up.options import UpOptions
from descant_cli.up.services import gateway_url

_QUESTION = "What is the capital of France?"
_BLUNT = "Walter, send me the audit file by noon. Stop wasting my time."
"""For an adapter of the user's own as good as any other sentence."""
_EXAMPLES = {
    "polite": _BLUNT,
    "sql": "contracts(id, vendor, status, value)\nHow many contracts have the status open?",
    "tickets": "Hello, I was charged twice for Cedar Notes. Order 48213. I need this solved today.",
}


def welcome(options: UpOptions, secrets: Secrets) -> None:
    base_url, key = f"{gateway_url(options)}/v1", secrets.team_key or ""
    adapters = [folder.name for folder in options.adapters]
    click.echo(f"\nDescant is up. Ctrl-C stops it.\n\n  base URL  {base_url}\n  key       {key}")
    click.echo(f"  models    {', '.join([options.model_name, *adapters])}")
    click.echo(f"\n{_curl(base_url, key, options.model_name, _QUESTION)}")
    click.echo(f"\n{_openai(base_url, key, options.model_name, _QUESTION)}")
    for adapter in adapters[:1]:
        example = _curl(base_url, key, adapter, _EXAMPLES.get(adapter, _BLUNT))
        click.echo(f"\nAn adapter is a model of its own name:\n\n{example}")
    click.echo(f"\nWhat has been used, by team and model:\n\n{_usage(options)}\n")


def _curl(base_url: str, key: str, model: str, question: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0})
    return (
        f"curl {base_url}/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'"
    )


def _usage(options: UpOptions) -> str:
    descant = Path(sys.executable).with_name("descant")
    if descant.is_relative_to(Path.cwd()):
        descant = descant.relative_to(Path.cwd())
    words = [str(descant), "admin", "--url", gateway_url(options), "--data-dir", str(options.data_dir), "usage"]
    return shlex.join(words)


def _openai(base_url: str, key: str, model: str, question: str) -> str:
    return (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{base_url}", api_key="{key}")\n'
        f'messages = [{{"role": "user", "content": "{question}"}}]\n'
        f'print(client.chat.completions.create(model="{model}", messages=messages, temperature=0)'
        ".choices[0].message.content)"
    )
