"""docs/scale.md tells what its program tells: its blocks are run, and the figures of its text stand in them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import plan

TEXT = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
BLOCK = re.compile(r"^```console\n\$ python -m benchmarks\.plan(.*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
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
    figures = re.findall(r"\*\*([^*]*\d[^*]*)\*\*", BLOCK.sub("", TEXT))
    assert figures
    for figure in figures:
        assert any(re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.])", shown) for shown in blocks().values()), figure


def test_both_servers_were_measured_for_the_same_constants():
    known = json.loads(plan.SAVED.read_text())
    assert known.keys() == {"valkey", "redis"}
    assert known["valkey"].keys() == known["redis"].keys()


@pytest.mark.parametrize("server", ["valkey", "redis"])
def test_more_work_never_takes_fewer_nodes(server):
    nodes = []
    for size in (1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000):
        lines = dict(
            re.split(r" {2,}", line.strip())
            for line in plan.report(["--sandboxes", str(size), "--server", server]).splitlines()
        )
        nodes.append(int(lines["NODES, WITH REPLICAS"].partition(", ")[0].replace(",", "")))
    assert nodes == sorted(nodes)
    assert nodes[0] == 1
    assert 2 not in nodes  # which could not agree on a failover


def test_a_store_that_is_split_is_below_every_limit():
    words = ["--sandboxes", "10000000", "--changes-per-second", "20000"]
    stores = int(plan.report(words).rsplit(" ", 1)[1])
    assert stores > 1
    share = ["--sandboxes", str(10_000_000 // stores), "--changes-per-second", str(20_000 / stores)]
    assert plan.report(share).rsplit(" ", 1)[1] == "1"
