"""Part of `make docs`: the flow in one file, as Node-RED imports it, from its nodes and their sources."""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "config" / "node-red"


def assemble() -> str:
    """The text of flows.json: `nodes.json` with each {"file": PATH} replaced by what is in that file."""

    def with_file(fields: dict[str, Any]) -> Any:
        return (FOLDER / fields["file"]).read_text() if fields.keys() == {"file"} else fields

    nodes = json.loads((FOLDER / "nodes.json").read_text(), object_hook=with_file)
    return json.dumps(nodes, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(assemble())
