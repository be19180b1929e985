"""``lorary serve``: adapters on one backbone, over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.open_base import base_of, told_whose
from lorary.hub.cli.options import DeviceMapOption, DeviceOption, RegistryOption, open_registry
from lorary.hub.cli.output import clean, print_line, print_note
from lorary.hub.cli.requirements import lacking
from lorary.hub.errors import MissingDependencyError, UsageError
from lorary.hub.registry import Registry

if TYPE_CHECKING:
    from socket import socket

    from lorary.adapters.server import Service

EXAMPLES = (
    "lorary serve",
    "lorary serve --base org/base --quantization nf4 --port 9000",
    "lorary serve sql@prod legal-qa@prod ./runs/tone/finance-tone",
    "LORARY_API_KEY=... lorary serve --host 0.0.0.0",
)

KEY_VARIABLE = "LORARY_API_KEY"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_TOLD = 5  # models that are named when it starts


def command(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF", help="The models to offer; default every version in the catalogue that fits."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model; default the one that the first REF or the catalogue names.")
    ] = None,
    quantization: Annotated[str, typer.Option(help="Of the base: none, nf4, fp4 or int8.")] = "none",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="How many adapters are on the device at once.")] = 16,
    host_bytes: Annotated[
        str | None, typer.Option(help="The most that waiting adapters take in memory, such as 8GB.")
    ] = None,
    adapter_dtype: Annotated[
        str | None,
        typer.Option(help="What adapters are kept in: float32, bfloat16 or float16; the base's dtype unless given."),
    ] = None,
    max_running: Annotated[int, typer.Option(min=1, help="How many texts are generated at once.")] = 64,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="How many texts wait to be generated before more are refused.")
    ] = 256,
    cache_tokens: Annotated[int, typer.Option(min=16, help="How many tokens of all running texts are kept.")] = 16384,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache", help="Keep what prompts begin with, for the next of the same version.")
    ] = False,
    registry: RegistryOption = None,
) -> None:
    """Serve adapters on one backbone over HTTP.

    It speaks OpenAI's protocol, and takes rows of any task at /v1/predict; the address itself is a page to try them. A
    REF in the catalogue means what it means there when a request comes. Where $LORARY_API_KEY is set, callers have to
    send it as their bearer token.
    """
    catalogue = open_registry(registry)
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise UsageError(
            f"${KEY_VARIABLE} is empty: expected a secret, or no such variable for a service without a key"
        )
    if missing := lacking("serve"):
        raise MissingDependencyError(f"not installed: {', '.join(missing)}; pip install 'lorary[serve]'")
    chosen = base or _base_of_first(references or (), catalogue) or _only_base(catalogue)
    from lorary.adapters.server import listen

    with listen(host, port) as taken:
        service = _open(
            taken, host, chosen, base, catalogue, references or (), key,
            backbone={
                "quantization": quantization, "device": device, "device_map": device_map, "slots": slots,
                "host_bytes": host_bytes, "adapter_dtype": adapter_dtype,
            },
            max_waiting=max_waiting,
            engine={"max_running": max_running, "cache_tokens": cache_tokens, "prefix_cache": prefix_cache},
        )  # fmt: skip
        _serve(service, taken, key)


def _open(
    taken: socket,
    host: str,
    chosen: str,
    base: str | None,
    catalogue: Registry,
    references: Sequence[str],
    key: str | None,
    *,
    backbone: dict[str, Any],
    **settings: Any,
) -> Service:
    from lorary.adapters import Backbone
    from lorary.adapters.server import Service, ServiceSettings
    from lorary.adapters.server.running import is_local

    address = taken.getsockname()[0]
    own = (f"[{address}]" if ":" in address else address, host)
    hosts = tuple(dict.fromkeys((*_LOCAL_NAMES, *own))) if key is None and is_local(taken) else None
    treatment = ServiceSettings(api_key=key, hosts=hosts, **settings)
    with told_whose(base):
        opened = Backbone.from_pretrained(chosen, registry=catalogue, **backbone)
    return Service(opened, references, treatment)


def _serve(service: Service, taken: socket, key: str | None) -> None:
    from lorary.adapters.server import run
    from lorary.adapters.server.running import address_of, is_local

    offered = [row["id"] for row in service.models.listing()][1:]
    named = ", ".join(offered[:_TOLD]) + (f" and {len(offered) - _TOLD} more" if len(offered) > _TOLD else "")
    told = f"Serving {named or 'no adapters yet'} on {service.models.base} at {address_of(taken)}"
    if service.models.generates and service.engine is None:
        print_note(f"note: no texts are generated one by one: {service.why_no_engine}", aside=True)
    if (own := service.models.namesake) is not None:
        base = service.models.base
        print_note(
            f"note: {base} means the base without an adapter; the adapter of that name is {own} here", aside=True
        )
    if key is None and not is_local(taken):
        print_note(f"note: anybody who reaches this machine may use it; set ${KEY_VARIABLE}", aside=True)
    # A Ctrl-C ends it, and is raised again once everything is closed.
    with suppress(KeyboardInterrupt):
        run(service, taken, lambda: print(clean(told), flush=True))
    print_line("Stopped.")


def _base_of_first(references: Sequence[str], catalogue: Registry) -> str | None:
    if not references:
        return None
    from lorary.adapters.backbone.sources import find_checkpoint

    return base_of(find_checkpoint(references[0], catalogue).checkpoint)


def _only_base(catalogue: Registry) -> str:
    """The base of all that the catalogue holds.

    Raises:
        UsageError: there are several, or there is none.
    """
    bases = catalogue.count_by_base()
    if len(bases) == 1:
        return next(iter(bases))
    if not bases:
        raise UsageError(f"expected a REF or --base: {catalogue.path} holds no adapter that names its base")
    told = ", ".join(f"{base} ({count})" for base, count in sorted(bases.items(), key=lambda item: -item[1])[:_TOLD])
    raise UsageError(f"expected a REF or --base, as one service has one base; the catalogue has adapters of {told}")
