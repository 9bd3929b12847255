"""What the OpenAPI document says of bodies that routes read and write themselves. Must not read or write one."""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from mezzotint import answers
from mezzotint.api.reading import check_query

_PROBLEM = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
_TEMPLATE = "#/components/schemas/{model}"
# Further arguments of a native route that answers in something else than JSON: query parameters that it does not take
# are refused.
CHECKED: dict[str, Any] = {"dependencies": [Depends(check_query)]}

_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


def takes(
    body: dict[str, Any] | type[BaseModel], media_type: str = "application/json", *, required: bool = True
) -> dict[str, Any]:
    """For `openapi_extra` of a route: the body that it reads, as a JSON schema or as the model that reads it."""
    schema = body if isinstance(body, dict) else body.model_json_schema(ref_template=_TEMPLATE)
    return {"requestBody": {"required": required, "content": {media_type: {"schema": schema}}}}


def tells(body: Any, *statuses: int) -> dict[str, Any]:
    """Further arguments of a route that answers in JSON: the body, as `answers` has it; 200 without `statuses`. Query
    parameters that such a route does not take are refused."""
    responses = {status: {"model": body} for status in statuses or (200,)}
    return {"responses": responses} | CHECKED


class Documented(FastAPI):
    """An application whose document names the errors that it gives, which are not FastAPI's."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            found = get_openapi(title=self.title, version=self.version, routes=self.routes)
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for name in _FASTAPIS_OWN:
                schemas.pop(name, None)
            problem = TypeAdapter(answers.Problem).json_schema(ref_template=_TEMPLATE)
            schemas |= problem.pop("$defs") | {"Problem": problem}
            for methods in found["paths"].values():
                for call in methods.values():
                    for content in call.get("requestBody", {}).get("content", {}).values():
                        content["schema"] = _named(content["schema"], schemas)
                    call["responses"].pop("422", None)
                    for response in call["responses"].values():
                        for content in response.get("content", {}).values():
                            told = content["schema"].get("$ref")  # beside what FastAPI reads off the function
                            content["schema"] = {"$ref": told} if told else content["schema"]
                    call["responses"]["default"] = {"description": "What went wrong", **_PROBLEM}
            self.openapi_schema = found
        return self.openapi_schema


def _named(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to a schema that has a name; it and those inside it are put among `schemas`."""
    schemas |= schema.pop("$defs", {})
    if "title" not in schema or "$ref" in schema:
        return schema
    schemas[schema["title"]] = schema
    return {"$ref": _TEMPLATE.format(model=schema["title"])}
