"""The lineage that `lorary show` draws."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from checkpoints import make_checkpoint, make_manifest
from lorary.hub.cli.lineage import draw_lineage, lineage_json
from lorary.hub.cli.main import main


@pytest.fixture
def family(registry, tmp_path):
    """corpus@1 -> corpus@2 -> task@1 -> task@2, another child of corpus@2, and a blend of both tasks."""

    def add(name, strategy, *parents, **metrics):
        add.seed += 1
        source = make_checkpoint(tmp_path / f"{add.seed}", seed=add.seed, manifest=make_manifest(domain="legal"))
        registry.add(
            source, name=name, strategy=strategy, parents=parents, metrics={"test": metrics} if metrics else {}
        )

    add.seed = 0
    add("corpus", "continual", perplexity=12.345)
    add("corpus", "continual", "corpus@1", perplexity=9.5)
    add("task", "intermediate", "corpus@2", f1=0.81)
    add("task", "fine-tune", "task@1", f1=0.84)
    add("other", "intermediate", "corpus@2", f1=0.7)
    add("both", "blend", "task@2", "other@1")
    return registry


@pytest.mark.parametrize("reference", ["corpus@1", "corpus@2", "task@1", "task@2", "other@1", "both@1"])
def test_relatives_are_all_that_is_drawn(family, reference):
    version = family.resolve(reference)
    relatives, everything = family.relatives(version), family.versions()
    assert draw_lineage(version, relatives) == draw_lineage(version, everything)
    assert lineage_json(version, relatives) == lineage_json(version, everything)


def test_ancestors_and_descendants_with_strategy_and_main_metric(family):
    assert draw_lineage(family.resolve("task@1"), family.versions()) == [
        "corpus@1        continual     perplexity 12.35",
        "  corpus@2      continual     perplexity 9.5",
        "    task@1      intermediate  f1 0.81  <-",
        "      task@2    fine-tune     f1 0.84",
        "        both@1  blend",
    ]


def test_a_blend_stands_below_each_of_its_parents(family):
    assert draw_lineage(family.resolve("both"), family.versions()) == [
        "corpus@1        continual     perplexity 12.35",
        "  corpus@2      continual     perplexity 9.5",
        "    other@1     intermediate  f1 0.7",
        "      both@1    blend         <-",
        "    task@1      intermediate  f1 0.81",
        "      task@2    fine-tune     f1 0.84",
        "        both@1  blend         <-  (as above)",
    ]


def test_a_root_shows_all_that_came_of_it_and_a_loner_nothing(family, tmp_path):
    assert len(draw_lineage(family.resolve("corpus@1"), family.versions())) == 7
    family.add(make_checkpoint(tmp_path / "alone", seed=99), name="alone")
    assert draw_lineage(family.resolve("alone"), family.versions()) == []


def test_a_line_of_thousands_is_drawn(family):
    first, last = family.resolve("corpus@1"), 2000
    line = [
        replace(first, number=number, parents=(f"corpus@{number - 1}",) if number > 1 else ())
        for number in range(1, last + 1)
    ]
    lines = draw_lineage(line[-1], line)
    assert [row.split()[0] for row in lines] == [version.reference for version in line]


def test_a_parent_that_was_removed_is_said_to_be(family):
    family.remove("corpus@1", force=True)
    lines = draw_lineage(family.resolve("corpus@2"), family.versions())
    assert lines[0].split() == ["corpus@1", "(removed", "from", "the", "catalogue)"]
    assert lines[1].split()[0] == "corpus@2"
    told = lineage_json(family.resolve("corpus@2"), family.versions())
    assert told["ancestors"] == [{"reference": "corpus@1", "removed": True}]


def test_the_command_draws_it_and_its_json_tells_it(family, capsys):
    assert main(["show", "task@1", "--registry", str(family.path)]) == 0
    shown = capsys.readouterr().out
    assert "lineage\n  corpus@1        continual     perplexity 12.35\n" in shown
    assert main(["show", "task@1", "--json", "--registry", str(family.path)]) == 0
    told = json.loads(capsys.readouterr().out)["lineage"]
    assert [other["reference"] for other in told["ancestors"]] == ["corpus@2", "corpus@1"]
    assert [other["reference"] for other in told["descendants"]] == ["task@2", "both@1"]
    assert told["ancestors"][0]["test"] == {"perplexity": 9.5}
