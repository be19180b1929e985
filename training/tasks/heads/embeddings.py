"""Embeddings in training: pooled by the batch, compared by their cosine, and measured by what they find."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

FOUND_WITHIN = 10
OWN, OTHER, LEFT_OUT = 1, 0, -1
_CHUNK = 1024


def pool_batch(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Embeddings [rows, hidden] from states [rows, tokens, hidden] that are padded on the right.

    What :func:`lorary.adapters.predict.feature_extraction.pool` makes of each row without its padding.
    """
    if mode == "cls":
        return states[:, 0]
    counts = mask.sum(dim=1)
    if mode == "last":
        return states[torch.arange(len(states), device=states.device), counts - 1]
    return (states * mask.unsqueeze(-1)).sum(dim=1) / counts.unsqueeze(-1)


def relations(own: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """What each candidate is to each text [rows, candidates], candidate ``i`` being the positive of text ``i``.

    ``OWN`` for that, ``OTHER`` for those to be told from it, ``LEFT_OUT`` for those that are no negatives though they
    stand in the batch: the same positive again, the text itself, and the positives of the same text in other rows.

    Args:
        own: the texts' numbers [rows]; equal texts have equal ones.
        given: the candidates' numbers [candidates].
    """
    rows = len(own)
    same = (given == own.unsqueeze(1)) | (given == given[:rows].unsqueeze(1))
    same[:, :rows] |= own == own.unsqueeze(1)
    found = torch.where(same, LEFT_OUT, OTHER)
    found.fill_diagonal_(OWN)
    return found


def ranking(texts: torch.Tensor, candidates: torch.Tensor, relation: torch.Tensor, temperature: float) -> torch.Tensor:
    """The cross-entropy of finding each text's own positive by cosine (InfoNCE, van den Oord et al. 2018).

    Args:
        texts: [rows, hidden].
        candidates: [candidates, hidden], the positives in the rows' order first.
        relation: of :func:`relations`.
        temperature: what cosines are divided by.
    """
    scores = normalize(texts, dim=1) @ normalize(candidates, dim=1).T / temperature
    scores = scores.masked_fill(relation == LEFT_OUT, float("-inf"))
    return cross_entropy(scores, torch.arange(len(texts), device=texts.device))


def cosent(texts: torch.Tensor, others: torch.Tensor, scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """CoSENT (Huang et al. 2024): of each two pairs the one with the higher score should have the higher cosine.

    Args:
        texts: [rows, hidden].
        others: [rows, hidden].
        scores: [rows], of any range: only their order counts.
        temperature: what cosines are divided by.
    """
    cosines = cosine_similarity(texts, others) / temperature
    wrong_by = cosines.unsqueeze(1) - cosines.unsqueeze(0)
    lower = scores.unsqueeze(1) < scores.unsqueeze(0)
    wrong_by = wrong_by.masked_fill(~lower, float("-inf")).flatten()
    return torch.logsumexp(torch.cat([wrong_by.new_zeros(1), wrong_by]), dim=0)


def cosent_of_rows(rows: Sequence[torch.Tensor], scores: Sequence[float], temperature: float) -> list[float]:
    """:func:`cosent` of the comparisons that each row takes part in, all rows being one batch."""
    cosines = torch.stack([cosine_similarity(row[0], row[1], dim=0) for row in rows]) / temperature
    given = torch.tensor(scores)
    found = []
    for cosine, score in zip(cosines, given, strict=True):
        wrong_by = torch.where(given > score, cosine - cosines, cosines - cosine)[given != score]
        found.append(float(torch.logsumexp(torch.cat([wrong_by.new_zeros(1), wrong_by]), dim=0)))
    return found


def ranking_of_rows(
    rows: Sequence[torch.Tensor], texts: Sequence[tuple[str, ...]], temperature: float
) -> tuple[list[float], list[str]]:
    """:func:`ranking` of each row, all rows being one batch in which a text stands once; and the text nearest to each.

    Args:
        rows: embeddings [texts of the row, hidden]: the text, its positive, and where there is one a negative.
        texts: the same as texts.
        temperature: what cosines are divided by.
    """
    positives, _, names, matrix = _candidates(rows, texts)
    places = {name: place for place, name in enumerate(names)}
    losses, nearest = [], []
    for row, made in zip(texts, rows, strict=True):
        cosines = matrix @ normalize(made[0], dim=0)
        others = {*positives[row[0]], row[0]} - {row[1]}
        cosines[[places[name] for name in others if name in places]] = float("-inf")
        losses.append(float(cross_entropy(cosines / temperature, torch.tensor(places[row[1]]))))
        nearest.append(names[int(cosines.argmax())])
    return losses, nearest


def _candidates(
    rows: Sequence[torch.Tensor], texts: Sequence[tuple[str, ...]]
) -> tuple[dict[str, set[str]], dict[str, torch.Tensor], list[str], torch.Tensor]:
    """Each first text's positives, each text's embedding, and all other texts once with their embeddings, length 1."""
    positives: dict[str, set[str]] = {}
    for row in texts:
        positives.setdefault(row[0], set()).add(row[1])
    pairs = (zip(row, made, strict=True) for row, made in zip(texts, rows, strict=True))
    vectors = {text: vector for pair in pairs for text, vector in pair}
    names = list(dict.fromkeys(text for row in texts for text in row[1:]))
    return positives, vectors, names, normalize(torch.stack([vectors[name] for name in names]), dim=1)


def correlations(rows: Sequence[torch.Tensor], scores: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's correlation of the pairs' cosines with their scores; 0 where one of them is constant."""
    from scipy.stats import pearsonr, spearmanr

    cosines = [float(cosine_similarity(row[0], row[1], dim=0)) for row in rows]
    if len(set(cosines)) < 2 or len(set(scores)) < 2:
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(cosines, scores).statistic),
        "pearson": float(pearsonr(cosines, scores).statistic),
    }


def retrieval(rows: Sequence[torch.Tensor], texts: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """How each row's first text finds its positives by cosine among all other texts, each of which counts once.

    A text may have several rows, and so several positives; it is never a candidate for itself. Among candidates of the
    same cosine the right ones come last, so that embeddings which are all alike find nothing.

    Args:
        rows: embeddings [texts of the row, hidden]: the text, its positive, and where there is one a negative.
        texts: the same as texts.
    """
    positives, vectors, names, matrix = _candidates(rows, texts)
    places = {name: place for place, name in enumerate(names)}
    first, reciprocal, recall = [], [], []
    asked = list(positives)
    for start in range(0, len(asked), _CHUNK):
        chunk = asked[start : start + _CHUNK]
        scores = normalize(torch.stack([vectors[text] for text in chunk]), dim=1) @ matrix.T
        for text, own in zip(chunk, scores, strict=True):
            right = torch.tensor(sorted(places[name] for name in positives[text]))
            if text in places and text not in positives[text]:
                own[places[text]] = float("-inf")
            wrong = own.clone()
            wrong[right] = float("-inf")
            # The rank of each right one among itself, the wrong ones as near, and the right ones nearer.
            better = (wrong.unsqueeze(0) >= own[right].unsqueeze(1)).sum(dim=1)
            ranks = (better + torch.arange(1, len(right) + 1)[own[right].argsort(descending=True).argsort()]).tolist()
            best = min(ranks)
            first.append(float(best == 1))
            reciprocal.append(1 / best if best <= FOUND_WITHIN else 0.0)
            recall.append(sum(rank <= FOUND_WITHIN for rank in ranks) / len(ranks))
    count = len(asked)
    found = {
        "accuracy@1": sum(first) / count,
        f"mrr@{FOUND_WITHIN}": sum(reciprocal) / count,
        f"recall@{FOUND_WITHIN}": sum(recall) / count,
    }
    if len(texts[0]) == 3:
        nearer = [cosine_similarity(row[:1], row[1:], dim=1) for row in rows]
        found["triplet_accuracy"] = sum(float(positive > negative) for positive, negative in nearer) / len(nearer)
    return found
