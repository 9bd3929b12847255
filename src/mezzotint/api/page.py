"""The web page: the built files of `web/`, at `/` and `/page/`. Must not know what the page asks of the API."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

ROOT = Path(__file__).parent.parent / "page"

# The page's own files and the API of its own origin; nothing inline, nothing from elsewhere, in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
_NOT_BUILT = (
    "Mezzotint is running. Its web page is not built in this checkout: install Node 20.19 or newer, run `make page` "
    "and load this again.\nThe API is described at /docs.\n"
)

router = APIRouter(include_in_schema=False)
files = Mount("/page", StaticFiles(directory=ROOT, check_dir=False), name="page")


@router.get("/")
async def index() -> Response:
    page = ROOT / "index.html"
    if not page.exists():
        return PlainTextResponse(_NOT_BUILT)
    return FileResponse(page, headers=_HEADERS)
