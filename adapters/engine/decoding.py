"""How a request's next token is chosen: by its own settings and its own random numbers, whatever shares its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.engine.penalties import PENALTIES, plan_penalties
from lorary.adapters.text.generate import room_for
from lorary.adapters.text.settings import check_settings
from lorary.adapters.text.structure import Beginning, Structure
from lorary.hub.errors import UsageError

SETTINGS = (
    "max_new_tokens", "min_new_tokens", "eos_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "renormalize_logits", "stop_strings", "num_beams",
)  # fmt: skip
"""The arguments of transformers' ``generate`` that a request may have; of ``num_beams``, 1 alone is served."""

_SERVED = {
    "num_beams": (None, 1), "num_return_sequences": (None, 1), "guidance_scale": (None, 1), "max_time": (None,),
    "token_healing": (None, False),
}  # fmt: skip
"""What a request gets alone of some settings, which an adapter or the base may have otherwise."""


@dataclass(frozen=True)
class Decoding:
    """A request's settings, ready to use.

    ``processors`` are those that ``generate`` would apply to its logits, with those of the request's structure and
    penalties among them; ``generator`` is there when it samples. ``stop_strings`` is transformers' criterion for the
    texts that end it, ``structure`` what its text has to match, None where there are none.
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    processors: Any
    generator: torch.Generator | None
    stop_strings: Any = None
    structure: Structure | None = None

    @property
    def plain(self) -> bool:
        """Is the next token simply the likeliest one?"""
        return self.generator is None and not len(self.processors)

    def ends(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Is the text complete?

        It is where the prompt with the tokens that came after ends with a stop string, as ``generate`` sees it, and
        where nothing can follow in its structure.
        """
        if self.structure is not None and self.structure.ends(tokens):
            return True
        if self.stop_strings is None:
            return False
        reads = self.stop_strings.maximum_token_len
        before = max(len(prompt) + min(len(tokens) - reads, 0), 0)  # what of the prompt the criterion doesn't reach
        return bool(self.stop_strings(torch.tensor([[*prompt[before:], *tokens[-reads:]]], device="cpu"), None))

    def choose(self, logits: torch.Tensor, sequence: Sequence[int]) -> torch.Tensor:
        """The token, [1], that follows ``sequence`` (the prompt and what came after), by float32 logits [vocabulary].

        The same arithmetic as ``generate``'s on a row of its own, so the same seed gives the same tokens. It may
        write to the logits.

        Raises:
            ValueError: no token can follow in the text's structure that other settings allow, or what the structure
                itself has against the text.
        """
        ids = torch.tensor([list(sequence)], device=logits.device)
        scores = self.processors(ids, logits.unsqueeze(0))
        if self.structure is not None and bool(scores.isneginf().all()):
            raise ValueError(
                "other settings forbid all that may follow in the text's structure; leave some of them out"
            )
        if self.generator is None:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator).squeeze(1)


def plan_decoding(
    model: Any,
    prompt: Sequence[int],
    seed: int | None,
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
    tokenizer: Any,
    beginning: Beginning | None = None,
) -> Decoding:
    """The decoding of a request with these tokens as its prompt.

    From arguments of ``generate`` and OpenAI's penalties, what the adapter asks for where they say nothing (``own``),
    and the base's own. ``tokenizer`` is that of its adapter, by which stop strings are found. The text has to match
    the structure of ``beginning``.

    Raises:
        UsageError: a setting that an engine doesn't serve, one that has no meaning, or no room for a new token.
    """
    unknown = [name for name in settings if name not in (*SETTINGS, *PENALTIES)]
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)}: not for an engine's requests, which take seed, {', '.join((*SETTINGS, *PENALTIES))}"
            "; use Backbone.generate for the others"
        )
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    before, after = plan_penalties(settings, len(prompt), vocabulary, model.device)
    settings = {name: value for name, value in settings.items() if name in SETTINGS}
    check_settings(settings)
    try:
        config, _ = model._prepare_generation_config(None, **{**own, **settings})
        config.validate()
    except (ValueError, TypeError) as error:
        raise UsageError(f"the request's settings: {error}") from error
    _demand_served(config)
    if seed is not None and not config.do_sample:
        raise UsageError(
            f"seed={seed} without do_sample=True: greedy decoding draws nothing; pass one or drop the other"
        )
    stop_tokens, new_tokens = _stop_tokens(config), _new_tokens(model, config, len(prompt))
    # generate sets these up on its way; the processors behind min_new_tokens, bad_words_ids and a forced end read them.
    config._eos_token_tensor = torch.tensor(stop_tokens, device=model.device) if stop_tokens else None
    config.max_length = len(prompt) + new_tokens
    ids = torch.tensor([list(prompt)], device=model.device)
    try:
        processors = model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=ids,
            logits_processor=after,  # before those that sampling alone has
            device=model.device,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"the request's settings: {error}") from error
    processors[:0] = before
    structure = None if beginning is None else Structure(beginning, len(prompt), stop_tokens)
    if structure is not None:
        processors.insert(0, structure)  # the likeliest tokens are then the likeliest of those that may follow
    generator = _generator(seed, model.device) if config.do_sample else None
    stop_strings = _stop_strings(config.stop_strings, tokenizer)
    return Decoding(new_tokens, stop_tokens, processors, generator, stop_strings, structure)


def _demand_served(config: Any) -> None:
    mode = config.get_generation_mode().value
    asked = [mode] if mode not in ("greedy_search", "sample") else []
    values = {name: getattr(config, name, None) for name in _SERVED}
    asked += [f"{name}={value}" for name, value in values.items() if value not in _SERVED[name]]
    if asked:
        raise UsageError(
            f"the request, its adapter or the base's generation_config asks for {', '.join(asked)}; an engine decodes "
            "greedily or samples, one answer from its beginning to its end: use Backbone.generate, pass num_beams=1, "
            "or change backbone.model.generation_config"
        )


def _stop_strings(texts: Any, tokenizer: Any) -> Any:
    from transformers import StopStringCriteria

    if not texts:
        return None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(f"stop_strings={texts!r}: expected a text, or a list of texts")
    try:
        return StopStringCriteria(tokenizer, list(texts))
    except ValueError as error:  # it reads the vocabulary as byte-level, or as sentencepiece's
        raise UsageError(f"stop_strings: transformers can't find texts with a {type(tokenizer).__name__}") from error


def _new_tokens(model: Any, config: Any, prompt_tokens: int) -> int:
    most = config.max_new_tokens
    if most is None:
        return room_for(model, prompt_tokens, {})
    if not isinstance(most, int) or most < 1:
        raise UsageError(f"max_new_tokens={most}: expected at least 1")
    return most


def _stop_tokens(config: Any) -> tuple[int, ...]:
    named = config.eos_token_id
    tokens = tuple(named) if isinstance(named, Sequence) else () if named is None else (named,)
    if not all(isinstance(token, int) for token in tokens):
        raise UsageError(f"eos_token_id={named!r}: expected the id of a token, or a list of them")
    return tokens


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    elif type(seed) is int and 0 <= seed < 2**64:
        generator.manual_seed(seed)
    else:
        raise UsageError(f"seed={seed!r}: expected a whole number from 0 to 2**64 - 1")
    return generator
