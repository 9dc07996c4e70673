"""Part of `make docs`: the dashboards as files. python -m demo.dashboards config/grafana/dashboards"""

import sys
from pathlib import Path

from demo.dashboards import fleet, line, station


def assemble() -> dict[str, str]:
    """File names and their texts."""
    return {f"{module.__name__.rpartition('.')[2]}.json": module.board().text() for module in (line, station, fleet)}


if __name__ == "__main__":
    for name, text in assemble().items():
        (Path(sys.argv[1]) / name).write_text(text)
