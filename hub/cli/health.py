"""What `lorary doctor` looks at: each check says what it found, and how to mend what is amiss."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.cli.requirements import EXTRAS, lacking, unmet
from lorary.hub.errors import LoraryError, first_line
from lorary.hub.finding.search import Filter
from lorary.hub.registry import Registry
from lorary.hub.tables.database import demand_writable
from lorary.hub.tables.mounts import warn_of_network
from lorary.hub.units import size

_FEW_BYTES = 2**30  # free on a disk that adapters and bases are to be written to


@dataclass(frozen=True)
class Finding:
    """What was found of a ``subject``; ``mend`` says what to do where it is ``amiss``, or could be better."""

    subject: str
    found: str
    mend: str = ""
    amiss: bool = False


def look(registry: Registry) -> Iterator[Finding]:
    """All checks, one after the other; one that can't be made is a finding too."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": packages,
        "devices": devices,
        "quantization": quantization,
        "products of mixed rows": products,
        "engine": engine,
        "Hub": hub,
        "registry": lambda: catalogue(registry),
    }
    for subject, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield Finding(subject, f"{type(error).__name__}: {first_line(error)}", amiss=True)


def packages() -> Iterator[Finding]:
    """lorary's own version, Python's, and packages outside the ranges that lorary asks for."""
    from importlib.metadata import PackageNotFoundError, version

    own = "run from its source"
    with suppress(PackageNotFoundError):
        own = version("lorary")
    yield Finding("lorary", f"{own}; Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for problem in unmet():
        yield Finding("packages", problem, "pip install --upgrade lorary", amiss=True)
    for extra in EXTRAS:
        missing = lacking(extra)
        found = f"{', '.join(missing)} not there" if missing else "installed"
        yield Finding(f"extra {extra}", found, f"pip install 'lorary[{extra}]', if it is wanted" if missing else "")


def devices() -> Iterator[Finding]:
    """Processor, memory, and GPUs; a GPU that torch can't use is amiss."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield Finding(
        "processor", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"{size(memory.available)} of {size(memory.total)} free",
    )  # fmt: skip
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            kind = f"sm_{properties.major}{properties.minor}"
            yield Finding(f"cuda:{number}", f"{properties.name}, {kind}, {size(free)} of {size(total)} free")
        return
    if driver_is_there():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and hidden.strip() in ("", "-1"):
            yield Finding("GPU", "CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES, if it is wanted")
        else:
            built = torch.version.cuda
            why = f"is built for CUDA {built}, and can't use it" if built else "is built for the CPU alone"
            mend = "update the driver" if built else "install torch's build for CUDA (pytorch.org)"
            yield Finding("GPU", f"a driver is there, but torch {torch.__version__} {why}", mend, amiss=True)
    else:
        yield Finding("GPU", f"none; torch {torch.__version__} runs on the processor")


def driver_is_there() -> bool:
    """Is there a driver for NVIDIA's GPUs?"""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def quantization() -> Iterator[Finding]:
    """Do nf4 and int8 layers compute, on the device that would be used?"""
    from lorary.adapters.base.device import pick_device
    from lorary.adapters.base.quantization import quieten

    quieten()
    device = pick_device()
    for kind in ("nf4", "int8"):
        try:
            _layer(kind, device)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            yield Finding(
                kind, f"doesn't work on {device} ({reason})", "pip install --upgrade bitsandbytes", amiss=True
            )
        else:
            yield Finding(kind, f"works on {device}")


def _layer(kind: str, device: Any) -> None:
    """Quantize a layer and hold a product of it against the plain one."""
    import bitsandbytes
    import torch

    plain = torch.nn.Linear(64, 64, bias=False)
    made = (
        bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
        if kind == "nf4"
        else bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    )
    made.load_state_dict(plain.state_dict())
    row = torch.ones(4, 64)
    with torch.no_grad():
        found, expected = made.to(device)(row.to(device)).cpu().float(), plain(row)
    difference = float((found - expected).norm() / expected.norm())
    if not difference < 0.5:
        raise LoraryError(f"a product of it is off by {difference:.0%}")


def products() -> Iterator[Finding]:
    """Which way rows of several adapters are computed."""
    import torch

    from lorary.adapters.kernel import mixed_rows, on_gpu

    ours = mixed_rows.kernel() is not None
    mend = "" if ours else "gcc on Linux, and a processor with AVX2, make it faster"
    yield Finding("mixed rows, CPU", "in C" if ours else "by PyTorch", mend)
    if torch.cuda.is_available():
        triton = on_gpu.kernel() is not None
        found = "in Triton or by PyTorch, whichever is faster" if triton else "by PyTorch; there is no Triton"
        yield Finding("mixed rows, CUDA", found)


def engine() -> Iterator[Finding]:
    """Is transformers one that the engine was tested with?"""
    from lorary.adapters.engine.compatibility import check_version, transformers

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            check_version()
        except LoraryError as error:
            yield Finding("engine", str(error), amiss=True)
            return
    untested = next((str(one.message) for one in told), "")
    yield Finding("engine", untested or f"transformers {transformers.__version__}, which it was tested with")


def hub() -> Iterator[Finding]:
    """Who is logged in, and where files are kept. Nothing is asked of the network."""
    from huggingface_hub import constants, get_token

    where = f" at {constants.ENDPOINT}" if constants.ENDPOINT != "https://huggingface.co" else ""
    offline = " (offline, by HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    there = "a token is there" if get_token() else "no token"
    mend = "" if get_token() else "hf auth login, to push and to read what is private"
    yield Finding("Hub", f"{there}{where}{offline}", mend)
    yield _disk("Hub's cache", Path(constants.HF_HUB_CACHE))


def catalogue(registry: Registry) -> Iterator[Finding]:
    """Can the registry be read and written, and is there room beside it?"""
    if not registry.path.exists():
        yield Finding("registry", f"none at {registry.path} yet", "`lorary train`, `import` or `pull` makes it")
    else:
        count = registry.search(Filter(), limit=1).total
        yield Finding("registry", f"{registry.path}: {count} version{'s' if count != 1 else ''}")
        try:
            demand_writable(registry.path)
        except LoraryError as error:
            yield Finding("registry", str(error))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_network(registry.path.resolve())
    for one in told:
        yield Finding("registry", str(one.message), amiss=True)
    yield _disk("its disk", registry.path.parent)


def _disk(subject: str, place: Path) -> Finding:
    """What is free where something is kept, or will be once its folder is made."""
    there = next((folder for folder in (place, *place.parents) if folder.is_dir()), None)
    if there is None:
        return Finding(subject, f"{place}: there is no such place", amiss=True)
    free = shutil.disk_usage(there).free
    mend = "free some: a base takes gigabytes, an adapter megabytes" if free < _FEW_BYTES else ""
    return Finding(subject, f"{place}: {size(free)} free", mend, amiss=bool(mend))
