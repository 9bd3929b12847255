"""`/docs`: the routes of this server as a plain page. Loads nothing from elsewhere and runs no script."""

from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    rows = [
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td><td>{escape(_says(route))}</td></tr>"
        for path, methods in request.app.openapi()["paths"].items()
        for method, route in methods.items()
    ]
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Mezzotint: routes</title><h1>Routes</h1>"
        "<p>Every field and answer: <a href=/openapi.json>openapi.json</a></p>"
        f"<table>{''.join(rows)}</table></html>"
    )


def _says(route: dict[str, object]) -> str:
    return str(route.get("description") or route.get("summary", ""))
