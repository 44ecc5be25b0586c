"""The README tells the truth: its blocks are run, and what they print is what it shows."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
DEFAULT_URL = "redis://127.0.0.1:6379/0"


def blocks(kind: str) -> list[str]:
    return [text for language, text in BLOCKS if language == kind]


def like(shown: str) -> re.Pattern[str]:
    """Matches what is shown: … stands for anything in a line."""
    return re.compile(re.escape(shown.strip()).replace("…", "[^\n]*") + r"\s*")


@pytest.fixture
def url(own_server):
    return own_server(port=0).url


def test_every_kind_of_block_is_run_by_a_test():
    assert {language for language, _ in BLOCKS} == {"python", "output", "console", "mermaid", "sh"}
    assert len(blocks("python")) == len(blocks("output"))


@pytest.mark.parametrize(("code", "output"), list(zip(blocks("python"), blocks("output"), strict=True)))
def test_the_python_blocks_print_what_stands_below_them(url, code, output):
    assert DEFAULT_URL in code
    printed = io.StringIO()
    scope: dict[str, object] = {"__name__": "__main__"}
    with redirect_stdout(printed):
        exec(compile(code.replace(DEFAULT_URL, url), "README.md", "exec"), scope)
    if "store" in scope:
        scope["store"].close()
    assert like(output).fullmatch(printed.getvalue()), printed.getvalue()


def test_the_console_blocks_print_what_they_show(url, tmp_path):
    """One shell session through all of them, so that `echo $?` is true."""
    environment = os.environ | {
        "SANDBOX_REDIS_URL": url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        "HOME": str(tmp_path),
    }
    for block in blocks("console"):
        steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE)
        script = "\n".join(f"{command}\nstatus=$?\necho '<<<>>>'\n(exit $status)" for command, _ in steps)
        run = subprocess.run(  # noqa: PLW1510 - the status of each command is looked at by itself
            ["sh", "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        printed = run.stdout.split("<<<>>>\n")
        for (command, shown), output in zip(steps, printed, strict=False):
            assert like(shown).fullmatch(output.strip() + "\n"), f"$ {command}\n{output}"


def test_the_diagram_has_the_moves_of_the_machine():
    """Those of `update` and of a forced removal are left out of the picture."""
    from sandbox_redis.states import ABSENT, MACHINE

    drawn = set()
    for before, after, labels in re.findall(r"(\S+) --> (\S+): (.*)", blocks("mermaid")[0]):
        for operation in labels.split(", "):
            drawn.add((operation, before.replace("[*]", ABSENT), after.replace("[*]", ABSENT)))
    assert drawn == {
        (operation, before, after)
        for operation, moves in MACHINE.items()
        for before, afters in moves.items()
        for after in afters
        if before != after and operation not in ("update", "force_remove")
    }


def test_ci_runs_the_two_commands_of_the_readme():
    demo, suite = blocks("sh")
    assert demo.strip().endswith("sandbox-redis demo")
    assert suite.strip().endswith("-m pytest")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "bin/sandbox-redis demo' README.md" in ci
    assert "-m pytest' README.md" in ci


def test_every_command_is_in_the_readme_and_has_help():
    from sandbox_redis.cli.app import app

    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        assert re.search(rf"\b{name}\b", README.replace("_", "-")), name
        assert command.callback.__doc__ or command.help, name
