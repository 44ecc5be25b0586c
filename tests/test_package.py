"""The wheel: it holds the package and the scripts, nothing else, and works away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The scripts of the installed package answer, although another directory and no checkout is around.
USE = """
import fakeredis, sandbox_redis
from sandbox_redis.scripts import FOLDER, script
store = sandbox_redis.SandboxStore(fakeredis.FakeRedis())
store.create(sandbox_id="it")
print(sandbox_redis.__file__, FOLDER, store.start("it", pid=1).status.state, sep="\\n")
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_scripts_of_the_checkout_byte_by_byte(wheel):
    checkout = {
        f"sandbox_redis/lua/{f.relative_to(ROOT / 'lua')}": f.read_bytes() for f in (ROOT / "lua").rglob("*.lua")
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name: archive.read(name) for name in archive.namelist() if "lua" in name} == checkout
    assert len(checkout) > 10


def test_the_wheel_holds_the_package_its_types_its_licence_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sandbox_redis"}
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "sandbox_redis").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "sandbox_redis/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any("test" in name for name in names)
    assert "License-Expression: MIT" in metadata
    assert "Requires-Dist: redis[hiredis]" in metadata


def test_an_installed_wheel_finds_its_scripts_from_anywhere(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", target, wheel, cwd=tmp_path)
    code = f"import sys; sys.path.insert(0, {str(target)!r})\n{USE}"
    package, folder, state = run(sys.executable, "-c", code, cwd=tmp_path).split()
    assert package == str(target / "sandbox_redis/__init__.py")
    assert folder == str(target / "sandbox_redis/lua")
    assert state == "READY"


def test_the_wheel_works_unpacked_or_not(wheel, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(wheel)!r})\n{USE}"
    assert run(sys.executable, "-c", code, cwd=tmp_path).split()[-1] == "READY"
