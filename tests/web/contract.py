"""Writes web/src/lib/contract.ts, the bodies of the OpenAPI document as types of the page: `make contract`."""

import json
import subprocess
from pathlib import Path

from mezzotint.api.app import routed

WEB = Path(__file__).parents[2] / "web"
CONTRACT = WEB / "src" / "lib" / "contract.ts"
GENERATOR = ["npx", "openapi-typescript", "--root-types", "--root-types-no-schema-prefix"]


def generated() -> str:
    """Without the routes: the page knows its own."""
    document = routed().openapi() | {"paths": {}}
    done = subprocess.run(GENERATOR, cwd=WEB, input=json.dumps(document), capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    CONTRACT.write_text(generated(), encoding="utf-8")
