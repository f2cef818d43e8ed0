"""`up`, `down`: the control plane of one data folder."""

from __future__ import annotations

from typing import Annotated

import typer

from distroml.cli import output
from distroml.cli.options import AskedProfile, Data, Json
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder


def up(
    data: Data,
    slots: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPU slots of this node [default: one per core it may use].")
    ] = None,
    dashboard_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Dashboard's port [default: 8400 or the next free one].")
    ] = None,
    profile: AskedProfile = None,
    json: Json = False,
) -> None:
    """Start scheduler, rendezvous, checkpoint, telemetry and an agent on this machine.

    With `--profile stack` they keep state, log and objects in etcd, NATS JetStream and S3, and a relay runs too.
    """
    folder = DataFolder(data)
    endpoints = control.running(folder)
    if endpoints is not None:
        folder.check_profile(profile)
        if slots is not None or dashboard_port is not None:
            output.err.print("it keeps its slots and its dashboard's port: other ones need `distroml down` first")
    fresh = endpoints is None
    if endpoints is None:
        with output.err.status("starting the control plane …"):
            endpoints = control.start(folder, slots=slots, dashboard_port=dashboard_port, profile=profile)
    login = f"{endpoints.dashboard}/login?token={folder.token()}"
    if json:
        output.print_json({"started": fresh, "services": endpoints.services, "dashboard": login, "data": str(data)})
        return
    output.out.print(f"control plane {'started' if fresh else 'runs already'} on {data}")
    output.out.print(f"dashboard: {login}")
    output.out.print("next: distroml run script.py · distroml jobs · distroml down")


def down(data: Data, json: Json = False) -> None:
    """End the control plane of this data folder and every worker it runs."""
    with output.err.status("stopping …"):
        ended = control.stop(DataFolder(data))
    if json:
        output.print_json({"stopped": ended})
    else:
        output.out.print("control plane stopped" if ended else f"no control plane runs on {data}")
