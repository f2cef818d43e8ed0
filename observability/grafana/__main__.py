"""Write the dashboards: `python -m observability.grafana`."""

from __future__ import annotations

from observability.grafana.render import FOLDER, rendered


def main() -> None:
    """Write every dashboard, and remove files of those that are no more."""
    files = rendered()
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.json"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text, "utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
