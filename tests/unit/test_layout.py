"""The house stays as docs/architecture.md draws it: who imports whom, what is public, what is documented."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mezzotint
from mezzotint.cli.app import COMMANDS, GROUPS
from mezzotint.config import Settings
from mezzotint.errors import STATUS
from mezzotint.schema import RequestInput

SOURCE = Path(mezzotint.__file__).parent
REPOSITORY = SOURCE.parent.parent

# Module prefix -> what of ours it may import. The longest prefix that fits counts. Below `families`, `engine` and
# `workers.main` lies the worker; what is above must not reach into it.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "fieldnames": set(),
    "families.table": set(),
    "families.mentions": set(),
    "headers": set(),
    "single_file": {"headers"},
    "rules": set(),
    "facts": {"", "families.mentions", "families.table", "headers", "single_file"},
    "catalog": {"", "disk", "facts", "headers", "preferences"},
    "preferences": {"disk", "errors", "facts", "families.table", "fieldnames", "schema"},
    "watching": {"catalog"},
    "hub": {"errors", "headers"},
    "adding": {"", "config", "errors", "facts", "headers", "hub"},
    "preprocessors": {"errors", "image_wire"},
    "webhook_rules": {"errors"},
    "webhooks": {"", "bodies", "errors", "failpoints", "session", "store", "webhook_rules"},
    "schema": {"errors", "families.table", "fieldnames", "rules"},
    "advice": {"catalog", "families.mentions", "families.table", "request", "schema"},
    "capabilities": {"", "catalog", "families.table", "measurements", "preprocessors", "schema", "workers.wire"},
    "request": set(),
    "resolving": {
        "advice", "catalog", "errors", "families.mentions", "families.table", "preprocessors", "request", "schema",
        "webhook_rules",
    },
    "session": {"errors", "request"},
    "events": {"errors"},
    "batches": {"errors", "session"},
    "batch_watch": {"dispatcher", "errors", "session", "store"},
    "inputs": {"errors", "fieldnames", "rules", "schema"},
    "config": {"catalog", "errors", "rules", "schema", "webhook_rules"},
    "frames": set(),
    "failpoints": {"errors"},
    "image_wire": {"", "frames"},
    "image_child": {"disk", "errors", "image_wire", "workers.limits"},
    "children": set(),
    "disk": set(),
    "image_handle": {"children", "errors", "image_wire"},
    "assets": {"disk", "errors", "image_handle", "image_wire", "preprocessors"},
    "bodies": {"assets", "batches", "catalog", "errors", "events", "session", "store.rows"},
    "telemetry": set(),
    "a1111_names": {"families.table"},
    "infotext": {"a1111_names", "request"},
    "images": {"infotext", "request"},
    "metadata": set(),
    "comfyui": {"families.table"},
    "recipes": {"a1111_names", "comfyui", "metadata", "schema"},
    "api_keys": set(),
    "callers": {"api_keys", "errors"},
    "keyring": {"api_keys", "callers", "errors", "store"},
    "quotas": {"callers", "errors", "request", "store"},
    "store": {"failpoints", "api_keys", "batches", "disk", "errors", "events", "request", "session", "store"},
    "workers.wire": {"", "errors", "frames", "request", "session"},
    "profiles": {"disk"},
    "measurements": {"disk", "profiles", "workers.wire"},
    "refs": {"catalog", "workers.wire"},
    "metrics": {"session", "workers.base", "workers.wire"},
    "costs": {"measurements", "workers.wire"},
    "estimates": {
        "catalog", "costs", "errors", "families.table", "measurements", "profiles", "refs", "request", "tuning",
        "workers",
    },
    "checkpoints": {"disk", "failpoints", "errors", "frames", "profiles", "request", "workers.wire"},
    "tuning": {"catalog", "children", "costs", "measurements", "profiles", "refs", "workers"},
    "workers.limits": set(),
    "workers.local": {"failpoints", "children", "workers"},
    "workers.base": {"costs", "errors", "measurements", "request", "workers"},
    "workers.imports": set(),
    "workers.main": {"", "failpoints", "engine", "families", "images", "profiles", "workers"},
    "engine": {"disk", "failpoints", "engine", "errors", "families", "images", "request", "session", "workers.wire"},
    "engine.convert": {"engine", "families", "profiles", "workers.imports", "workers.limits"},
    "engine.tune": {"engine", "families", "profiles", "request", "workers"},
    "families": {"", "families", "headers", "single_file"},
    "families.products": {"profiles"},
    "devices": {"workers.base"},
    "placing": set(),
    "astray": {"store"},
    "line": {"session"},
    "live": {"errors", "session", "workers"},
    "reports": {"checkpoints", "errors", "events", "line", "live", "session", "store", "tuning", "workers"},
    "residency": {"refs", "request", "tuning", "workers", "workers.base", "workers.local"},
    "claims": {
        "astray", "catalog", "checkpoints", "errors", "line", "live", "measurements", "placing", "refs", "reports",
        "request", "residency", "session", "store", "tuning", "workers",
    },
    "dispatcher": {
        "batches", "checkpoints", "claims", "errors", "estimates", "events", "line", "live", "measurements", "refs",
        "reports", "request", "residency", "session", "store", "tuning", "workers",
    },
    "operations": {
        "", "adding", "advice", "assets", "batch_watch", "batches", "bodies", "callers", "capabilities", "catalog",
        "claims", "config", "devices", "disk", "dispatcher", "errors", "estimates", "events", "fieldnames",
        "image_wire", "inputs", "keyring", "measurements", "metrics", "operations", "preferences",
        "profiles", "quotas", "refs", "request", "resolving", "schema", "session", "store", "tuning", "webhook_rules",
        "workers", "workers.base", "workers.local",
    },
    "retention": {"errors", "events", "store"},
    "doctor": {"", "catalog", "config", "devices"},
    "server": {
        "", "api.app", "api.patience", "assets", "batch_watch", "catalog", "checkpoints", "config", "devices",
        "dispatcher", "errors", "estimates", "events", "keyring", "measurements", "metrics", "operations",
        "preferences", "quotas", "refs", "retention", "session", "store", "telemetry", "tuning", "verbs", "watching",
        "webhooks", "workers.base", "workers.limits",
    },
    "api": {
        "", "a1111_names", "answers", "api", "api_keys", "bodies", "callers", "capabilities", "catalog", "errors",
        "events", "families.table", "fieldnames", "image_wire", "infotext", "inputs", "operations", "preferences",
        "preprocessors", "quotas", "recipes", "rules", "schema", "session",
    },
    "answers": set(),
    "verbs": {"answers", "errors"},
    "client": {"answers", "errors", "verbs"},
    "cli": {
        "", "api.reading", "api_keys", "bodies", "cli", "client", "config", "doctor", "errors", "operations",
        "profiles", "recipes", "schema", "server", "store.beside", "telemetry",
    },
    "__main__": {"cli"},
    "": {"client", "errors", "server"},
}  # fmt: skip


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").rstrip(".")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {
                name for name in children if (SOURCE.parent / name.replace(".", "/")).with_suffix(".py").exists()
            }
            yield from submodules or {node.module}


def rule_of(name: str) -> str:
    return max((prefix for prefix in ALLOWED if name == prefix or name.startswith(f"{prefix}.") or not prefix), key=len)


def said(code: str) -> str:
    """What a Python of its own prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_command_starts_without_what_it_may_not_need() -> None:
    code = (
        "import sys, mezzotint.cli\n"
        "heavy = {'fastapi', 'httpx2', 'msgspec', 'pydantic', 'sqlalchemy', 'structlog', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert said(code).strip() == "[]"


def test_a_worker_starts_without_what_few_requests_use_and_finds_it_when_they_do() -> None:
    code = (
        "import sys; from mezzotint.workers.imports import import_quickly; import_quickly()\n"
        "import mezzotint.workers.main\n"
        "heavy = {'scipy.stats._stats_py', 'transformers', 'accelerate', 'peft', 'diffusers.pipelines',"
        " 'torch._dynamo', 'torch._refs', 'torch.export', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from diffusers import EulerDiscreteScheduler as Euler\n"
        "Euler(use_beta_sigmas=True).set_timesteps(5); print(sorted(heavy & set(sys.modules)))"
    )
    assert said(code).splitlines() == ["[]", "['scipy.stats._stats_py']"]


@pytest.mark.parametrize(("name", "tree"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_it_may(name: str, tree: ast.Module) -> None:
    allowed = ALLOWED[rule_of(name)]
    for imported in imports(tree):
        if imported == "mezzotint" or imported.startswith("mezzotint."):
            target = imported.removeprefix("mezzotint").removeprefix(".")
            fits = any(target == one or (one and target.startswith(f"{one}.")) for one in allowed)
            assert fits, f"{name} imports {imported}"


def test_the_rules_can_fail() -> None:
    assert rule_of("store.sql") == "store"
    assert "engine" not in ALLOWED[rule_of("dispatcher")]
    assert list(imports(ast.parse("from mezzotint.engine import engine"))) == ["mezzotint.engine.engine"]


def test_nothing_that_the_api_process_imports_is_torch() -> None:
    code = (
        "import mezzotint.api.app, mezzotint.cli, mezzotint.client, mezzotint.doctor, mezzotint.server, sys;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'safetensors', 'scipy', 'cv2'}))"
    )
    assert said(code).strip() == "[]"


@pytest.mark.parametrize(("name", "tree"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_module_can_unpickle_or_run_text(name: str, tree: ast.Module) -> None:
    refused = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
    assert not refused & {imported.partition(".")[0] for imported in imports(tree)}
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"eval", "exec", "compile"}


def test_the_public_names_are_these_and_can_be_had() -> None:
    assert mezzotint.__all__ == [
        "AsyncClient",
        "Client",
        "InvalidRequest",
        "Mezzotint",
        "MezzotintError",
        "__version__",
    ]
    for name in mezzotint.__all__:
        assert getattr(mezzotint, name)
    with pytest.raises(AttributeError):
        _ = mezzotint.nope


def test_every_setting_is_documented() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"| `{name}` | `MEZZOTINT_{name.upper()}` |" in page, name
        assert field.description
        assert field.description in page, name


def test_every_error_code_is_documented() -> None:
    page = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", page, flags=re.MULTILINE))
    assert documented == {code: str(status) for code, status in STATUS.items()}


def test_every_request_field_is_documented_and_is_a_flag_of_generate() -> None:
    page = (REPOSITORY / "docs" / "requests.md").read_text(encoding="utf-8")
    for name, field in RequestInput.model_fields.items():
        assert f"| `{name}` |" in page, name
        assert field.description is None or field.description in page, name
    help_text = subprocess.run(
        [sys.executable, "-m", "mezzotint", "generate", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in RequestInput.model_fields:
        if name not in ("prompt", "cancel_on_disconnect"):  # an argument; what Ctrl-C does anyway
            assert f"--{name.replace('_', '-')}" in help_text, name


def test_no_source_file_is_longer_than_600_lines() -> None:
    files = [
        path for folder in ("src", "tests", "training", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
    ]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 300
    assert {path: length for path, length in lengths.items() if length > 600} == {}


PAGES = sorted([*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"])
COMMAND = re.compile(r"(?:^|`)(?:\.venv/bin/)?mezzotint ([a-z][^`\n#]*)", re.MULTILINE)


def test_commands_and_variables_on_the_pages_are_there() -> None:
    known = {f"MEZZOTINT_{name.upper()}" for name in Settings.model_fields} | {"MEZZOTINT_SERVER", "MEZZOTINT_API_KEY"}
    tables = COMMANDS | {f"{group} {verb}": run for group, (_, verbs) in GROUPS.items() for verb, run in verbs.items()}
    wrong: list[str] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        wrong += [f"{page.name}: {name}" for name in re.findall(r"MEZZOTINT_[A-Z_]*[A-Z]", text) if name not in known]
        for line in COMMAND.findall(text.replace("\\\n", " ")):
            words = line.split()
            verb = " ".join(words[: 2 if words[0] in GROUPS else 1]).rstrip(",.;:")
            for flag in [word.partition("=")[0].rstrip(",.;:") for word in words if re.match("--[a-z]", word)]:
                if verb not in tables or not _has(tables[verb], flag):
                    wrong.append(f"{page.name}: mezzotint {verb} {flag}")
            if verb not in tables and verb not in GROUPS:
                wrong.append(f"{page.name}: mezzotint {verb}")
    assert wrong == []
    assert _has(COMMANDS["generate"], "--steps")
    assert not _has(COMMANDS["generate"], "--stepz")


def _has(command: Any, flag: str) -> bool:
    """A parameter is its own flag, unless its option names others."""
    for name, parameter in inspect.signature(command).parameters.items():
        options = [one for one in getattr(parameter.annotation, "__metadata__", ()) if hasattr(one, "param_decls")]
        # typer keeps the first of them where a default would stand
        named = [decl for one in options for decl in (one.default, *(one.param_decls or ())) if str(decl)[:2] == "--"]
        if flag in ("--help", *(named or [f"--{name.replace('_', '-')}"])):
            return True
    return False
