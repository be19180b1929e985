"""From what was measured to settings, each with its reason, and to what the user should know beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from lorary.hub.metrics import lower_is_better
from lorary.training.advisor.bench import FOLDS, Start
from lorary.training.advisor.beside import Beside
from lorary.training.advisor.probe import Measured
from lorary.training.advisor.rows import RowFacts
from lorary.training.advisor.setting import Setting
from lorary.training.advisor.starts import start_settings
from lorary.training.experiments.bootstrap import Difference, Scorer
from lorary.training.recipe import Recipe

_CUT = 0.01  # the share of rows that may be cut without a word
_NOISE = 0.03  # of a score by the luck of the held-out rows, from which on folds are worth their time
_MANY_PIECES = 3.0  # tokens to a word; of the languages that a tokenizer was made for, about 1.3 (Rust et al. 2021)
_UNKNOWN = 0.01
_LIKELY = 0.8  # of the resamples, from which on a gain that isn't sure is told
_AHEAD = 2 / 3  # the same of a start: trying one costs a training, and probes made the right order where it was tried


def best_start_settings(best: Start, recipe: Recipe, metric: str, probed: bool) -> Iterator[list[Setting]]:
    """To start from the adapter that is surely better than the base, where there is one."""
    if best.reference is None or best.task is None or best.against_base is None:
        return
    how = "a linear probe on its states has" if probed else "as it is it has"
    why = f"{how} {metric} {best.score:.3g}, {best.against_base.shown} beside the base's"
    yield start_settings(recipe, best.reference, best.task, why)


def ready_hints(starts: Sequence[Start], best: Start, metric: str) -> Iterator[str]:
    """Adapters that answer with these labels as well as can be expected of what is still to be trained."""
    sign = -1 if lower_is_better(metric) else 1
    for start in starts:
        if start.ready is not None and sign * (start.ready - best.score) >= 0:
            yield (
                f"{start.reference} answers with these labels, and has {metric} {start.ready:.3g} as it is: perhaps "
                "nothing has to be trained (`lorary eval`)"
            )


def lead_hints(starts: Sequence[Start], best: Start, recipe: Recipe, metric: str) -> Iterator[str]:
    """The adapter that is ahead of the base, where none is surely so."""
    ahead = [(one.against_base, one) for one in starts if one.against_base and one.against_base.better > _AHEAD]
    if best.reference is not None or not ahead:
        return
    lead, start = max(ahead, key=lambda one: one[0].better)
    assert start.reference is not None
    assert start.task is not None
    settings = start_settings(recipe, start.reference, start.task, "")
    flags = " ".join(f"--set {setting.key}={setting.value}" for setting in settings)
    yield (
        f"{start.reference} is ahead of the base, {metric} {lead.shown}, which these rows can't tell from luck: "
        f"another training from there would ({flags})"
    )


def row_settings(facts: RowFacts, recipe: Recipe, longest: int) -> Iterator[list[Setting]]:
    """Room for rows that would be cut; ``longest`` is the most tokens that the base takes."""
    lengths = facts.lengths
    if lengths is None or lengths.cut <= _CUT:
        return
    room = min(longest, -(-lengths.nearly_all // 8) * 8)
    if room > lengths.most:
        why = (
            f"{lengths.cut:.0%} of the rows have more than {lengths.most} tokens; 99 of 100 have at most "
            f"{lengths.nearly_all}"
        )
        yield [Setting("training.max_length", room, why)]


def weight_settings(beside: Beside, metric: str) -> Iterator[list[Setting]]:
    """Class weights, where they were tried and are surely better."""
    if beside.balanced is not None and beside.balanced.verdict == "better":
        why = f"they change the probe's {metric} by {beside.balanced.shown}"
        yield [Setting("training.class_weights", "balanced", why)]


def fold_settings(facts: RowFacts, recipe: Recipe, metric: str, noise: float) -> Iterator[list[Setting]]:
    """Cross-validation, where held-out rows are split off and too few to measure by; ``noise`` is their luck."""
    training = recipe.training
    settled = training.folds is not None or training.seeds > 1 or recipe.data.names_test
    if settled or noise <= _NOISE or lower_is_better(metric):
        return
    why = f"by the luck of {facts.held_out} held-out rows {metric} varies by {noise:.2g}; folds hold every row out once"
    yield [Setting("training.folds", FOLDS, why)]


def luck(scorer: Scorer, measured: Measured, golds: Sequence[Any], count: int, draws: int = 200) -> float:
    """The standard deviation of a score over ``count`` rows that are drawn from those that were measured."""
    random = numpy.random.default_rng(0)
    score = scorer.scoring(measured.outcomes, golds)
    return float(numpy.std([score(drawn) for drawn in random.integers(0, len(golds), (draws, max(1, count))).tolist()]))


def row_hints(facts: RowFacts) -> Iterator[str]:
    """What is wrong with the rows, or with the base for these rows."""
    if facts.contradicting:
        yield (
            f"{facts.contradicting} training rows ask the same as another one and want another answer, so that no "
            "model can be right on both"
        )
    if again := facts.repeated - facts.contradicting:
        yield f"{again} training rows are the same as another one"
    if facts.tokens_per_word is not None and facts.tokens_per_word > _MANY_PIECES:
        yield (
            f"the base's tokenizer takes {facts.tokens_per_word:.1f} tokens to a word, where 1.3 is usual: its "
            "vocabulary is small or of another language, which makes words hard to learn; look for another base, or "
            "make one (`lorary pretrain`)"
        )
    if facts.unknown > _UNKNOWN:
        yield (
            f"{facts.unknown:.0%} of the tokens stand for what the base's tokenizer lacks, and are all the same to it: "
            "look for another base, or add tokens (tokens.add)"
        )


def beside_hints(beside: Beside, metric: str, base_score: float, baselines: Mapping[str, float]) -> Iterator[str]:
    """What the rows themselves say; nothing of more rows where the probe reads no more than ``baselines`` know."""
    if beside.spelling is not None and beside.spelling_against_base is not None:
        found = beside.spelling_against_base
        if found.verdict != "worse":
            more = "better than" if found.verdict == "better" else "as far as these rows tell not worse than"
            yield (
                f"spelling alone, without any model, has {metric} {beside.spelling:.3g}, {more} a probe on the base "
                f"({base_score:.3g}): an adapter has to do better than that to be worth its while"
            )
    sign = -1 if lower_is_better(metric) else 1
    if beside.growing is not None and all(sign * (beside.growth[-1][1] - known) > 0 for known in baselines.values()):
        yield (
            f"{_growing(beside.growing, *beside.growth[-1])}: the probe's {metric} is "
            + ", ".join(f"{score:.3g} with {count}" for count, score in beside.growth)
            + " rows; `lorary curve` measures it by training"
        )


def _growing(found: Difference, count: int, score: float) -> str:
    """In words, of the probe on ``count`` rows, which has this score, beside the one on half of them."""
    more = f"more rows than {count}"  # there may be more already, of which not all were measured
    if found.verdict == "better":
        return f"{more} will help"
    if found.better > _LIKELY:
        return f"{more} may help, which these are too few to tell"
    lower = lower_is_better(found.metric)
    gain, much = (-found.low, _NOISE * abs(score)) if lower else (found.high, _NOISE)
    return f"{more} hardly help" if gain <= much else f"whether {more} help, these are too few to tell"
