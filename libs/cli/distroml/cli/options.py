"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from distroml.cli.plane.datafolder import Profile, default_data

MOST_INT = 2**31 - 1
"""The largest whole number that fits into most fields of the contract."""

Data: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="DISTROML_DATA",
        help="Data folder of the control plane.",
        default_factory=default_data,
        show_default="~/.distroml",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobName: TypeAlias = Annotated[str, typer.Argument(metavar="JOB", help="Job id, or its name where that is unique.")]
AskedProfile: TypeAlias = Annotated[
    Profile | None,
    typer.Option(
        "--profile",
        help="What state and log are kept in: the data folder, or real servers as `make stack` starts them "
        "[default: the folder's own, embedded for a new one].",
        show_default=False,
    ),
]
Follow: TypeAlias = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")]
