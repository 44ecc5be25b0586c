"""The command that writes down the rights of a user. What they are stands in ``sandbox_redis/acl.py`` alone; no server
is asked.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from sandbox_redis import acl as roles
from sandbox_redis.cli.options import Where
from sandbox_redis.cli.statuses import complain


class Format(StrEnum):
    """The forms in which rights are printed."""

    CLI = "redis-cli"
    FILE = "file"


def acl(
    where: Where,
    role: Annotated[roles.Role, typer.Argument(metavar="ROLE", help="reader, agent or admin.", case_sensitive=False)],
    *,
    user: Annotated[
        str | None, typer.Option(help="The name of the user; else the prefix, - and the role.", metavar="NAME")
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="For redis-cli, or as a line of an ACL file.", case_sensitive=False)
    ] = Format.CLI,
    server_version: Annotated[
        str,
        typer.Option(help="The oldest server that is to take it: newer ones can be told more.", metavar="VERSION"),
    ] = "6.2",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read a password from standard input; its hash is printed.")
    ] = False,
) -> None:
    """Write down the least rights of a user: what a reader, an agent or an admin needs.

    Nothing is sent: give the line to redis-cli, or put it into the server's ACL file. It replaces the rights that the
    user had. No password is printed, ever; without one, those that the user has stay.
    """
    prefix = "sandbox" if where.prefix is None else where.prefix
    password = sys.stdin.read().removesuffix("\n").removesuffix("\r") if password_stdin else None
    words = roles.rules(role, prefix, version=roles.parse_version(server_version), password=password)
    line = roles.for_cli if format_ is Format.CLI else roles.for_file
    print(line(f"{prefix}-{role}" if user is None else user, words))
    if password is None:
        complain("the line sets no password, and who has none cannot log in: give one with --password-stdin")
