"""The command ``shifter``: every job under its name. ``shifter generate`` is ``python -m jobs.generate``."""

from __future__ import annotations

import typer

from jobs import calibrate, cli, demo, generate, inspect, load, prune, replay

app = typer.Typer(name="shifter", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def shifter(version: cli.Version = False) -> None:
    """Train a network once, reduce it exactly to smaller variants, serve whichever the load allows."""


app.command("generate")(generate.main)
app.command("inspect")(inspect.main)
app.command("calibrate")(calibrate.main)
app.command("prune")(prune.main)
app.command("demo")(demo.main)
app.command("load")(load.main)
app.command("replay")(replay.main)


def main() -> None:
    cli.run_app(app)


if __name__ == "__main__":
    main()
