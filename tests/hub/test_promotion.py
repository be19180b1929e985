from contextlib import suppress

import pytest

from lorary.hub import Registry
from lorary.hub.errors import PromotionRefusedError, RegistryConflictError, UnknownReferenceError, UsageError
from lorary.hub.keeping.promotion import parse_requirement
from lorary.hub.tables.database import writing


def measured(**test):
    return {"test": test, "untrained": {"accuracy": 0.1}}


@pytest.fixture
def three(add, registry):
    add(seed=1, metrics=measured(f1=0.81, loss=0.5))
    add(seed=2, metrics=measured(f1=0.82, loss=0.4))
    add(seed=3, metrics=measured(f1=0.80))
    return registry


def refusals(registry, reference, *require, alias="prod"):
    before = [version.aliases for version in registry.versions()], registry.path.read_bytes()
    with pytest.raises(PromotionRefusedError) as error:
        registry.promote(reference, alias, require=require)
    assert ([version.aliases for version in registry.versions()], registry.path.read_bytes()) == before
    assert error.value.exit_code == 1
    return error.value.problems


def test_a_version_that_meets_everything_is_promoted(three):
    three.alias("finance-tone", "prod", 1)
    three.alias("finance-tone", "candidate", 2)
    require = ("f1>=prod+0.01", "f1 > prod", "loss<=prod", "f1>=0.82", "f1==0.82", "f1>=finance-tone@3", "verify")
    promotion = three.promote("finance-tone@candidate", "prod", require=require)
    assert (promotion.from_number, promotion.to_number, promotion.notes) == (1, 2, ())
    assert [(check.requirement, check.met) for check in promotion.checks] == [(text, True) for text in require]
    assert three.resolve("finance-tone@prod").number == 2
    move = three.alias_history("finance-tone", "prod")[-1]
    assert (move.from_number, move.to_number, move.why) == (1, 2, f"promoted: {', '.join(require)}")


def test_the_requirements_may_come_one_by_one(three):
    three.promote("finance-tone@2", "prod", require=(text for text in ("f1>=0.8", "verify")))
    assert three.alias_history("finance-tone", "prod")[-1].why == "promoted: f1>=0.8, verify"


def test_without_a_requirement_the_alias_just_moves(three):
    promotion = three.promote("finance-tone@1", "prod")
    assert (promotion.checks, three.resolve("finance-tone@prod").number) == ((), 1)
    assert three.alias_history("finance-tone", "prod")[-1].why == "promoted: nothing was required"


def test_a_reason_takes_the_place_of_the_requirements(three):
    three.promote("finance-tone@1", "prod", require=["f1>0"], why="asked for")
    assert three.alias_history("finance-tone", "prod")[-1].why == "asked for"


def test_a_reason_of_blanks_hides_no_requirements(three):
    three.promote("finance-tone@1", "prod", require=["f1>0"], why=" \t")
    assert three.alias_history("finance-tone", "prod")[-1].why == "promoted: f1>0"


def test_requirements_that_are_no_reason_for_their_length_are_cut(three):
    require = ["f1>0"] * 200
    assert len(three.promote("finance-tone@1", "prod", require=require).checks) == 200
    assert three.alias_history("finance-tone", "prod")[-1].why == f"promoted: {', '.join(require)}"[:500]


def test_the_requirements_may_be_the_lines_of_a_file(three, tmp_path):
    (tmp_path / "gate").write_text("f1 >= 0.8\nverify\n")
    with (tmp_path / "gate").open() as gate:
        three.promote("finance-tone@2", "prod", require=gate)
    assert three.alias_history("finance-tone", "prod")[-1].why == "promoted: f1 >= 0.8, verify"


def test_a_refusal_tells_each_requirement_that_is_not_met(three):
    three.alias("finance-tone", "prod", 1)
    require = ("f1>=prod", "f1>prod", "f1>=prod+0.011", "accuracy>=0.9", "loss<=prod-0.2", "f1>=champion", "f1<1")
    assert refusals(three, "finance-tone@2", *require) == (
        "f1>=prod+0.011: finance-tone@2 has 0.82, finance-tone@1 has 0.81, and +0.011 is 0.821",
        "accuracy>=0.9: finance-tone@2 has no accuracy; it has f1, loss",
        "loss<=prod-0.2: finance-tone@2 has 0.4, finance-tone@1 has 0.5, and -0.2 is 0.3",
        "f1>=champion: finance-tone has no version or alias 'champion'",
    )
    assert refusals(three, "finance-tone@1", "loss<=finance-tone@3") == (
        "loss<=finance-tone@3: finance-tone@3 has no loss to compare with",
    )
    assert refusals(three, "finance-tone@2", "f1>=1") == ("f1>=1: finance-tone@2 has 0.82, required is 1",)


def test_metrics_are_compared_as_written(three):
    three.alias("finance-tone", "prod", 1)
    assert refusals(three, "finance-tone@2", "loss>=prod") == (
        "loss>=prod: finance-tone@2 has 0.4, finance-tone@1 has 0.5",
    )


def operators_met(registry, bound):
    """Which comparisons of the latest version's f1 hold."""
    met = set()
    for operator in (">=", "<=", "==", ">", "<"):
        with suppress(PromotionRefusedError):
            registry.promote("finance-tone", "prod", require=[f"f1{operator}{bound}"], dry_run=True)
            met.add(operator)
    return met


@pytest.mark.parametrize(
    ("own", "bound", "met"),
    [
        (0.5, "0.5", {">=", "<=", "=="}),
        (0.5001, "0.5", {">=", ">"}),
        (0.4999, "0.5", {"<=", "<"}),
        # As much as rounding may make of equal numbers, in small ones and in large ones.
        (1e-12, "0", {">=", "<=", "=="}),
        (1e12 + 1, "1e12", {">=", "<=", "=="}),
        (-1e12 - 1, "-1E+12", {">=", "<=", "=="}),
        (0.5, "+.5", {">=", "<=", "=="}),
        (0.5, "5.e-1", {">=", "<=", "=="}),
    ],
)
def test_each_comparison_with_a_number(add, registry, own, bound, met):
    add(metrics=measured(f1=own))
    assert operators_met(registry, bound) == met


@pytest.mark.parametrize(
    ("theirs", "own", "bound", "met"),
    [
        (0.81, 0.82, "1 +0.01", {">=", "<=", "=="}),  # 0.81 + 0.01 is a little more than 0.82
        (0.7, 0.8, "1+0.1", {">=", "<=", "=="}),  # and 0.7 + 0.1 a little less than 0.8
        (0.5, 0.4, "1-0.1", {">=", "<=", "=="}),
        (0.5, 0.501, "1+1e-3", {">=", "<=", "=="}),
        (0.5, 0.4, "1 - 0.1", {">=", "<=", "=="}),
        (0.5, 0.4, "1", {"<=", "<"}),
        (0.0, 0.1, "1", {">=", ">"}),
    ],
)
def test_each_comparison_with_a_version(add, registry, theirs, own, bound, met):
    for seed, value in enumerate((theirs, own)):
        add(seed, metrics=measured(f1=value))
    assert operators_met(registry, bound.replace("1", "finance-tone@1", 1)) == met


def test_a_version_without_metrics_is_refused(add, registry):
    add()
    assert refusals(registry, "finance-tone", "f1>=prod") == (
        "f1>=prod: finance-tone@1 has no f1; it has no metrics on held-out rows",
    )
    add(seed=1, metrics=measured(f1=0.5))
    assert refusals(registry, "finance-tone", "f1>=finance-tone@1") == (
        "f1>=finance-tone@1: finance-tone@1 has no f1 to compare with",
    )


def test_nothing_yet_is_no_hindrance(three):
    promotion = three.promote("finance-tone@3", "prod", require=["f1>=prod", "f1>=prod+0.5"])
    assert [check.found for check in promotion.checks] == ["holds, since nothing is prod yet"] * 2
    assert promotion.from_number is None
    # Another alias that is nothing may be a slip of the pen.
    assert refusals(three, "finance-tone@3", "f1>=champion") == (
        "f1>=champion: finance-tone has no version or alias 'champion'",
    )


@pytest.mark.parametrize(("alias", "named"), [("prod", "finance-tone@prod"), ("prod-2", "prod-2")])
def test_nothing_yet_is_no_hindrance_however_it_is_named(three, alias, named):
    (check,) = three.promote("finance-tone@3", alias, require=[f"f1>={named}"]).checks
    assert check.found == f"holds, since nothing is {alias} yet"


def test_another_names_alias_that_is_nothing_is_told_by_that_name(three):
    assert refusals(three, "finance-tone@3", "f1>=tagger@prod") == (
        "f1>=tagger@prod: tagger has no version or alias 'prod'",
    )


def test_a_changed_file_is_found(three):
    weights = three.checkpoint("finance-tone@2").files["adapter_model.safetensors"]
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (problem,) = refusals(three, "finance-tone@2", "f1>=0.5", "verify")
    assert problem.startswith("verify: adapter_model.safetensors: its content has changed")
    three.promote("finance-tone@1", "prod", require=["verify"])  # the others are as they were


def test_files_are_hashed_only_where_that_is_required(three, monkeypatch):
    hashed = []
    monkeypatch.setattr(three, "verify", lambda reference: hashed.append(reference) or [])
    three.promote("finance-tone@2", "prod", require=["f1>=0.5"])
    assert hashed == []
    three.promote("finance-tone@prod", "live", require=["verify"])
    assert hashed == ["finance-tone@2"]


def test_an_alias_may_look_like_one_with_an_offset(three):
    three.alias("finance-tone", "prod", 1)
    assert refusals(three, "finance-tone@3", "f1>=prod-0.005")
    three.alias("finance-tone", "prod-0.005", 3)
    three.promote("finance-tone@3", "prod", require=["f1>=prod-0.005"])


def test_a_dry_run_changes_nothing(three):
    three.alias("finance-tone", "prod", 1)
    before = three.path.read_bytes()
    promotion = three.promote("finance-tone@2", "prod", require=["f1>=prod", "verify"], dry_run=True)
    assert (promotion.from_number, promotion.to_number) == (1, 2)
    with pytest.raises(PromotionRefusedError):
        three.promote("finance-tone@3", "prod", require=["f1>=prod"], dry_run=True)
    assert three.path.read_bytes() == before


def test_a_dry_run_waits_for_nobody_who_writes(three, monkeypatch):
    monkeypatch.setattr("lorary.hub.tables.database._PATIENCE", 0.1)
    with writing(three.path):
        assert three.promote("finance-tone@2", "prod", dry_run=True).to_number == 2


def test_a_candidate_that_moves_meanwhile_is_not_promoted_unseen(three, monkeypatch):
    three.alias("finance-tone", "candidate", 2)
    verify = three.verify

    def moved_meanwhile(reference):
        Registry(three.path).alias("finance-tone", "candidate", 3)
        return verify(reference)

    monkeypatch.setattr(three, "verify", moved_meanwhile)
    with pytest.raises(RegistryConflictError, match="has come to mean finance-tone@3 meanwhile"):
        three.promote("finance-tone@candidate", "prod", require=["verify"])
    assert three.resolve("finance-tone@3").aliases == ("candidate",)


def test_of_two_promotions_at_once_the_second_is_held_against_the_first(three, monkeypatch):
    three.alias("finance-tone", "prod", 3)
    verify = three.verify

    def promoted_meanwhile(reference):
        Registry(three.path).promote("finance-tone@2", "prod", require=["f1>prod"])
        return verify(reference)

    monkeypatch.setattr(three, "verify", promoted_meanwhile)
    with pytest.raises(PromotionRefusedError, match=r"f1>prod: finance-tone@1 has 0\.81, finance-tone@2 has 0\.82"):
        three.promote("finance-tone@1", "prod", require=["f1>prod", "verify"])
    assert three.resolve("finance-tone@prod").number == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f1",
        "f1>=",
        "f1>= ",
        ">=prod",
        " >=prod",
        "f1=>prod",
        "f1>>prod",
        "f1!=prod",
        "f1>=pr\x1bod",
        "f1=prod",
        "Verify",
        "f1<=1e400",
        "f1>=prod-1e400",
    ],
)
def test_what_cannot_be_a_requirement(three, text):
    with pytest.raises(UsageError, match="requirement"):
        three.promote("finance-tone@1", "prod", require=[text])


def test_metric_names_may_hold_signs():
    for name in ("mrr@10", "f1 B-GENE", "exact_match", "a/b"):
        requirement = parse_requirement(f"{name} >= -1.5e-3")
        assert requirement is not None
        assert (requirement.metric, requirement.number, requirement.readings) == (name, -0.0015, ())


def test_wrong_references(three):
    with pytest.raises(UnknownReferenceError):
        three.promote("finance-tone@9", "prod")
    with pytest.raises(UsageError):
        three.promote("finance-tone@1", "Prod!")
    with pytest.raises(UsageError):
        three.promote("finance-tone@1", "prod", why="a\nb")
