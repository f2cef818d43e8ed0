"""The `distroml` command."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from distroml.cli import (
    bench_commands,
    checkpoint_commands,
    cluster_commands,
    demo_command,
    doctor,
    history_commands,
    job_commands,
    output,
    plan_command,
    plane_commands,
    replay_commands,
    run_commands,
)
from distroml.cli.errors import EXIT_USAGE, CliError

app = typer.Typer(
    name="distroml",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distributed training that survives failures and can replay them.\n\n"
    "Exit codes: 0 done, 1 refused or the job failed, 2 wrong usage, 3 control plane unreachable, 130 interrupted.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distroml {version('distroml')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command()(demo_command.demo)
app.command()(plane_commands.up)
app.command()(plane_commands.down)
app.command(context_settings=run_commands.PASS_THROUGH)(run_commands.run)
app.command(context_settings=run_commands.PASS_THROUGH)(run_commands.submit)
app.command()(job_commands.jobs)
app.add_typer(job_commands.app, name="job")
app.command()(cluster_commands.nodes)
app.add_typer(cluster_commands.app, name="node")
app.command()(cluster_commands.queue)
app.add_typer(checkpoint_commands.app, name="checkpoints")
app.command()(plan_command.plan)
app.command()(history_commands.cost)
app.add_typer(history_commands.app, name="history")
app.command()(replay_commands.events)
app.command()(replay_commands.replay)
app.command()(doctor.doctor)
app.add_typer(bench_commands.app, name="bench")


def main() -> None:
    """Run the command line; errors end it with a message, an advice and the design's exit codes."""
    try:
        app(standalone_mode=True)
    except CliError as error:
        output.fail(error.message, error.hint)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): not an error worth a traceback.
        sys.stderr.close()
        raise SystemExit(EXIT_USAGE) from None


if __name__ == "__main__":
    main()
