"""Brings a database to the schema of this code, or refuses it. Must not touch a database that it refuses."""

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect

from mezzotint.errors import SetupError

HEAD = "0009"  # the newest file of migrations/versions; a test compares the two

MIGRATIONS = Path(__file__).with_name("migrations")


def revision(connection: Connection) -> str | None:
    """The revision a database is at, None for an empty one. Only reads. Raises SetupError for one that is not ours."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if found is not None:
            return str(found)
    if tables:
        shown = ", ".join(tables[:5])
        raise SetupError(f"the database holds tables ({shown}) but no mezzotint schema; give mezzotint one of its own")
    return None


def check(found: str | None) -> None:
    """Raises SetupError when `found` is a revision this code does not know: a newer mezzotint has been here."""
    from alembic.script import ScriptDirectory  # slow to import, and an up-to-date database never needs it

    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if found is not None and found not in known:
        raise SetupError(
            f"the database is at schema {found}, newer than {HEAD}, the newest this version knows; "
            "run the version that wrote it, or choose another data folder"
        )


def upgrade(connection: Connection) -> None:
    """Run every missing revision in one transaction: all of them or none."""
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    with connection.begin():
        command.upgrade(config, HEAD)
