"""Loading a base model: resolved, quantized, guarded and identified, the same way for training and for serving."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.base.bodies import parts_of_body
from lorary.adapters.base.device import pick_device, pick_dtype
from lorary.adapters.base.identity import body_of, identify
from lorary.adapters.base.modules import demand_embedding
from lorary.adapters.base.quantization import guard_cpu, quantization_config
from lorary.adapters.base.tokenizer import read_tokenizer
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import BaseNotFoundError, UsageError, first_line
from lorary.hub.manifest import BaseIdentity

_ALONE = threading.RLock()


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory, and the folder it was read from.

    ``new_parameters`` are the names that its files don't hold, so they are random; ``other_shapes`` those of them that
    the files hold in another shape: a head for other labels.
    """

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    files: str
    new_parameters: tuple[str, ...] = ()
    other_shapes: tuple[str, ...] = ()


def load_base(
    base: str,
    *,
    auto_class: Any = None,
    quantization: str = "none",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    skip_modules: Sequence[str] = (),
    **model_kwargs: Any,
) -> LoadedBase:
    """Load a base model and its tokenizer.

    Args:
        base: a folder, or an id that is looked up in the local cache, then on the Hub.
        auto_class: the transformers class to load with; by default the one that :func:`natural_class` picks.
        quantization: one of :data:`lorary.adapters.base.quantization.QUANTIZATIONS`.
        dtype: of what isn't quantized, and of 4-bit products.
        device: where to put the model; the first CUDA device (or the one that the process has chosen) by default, else
            the CPU.
        device_map: transformers' own, to spread a model over devices; excludes ``device``.
        revision: the branch, tag or commit on the Hub.
        skip_modules: modules to leave in full precision besides the heads.
        model_kwargs: further arguments of ``from_pretrained``.

    Raises:
        UsageError: an unknown device, dtype or quantization, a device beside a map, devices that don't hold it all, or
            a model that reads no token ids.
        BaseNotFoundError: no such folder or id, not a model that transformers can load, files that hold other weights
            than its config says, or a tokenizer that is broken.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers import AutoConfig

    if device is not None and device_map is not None:
        raise UsageError(
            f"device={str(device)!r} and device_map={device_map!r}: the map spreads the base over several devices, and "
            "the other names one; give one of them"
        )
    place = pick_device(device)
    chosen = pick_dtype(place, dtype)
    quantized = quantization_config(quantization, chosen, skip_modules)  # a wrong one is refused before any download
    resolved = resolve_base(base, revision=revision)
    # Said, since transformers asks at the terminal where it isn't: an adapter's base may be anybody's.
    trusted = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(resolved.path, **trusted)
        auto_class = auto_class or natural_class(config)
        with quietly():
            model, info = auto_class.from_pretrained(
                resolved.path,
                dtype=chosen,
                device_map=device_map if device_map is not None else {"": place},
                quantization_config=quantized,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # such as may be are looked at below
                key_mapping=_body_renamed(auto_class, config),
                **trusted,
                **model_kwargs,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseNotFoundError(f"base {base!r} can't be loaded as a model: {first_line(error)}") from error
    except (RuntimeError, EOFError, UnpicklingError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):  # its only mark
            raise
        raise BaseNotFoundError(
            f"base {base!r} can't be loaded as a model: its pickled weights are cut off or damaged; fetch them again"
        ) from error
    others = _other_shapes(base, model, info["mismatched_keys"], labelled="num_labels" in model_kwargs)
    tokenizer = read_tokenizer(base, resolved.path)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(
            f"base {base!r}: device={device!r}, device_map={device_map!r} leave weights on disk, on the CPU beside a "
            "GPU, or nowhere; name GPUs that hold all of it, or the CPU alone, or quantize it"
        )
    demand_embedding(model)
    guard_cpu(model)
    model.eval()
    whole = _whole(model, config, resolved.path) if auto_class is not natural_class(config) else model
    identity = identify(whole, tokenizer, resolved.id, resolved.commit)
    if tokenizer is not None:
        _settle_padding(model, tokenizer)
    new = tuple(sorted({*info["missing_keys"], *others}))
    return LoadedBase(model, tokenizer, identity, resolved.path, new, others)


def _other_shapes(base: str, model: Any, found: Collection[tuple[str, Any, Any]], *, labelled: bool) -> tuple[str, ...]:
    """The names of parameters that the files hold in another shape, of ``found`` (names, shapes there, shapes here).

    A head that is asked for with labels may be another than the one that the base was published with.

    Raises:
        BaseNotFoundError: they are of the body, or of a head that isn't ``labelled``.
    """
    body = parts_of_body(model) if found else frozenset()
    for name, theirs, ours in sorted(found):
        if not labelled or name.partition(".")[0] in body:
            raise BaseNotFoundError(
                f"base {base!r} can't be loaded as a model: its files hold {name!r} as {list(theirs)}, its config.json "
                f"says {list(ours)}; fetch all of its files again"
            )
    return tuple(sorted(name for name, _, _ in found))


def _whole(model: Any, config: Any, path: str) -> Any:
    """The model by which its base is known: itself, or the whole base where its class has a part of it alone.

    T5's class for token classification reads no decoder, and the base is the same one for all tasks. What of the base
    makes its identity is compared in bfloat16 anyway.
    """
    if not getattr(config, "is_encoder_decoder", False) or hasattr(body_of(model), "decoder"):
        return model
    with quietly():
        return natural_class(config).from_pretrained(path, dtype=torch.bfloat16, trust_remote_code=False)


def _body_renamed(auto_class: Any, config: Any) -> dict[str, str] | None:
    """How parameters are renamed for a task class that calls its body otherwise than the language model does.

    Llama's for question answering says `transformer` for `model`: transformers finds no such parameters in a language
    model's files and leaves the whole body random.
    """
    from transformers import AutoModel

    prefixes = []
    for one in (AutoModel, auto_class):
        model_class = one._model_mapping.get(type(config), None)
        prefixes.append(getattr(model_class, "base_model_prefix", ""))
    theirs, ours = prefixes
    return {rf"^{theirs}\.": f"{ours}."} if theirs and ours and theirs != ours else None


def _settle_padding(model: Any, tokenizer: Any) -> None:
    """Give tokenizer and model one padding token where they have none, in training and serving the same one.

    The unknown token is preferred to the end of text: a decoder with a classifier looks for the last token that isn't
    padding. In memory only: the base's tokenizer stays what it is.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars and reports: what they say of missing parameters is returned instead.

    One thread at a time: how much is told is the whole process's, and so is the dtype that transformers makes torch's
    default while it builds a model. Two at once would each put back what the other had set.
    """
    from transformers.utils import logging

    with _ALONE:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        if verbosity != logging.ERROR:  # setting it goes through all loggers of the process
            logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if logging.get_verbosity() != verbosity:
                logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def natural_class(config: Any) -> Any:
    """The transformers class under which a base serves every task of its kind.

    A sequence-to-sequence or causal language model keeps its language-modelling head, one that reads images too (Llava,
    Qwen2-VL), which is served texts; everything else is a bare body, to which each adapter brings its own head.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    if is_encoder(config):
        return AutoModel
    if _reads_images(config):
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM


def is_encoder(config: Any) -> bool:
    """Is a base of this config served as a bare body (BERT and its kin), rather than as a language model?"""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return kind not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    # BERT and its kin are in the causal mapping too; only a config that says decoder means it.
    masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return masked or not (kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or _reads_images(config))


def _reads_images(config: Any) -> bool:
    """Is a base of this config a language model that transformers has for images and texts alone?"""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    known = kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
