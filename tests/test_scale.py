"""docs/scale.md tells what its program tells: its blocks are run, and the figures of its text stand in them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import plan

TEXT = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
BLOCK = re.compile(r"^```console\n\$ python -m benchmarks\.plan([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SIZES = (10_000, 1_000_000, 100_000_000)


def blocks() -> dict[str, str]:
    return {command.strip(): shown for command, shown in BLOCK.findall(TEXT)}


@pytest.mark.parametrize("command", blocks())
def test_a_block_shows_what_the_command_prints(command):
    assert [line.rstrip() for line in plan.report(shlex.split(command)).splitlines()] == blocks()[command].splitlines()


def test_every_size_is_worked_through():
    for size in SIZES:
        assert any(f"--sandboxes {size}" in command for command in blocks()), size
    assert TEXT.count("```console") == len(blocks())


def test_the_figures_of_the_text_stand_in_a_block():
    """Those are bold."""
    text = " ".join(BLOCK.sub("", TEXT).split())
    bold = [words for words in re.findall(r"\*\*([^*]+)\*\*", text) if words[0].isdigit()]
    assert bold
    for figure in bold:
        assert any(re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.])", shown) for shown in blocks().values()), figure


def test_both_servers_were_measured_for_the_same_constants():
    known = json.loads(plan.SAVED.read_text())
    assert known.keys() == {"valkey", "redis"}
    assert known["valkey"].keys() == known["redis"].keys()


def figures(*words: str) -> dict[str, str]:
    return {line[:48].strip(): line[48:] for line in plan.report(list(words)).splitlines()}


@pytest.mark.parametrize("server", ["valkey", "redis"])
def test_more_changes_never_take_fewer_masters(server):
    masters = []
    for changes in (1, 10, 100, 1000, 10_000, 20_000):
        figure = figures("--changes-per-second", str(changes), "--server", server, "--maxclients", "20000")
        masters.append(int(figure["masters, nodes with replicas"].partition(",")[0].replace(",", "")))
    assert masters == sorted(masters)
    assert masters[0] == 1 < masters[-1]
    assert 2 not in masters  # which could not agree on a failover


def test_a_store_that_is_split_is_below_every_limit():
    whole = figures("--sandboxes", "10000000", "--changes-per-second", "20000")
    stores = int(whole["STORES"])
    assert stores > 1
    assert whole["FIRST TO BREAK IN ONE STORE"].startswith("connections of a node (1,00")
    share = ["--sandboxes", str(10_000_000 // stores), "--changes-per-second", str(20_000 / stores)]
    assert figures(*share)["STORES"] == "1"
