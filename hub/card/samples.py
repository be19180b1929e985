"""The code of a card: how the adapter is used with lorary, and with PEFT alone.

Both are whole scripts; a test runs them for every task. What comes from the adapter stands in them as Python literals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.manifest import GENERATING, MULTI_LABEL, REGRESSION, Generation, Prompt
from lorary.hub.markup import python_literal
from lorary.hub.noted_task import noted_task
from lorary.hub.unnamed_head import naming_its_head
from lorary.hub.values import Version


@dataclass(frozen=True)
class _Texts:
    """What a sample says: a text, one that goes with it, and the text with ``{}`` for a word that is to be guessed."""

    text: str
    pair: str
    masked: str


# By a word of the domain's name: a stranger sees what the adapter is for, and gets an answer that means something.
_TEXTS = {
    "finance": _Texts(
        "Profit rose by 12 percent in the third quarter.",
        "Earnings grew.",
        "Profit {} by 12 percent in the third quarter.",
    ),
    "biomedical": _Texts(
        "Two patients with type 2 diabetes were given metformin.",
        "Metformin was prescribed.",
        "Two {} with type 2 diabetes were given metformin.",
    ),
    "legal": _Texts(
        "The tenant shall pay the rent on the first day of each month.",
        "Rent is due monthly.",
        "The {} shall pay the rent on the first day of each month.",
    ),
    "email": _Texts(
        "You have won a prize, answer today to claim it.",
        "A prize is waiting.",
        "You have won a {}, answer today to claim it.",
    ),
}
_TEXTS |= {
    "medical": _TEXTS["biomedical"],
    "clinical": _TEXTS["biomedical"],
    "law": _TEXTS["legal"],
    "spam": _TEXTS["email"],
}
_ANY = _Texts(
    "The committee meets again in Geneva on Monday.",
    "There is another meeting.",
    "The committee {} again in Geneva on Monday.",
)


def _texts(version: Version) -> _Texts:
    return next((_TEXTS[word] for word in version.domain.split("-") if word in _TEXTS), _ANY)


def lorary_sample(version: Version, checkpoint: Checkpoint, where: str) -> str:
    """A script that loads the adapter from ``where`` through lorary and uses it once."""
    quantization = f", quantization={python_literal(version.quantization)}" if version.quantization != "none" else ""
    ask = "generate" if version.task in GENERATING else "predict"
    return "\n".join(
        [
            "from lorary.adapters import Backbone",
            "",
            f"backbone = Backbone.from_pretrained({_base(version)}{quantization})",
            f"adapter = backbone.load({python_literal(where)})",
            f"print(backbone.{ask}({_row(version, checkpoint)}, adapter=adapter.name))",
        ]
    )


def peft_sample(version: Version, checkpoint: Checkpoint, where: str) -> str:
    """A script that loads the adapter from ``where`` with PEFT and transformers alone and uses it once."""
    auto_class = _auto_class(version.task, checkpoint)
    labels = _labels(checkpoint)
    # transformers loads in the dtype that the base was saved in, and in half precision rounds the numbers.
    exact = ["dtype=torch.float32"] if _problem(checkpoint) == REGRESSION else []
    # A base may have a head of its own, for other labels; the adapter has another one to put there.
    head = [f"num_labels={len(labels)}", "ignore_mismatched_sizes=True"] if labels else []
    arguments = ", ".join(["base", *head, *exact])
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f"base, adapter = {_base(version)}, {python_literal(where)}",
    ]
    if labels:
        lines.append(f"labels = [{', '.join(map(python_literal, labels))}]")
    if version.quantization != "none":
        lines.append(f"# trained on {version.quantization} weights; pass quantization_config= for the same here")
    added = checkpoint.manifest.added_tokens if checkpoint.manifest else None
    rows = "model.get_input_embeddings().num_embeddings"
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if added else 'base'})",
        f"model = {auto_class}.from_pretrained({arguments})",
        *([f"model.resize_token_embeddings(max(len(tokenizer), {rows}))"] if added else []),
        "model = PeftModel.from_pretrained(model, adapter).eval()",
        "",
        *_USES[version.task](version, checkpoint),
    ]
    return "\n".join(lines)


def _base(version: Version) -> str:
    return python_literal(version.base_id or "the-base-model")


def _row(version: Version, checkpoint: Checkpoint) -> str:
    """A row for ``predict``, or a prompt for ``generate``."""
    if version.task == "question-answering":
        return '{"question": "Who is the tenant?", "context": "The tenant is Ann Smith."}'
    if version.task == "fill-mask":
        return _masked(version, checkpoint, "backbone.tokenizer.mask_token")
    if version.task == "text-classification" and "text_pair" in checkpoint.preprocessing.columns:
        texts = _texts(version)
        return f'{{"text": "{texts.text}", "text_pair": "{texts.pair}"}}'
    return f'"{_prompt_text(version)}"'


def _prompt_text(version: Version) -> str:
    return "What is a lease?" if version.task == "text-generation" else _texts(version).text


def _masked(version: Version, checkpoint: Checkpoint, token: str) -> str:
    filling = checkpoint.manifest.filling if checkpoint.manifest else None
    if filling is not None and filling.gaps == "sentinels":
        return f'"{_texts(version).masked.format("<extra_id_0>")}"'
    return f'f"{_texts(version).masked.format("{" + token + "}")}"'


def _auto_class(task: str, checkpoint: Checkpoint) -> str:
    if task == "fill-mask" and checkpoint.manifest is not None and checkpoint.manifest.filling is not None:
        return "AutoModelForSeq2SeqLM"
    if task in ("summarization", "translation"):
        causal = noted_task(checkpoint.config) == "text-generation"
        return "AutoModelForCausalLM" if causal else "AutoModelForSeq2SeqLM"
    return {
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "fill-mask": "AutoModelForMaskedLM",
        "feature-extraction": "AutoModel",
        "text-generation": "AutoModelForCausalLM",
    }[task]


def _labels(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The manifest's labels; of a foreign classifier as many as its head has rows, named as lorary names them."""
    if checkpoint.manifest:
        return checkpoint.manifest.labels or ()
    if noted_task(checkpoint.config) not in ("text-classification", "token-classification"):
        return ()
    heads = naming_its_head(checkpoint.config, checkpoint.tensors).get("modules_to_save") or []
    heads = [f".{name}." for name in heads if isinstance(name, str)] if isinstance(heads, list) else []
    weights = [
        info for name, info in checkpoint.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and any(head in name for head in heads)
    ]  # fmt: skip
    return tuple(f"LABEL_{index}" for index in range(weights[-1].shape[0])) if weights else ()


def _problem(checkpoint: Checkpoint) -> str | None:
    return checkpoint.manifest.problem_type if checkpoint.manifest else None


def _tokenize(checkpoint: Checkpoint, *texts: str) -> str:
    """The line that makes ``inputs`` from texts, each a Python expression."""
    limit = checkpoint.preprocessing.max_length
    cut = f", truncation=True, max_length={limit}" if limit else ""
    return f'inputs = tokenizer({", ".join(texts)}{cut}, return_tensors="pt")'


def _prefixed(checkpoint: Checkpoint, text: str) -> str:
    return python_literal(checkpoint.preprocessing.prefix + text)


_LOGITS = ["with torch.no_grad():", "    logits = model(**inputs).logits[0]"]


def _text_classification(version: Version, checkpoint: Checkpoint) -> list[str]:
    pair = [python_literal(_texts(version).pair)] if "text_pair" in checkpoint.preprocessing.columns else []
    lines = [_tokenize(checkpoint, _prefixed(checkpoint, _texts(version).text), *pair), *_LOGITS]
    problem = _problem(checkpoint)
    if problem == REGRESSION or not _labels(checkpoint):
        return [*lines, "print(logits.tolist())"]
    if problem == MULTI_LABEL:
        own = checkpoint.manifest.thresholds if checkpoint.manifest else None
        least = f"torch.tensor({list(own)})" if own else "0.5"
        return [*lines, f"print([label for label, on in zip(labels, logits.sigmoid() >= {least}) if on])"]
    return [*lines, "print(labels[int(logits.argmax())])"]


def _token_classification(version: Version, checkpoint: Checkpoint) -> list[str]:
    show = "print(list(zip(tokens, [labels[index] for index in logits.argmax(-1).tolist()])))"
    return [
        _tokenize(checkpoint, _prefixed(checkpoint, _texts(version).text)),
        *_LOGITS,
        'tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])',
        show if _labels(checkpoint) else "print(list(zip(tokens, logits.argmax(-1).tolist())))",
    ]


def _question_answering(_version: Version, _checkpoint: Checkpoint) -> list[str]:
    return [
        'inputs = tokenizer("Who is the tenant?", "The tenant is Ann Smith.", return_tensors="pt")',
        "with torch.no_grad():",
        "    outputs = model(**inputs)",
        "start, end = int(outputs.start_logits.argmax()), int(outputs.end_logits.argmax())",
        'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))',
    ]


def _fill_mask(version: Version, checkpoint: Checkpoint) -> list[str]:
    asked = _tokenize(checkpoint, _masked(version, checkpoint, "tokenizer.mask_token"))
    filling = checkpoint.manifest.filling if checkpoint.manifest else None
    if filling is not None:
        language = checkpoint.preprocessing.source_lang
        behind = filling.gaps == "sentinels"  # what fills the gap, else the whole text
        most = f"{filling.longest + 3}" if behind else f'inputs["input_ids"].shape[1] + {filling.longest}'
        return [
            *([f"tokenizer.src_lang = {python_literal(language)}"] if language else []),
            asked,
            f"output = model.generate(**inputs, max_new_tokens={most}, do_sample=False)[0]",
            f"print(tokenizer.decode(output, skip_special_tokens={not behind}))",
        ]
    return [
        asked,
        *_LOGITS,
        'masked = inputs["input_ids"][0] == tokenizer.mask_token_id',
        "print(tokenizer.decode(logits[masked].argmax(-1)))",
    ]


def _feature_extraction(version: Version, checkpoint: Checkpoint) -> list[str]:
    lines = [
        _tokenize(checkpoint, _prefixed(checkpoint, _texts(version).text)),
        "with torch.no_grad():",
        "    states = model(**inputs).last_hidden_state[0]",
    ]
    pooling = checkpoint.pooling
    if pooling is None:
        return [*lines, "print(states.shape)"]
    how = {"mean": "states.mean(dim=0)", "cls": "states[0]", "last": "states[-1]"}[pooling.mode]
    lines.append(f"embedding = {how}")
    if pooling.normalize:
        lines.append("embedding = torch.nn.functional.normalize(embedding, dim=0)")
    return [*lines, "print(embedding)"]


def _generation(version: Version, checkpoint: Checkpoint) -> list[str]:
    manifest = checkpoint.manifest
    prompt = (manifest.prompt if manifest else None) or Prompt()
    made = manifest.generation if manifest and manifest.generation else Generation(64)
    ask = _prompt_text(version)
    text = _prefixed(checkpoint, ask)
    if prompt.format == "chat":
        told = {"chat_template": prompt.chat_template, **(prompt.chat_template_kwargs or {})}
        template = "".join(f", {name}={python_literal(value)}" for name, value in told.items() if value is not None)
        lines = [
            f'messages = [{{"role": "user", "content": {text}}}]',
            "inputs = tokenizer.apply_chat_template(",
            f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{template}',
            ")",
        ]
    elif prompt.template:
        lines = [
            f'prompt = {_prefixed(checkpoint, prompt.template)}.replace("{{prompt}}", {python_literal(ask)})',
            'inputs = tokenizer(prompt, return_tensors="pt")',
        ]
    else:
        lines = [f'inputs = tokenizer({text}, return_tensors="pt")']
    beams = f", num_beams={made.num_beams}" if made.num_beams > 1 else ""
    lines.append(f"output = model.generate(**inputs, max_new_tokens={made.max_new_tokens}, do_sample=False{beams})[0]")
    cut = "" if _writes_apart(version, checkpoint) else '[inputs["input_ids"].shape[1] :]'
    return [*lines, f"print(tokenizer.decode(output{cut}, skip_special_tokens=True))"]


def _writes_apart(version: Version, checkpoint: Checkpoint) -> bool:
    """Does the model put its text into a sequence of its own, as encoder-decoders do?"""
    apart = _auto_class(version.task, checkpoint) == "AutoModelForSeq2SeqLM"
    return apart or checkpoint.config.get("task_type") == "SEQ_2_SEQ_LM"


def _rewriting(version: Version, checkpoint: Checkpoint) -> list[str]:
    """As :func:`_generation`; a multilingual tokenizer is told the languages."""
    preprocessing, lines = checkpoint.preprocessing, _generation(version, checkpoint)
    if not preprocessing.source_lang or not preprocessing.target_lang or not _writes_apart(version, checkpoint):
        return lines
    # M2M100's codes have no underscore, and its tokens are called otherwise than its codes.
    method = "convert_tokens_to_ids" if "_" in preprocessing.target_lang else "get_lang_id"
    target = f"tokenizer.{method}({python_literal(preprocessing.target_lang)})"
    lines = [
        line.replace("do_sample=False", f"do_sample=False, forced_bos_token_id={target}", 1)
        if line.startswith("output = ") else line
        for line in lines
    ]  # fmt: skip
    return [f"tokenizer.src_lang = {python_literal(preprocessing.source_lang)}", *lines]


_USES: Mapping[str, Callable[[Version, Checkpoint], list[str]]] = {
    "text-classification": _text_classification,
    "token-classification": _token_classification,
    "question-answering": _question_answering,
    "fill-mask": _fill_mask,
    "feature-extraction": _feature_extraction,
    "summarization": _rewriting,
    "translation": _rewriting,
    "text-generation": _generation,
}
