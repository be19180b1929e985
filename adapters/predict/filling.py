"""Fill-mask on an encoder-decoder: beams write what fills a text's gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from lorary.adapters.arguments import demand_known, whole_number
from lorary.adapters.layer.routing import Routing, routed
from lorary.adapters.predict.base import Row, read_text
from lorary.adapters.text.gaps import Gapped, find_gaps, sentinel_ids
from lorary.adapters.text.generate import pad_prompts
from lorary.adapters.text.languages import speaking, target_settings
from lorary.hub.errors import UsageError

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.running.inference import Inference

_TOP_K = 5  # the pipeline's
_MOST_BEAMS = 100
_IMPOSSIBLE = -1e8  # transformers starts the beams that don't exist yet at -1e9


def fills(adapter: Adapter | None) -> bool:
    """Does an adapter fill gaps by writing?"""
    manifest = adapter.manifest if adapter is not None else None
    return manifest is not None and manifest.task == "fill-mask" and manifest.filling is not None


def fill_rows(inference: Inference, rows: Sequence[Row], routing: Routing, params: Mapping[str, Any]) -> list[Any]:
    """For each row ``[{"score", "token", "token_str", "sequence"}]``, the ``top_k`` (5) best fillings of its gap.

    ``token`` is a list: as many tokens as fill the gap. ``score`` is the probability of writing just these there and
    then going on with the text. For several gaps there is one such list for each; they are filled together, so that
    what stands in the same place of each belongs together, with one score and one sequence.

    Beam search, so that the best aren't certain to be found. Beams that can't be told apart by then may be fewer
    than ``top_k``.

    Raises:
        UsageError: a row without a gap, a parameter that only masked language models take, or no encoder-decoder.
    """
    if not inference.model.config.is_encoder_decoder:
        raise UsageError(
            "the adapter writes what fills a gap, which takes an encoder-decoder, as T5 and BART are, and "
            f"{type(inference.model).__name__} is none; open the base that it was trained on"
        )
    if params.get("targets") is not None:
        raise UsageError("targets: an encoder-decoder fills a gap with as many tokens as it likes; leave it out")
    top_k = whole_number("top_k", params.get("top_k") or _TOP_K, most=_MOST_BEAMS)
    encoded: list[tuple[list[int], Gapped, tuple[tuple[str, int], ...]]] = []
    with inference.tokenizing:
        for row, adapter in zip(rows, routing.adapters, strict=True):
            encoded.append(_encode(row, adapter, inference.tokenizer_of(adapter)))
    groups: dict[Any, list[int]] = {}
    for place, (_, _, start) in enumerate(encoded):
        alone = None if routing.uniform or inference.rows_first else routing.adapters[place]
        groups.setdefault((start, alone), []).append(place)
    found: dict[int, Any] = {}
    for (start, _), places in groups.items():
        chosen = [encoded[place][:2] for place in places]
        made = _search(inference, chosen, routing.subset(places), dict(start), top_k)
        for place, (_, gapped), beams in zip(places, chosen, made, strict=True):
            found[place] = _told(gapped, beams, inference.tokenizer_of(routing.adapters[place]))
    return [found[place] for place in range(len(rows))]


def _encode(row: Row, adapter: Adapter | None, tokenizer: Any) -> tuple[list[int], Gapped, tuple[tuple[str, int], ...]]:
    """A row's tokens, its gaps, and what the decoder starts from, where its language says."""
    assert adapter is not None
    assert adapter.manifest is not None
    assert adapter.manifest.filling is not None
    preprocessing, filling = adapter.manifest.preprocessing, adapter.manifest.filling
    text, _ = read_text(row, preprocessing.columns)
    limit = preprocessing.max_length
    cut = {"truncation": True, "max_length": limit} if limit else {}
    with speaking(tokenizer, preprocessing.source_lang, preprocessing.target_lang):
        ids = list(tokenizer(preprocessing.prefix + text, verbose=False, **cut)["input_ids"])
    settings = target_settings(tokenizer, preprocessing.source_lang, preprocessing.target_lang)
    start = tuple((name, value) for name, value in settings.items() if name == "decoder_start_token_id")
    return ids, find_gaps(ids, tokenizer, filling.gaps, filling.longest), start


def _search(
    inference: Inference,
    rows: Sequence[tuple[list[int], Gapped]],
    routing: Routing,
    start: dict[str, int],
    top_k: int,
) -> list[list[tuple[float, list[int]]]]:
    """For each row, what its best beams wrote, with its log-probability in nats."""
    beams = max(top_k, _TOP_K)  # so that the first of five is the first of one, too
    gapped = [row for _, row in rows]
    banned = [
        _never(inference.tokenizer_of(adapter), inference.model.config.vocab_size) for adapter in routing.adapters
    ]
    batch = pad_prompts([ids for ids, _ in rows], encoder_decoder=True, pad=inference.pad_id)
    demand_known(int(batch["input_ids"].max()), inference.vocabulary)
    ends = {row.end for row in gapped}
    with torch.no_grad(), routed(routing):
        made = inference.model.generate(
            **{name: tensor.to(inference.device) for name, tensor in batch.items()},
            **start,
            num_beams=beams, num_return_sequences=top_k, max_new_tokens=max(row.most for row in gapped),
            do_sample=False, length_penalty=0.0, early_stopping=False, min_length=0, no_repeat_ngram_size=0,
            repetition_penalty=1.0, forced_bos_token_id=None, forced_eos_token_id=None, bad_words_ids=None,
            eos_token_id=sorted(ends), pad_token_id=inference.pad_id, return_dict_in_generate=True, output_scores=True,
            logits_processor=LogitsProcessorList([_InGaps(gapped, banned, beams)]),
        )  # fmt: skip
    written = made.sequences[:, 1:].tolist()
    scored = list(zip(made.sequences_scores.tolist(), written, strict=True))
    each = [scored[place * top_k : (place + 1) * top_k] for place in range(len(rows))]
    return [[(score, ids) for score, ids in own if score > _IMPOSSIBLE] for own in each]


def _never(tokenizer: Any, vocabulary: int) -> list[int]:
    """Tokens that fill no gap: the special ones, sentinels, and ids that stand for nothing."""
    special = {*tokenizer.all_special_ids, *sentinel_ids(tokenizer), *range(len(tokenizer), vocabulary)}
    return sorted(token for token in special if token < vocabulary)


class _InGaps(LogitsProcessor):
    """Keeps beams to the text: free in the gaps, and around them given, which adds nothing to their scores."""

    def __init__(self, rows: Sequence[Gapped], never: Sequence[list[int]], beams: int) -> None:
        self._rows, self._never, self._beams = rows, never, beams

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """``scores`` [beams of all rows, vocabulary], log-probabilities, with what can't come next at -inf."""
        made = torch.full_like(scores, -math.inf)
        for place, ids in enumerate(input_ids.tolist()):
            row = place // self._beams
            step = self._rows[row].step(ids[1:])
            if step.free:
                made[place] = scores[place]
                made[place, self._never[row]] = -math.inf
            if step.token is not None:
                made[place, step.token] = 0.0 if step.given else scores[place, step.token]
        return made  # type: ignore[return-value]


def _told(gapped: Gapped, beams: Sequence[tuple[float, list[int]]], tokenizer: Any) -> Any:
    """The beams of a row in the shape of transformers' fill-mask pipeline."""
    gaps: list[list[dict[str, Any]]] = [[] for _ in gapped.parts[1:]]
    for score, written in beams:
        fillings = gapped.fillings(written)
        sequence = tokenizer.decode(gapped.whole(fillings), skip_special_tokens=True)
        for own, filling in zip(gaps, fillings, strict=True):
            own.append(
                {
                    "score": math.exp(score),
                    "token": list(filling),
                    "token_str": tokenizer.decode(list(filling)),
                    "sequence": sequence,
                }
            )
    return gaps[0] if len(gaps) == 1 else gaps
