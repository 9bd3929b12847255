"""The first schema: sessions, images, transitions, and the law of states, in the database too. Must not import ours."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LEGAL = (
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "expired"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "paused"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("paused", "queued"),
    ("paused", "cancelled"),
)

# What each dialect says in its own words. One that is missing here cannot hold the law, and must not hold sessions.
LAWS = {
    "sqlite": (
        """
        CREATE TRIGGER sessions_begin_queued BEFORE INSERT ON sessions
        WHEN NEW.state IS NOT 'queued'
        BEGIN SELECT RAISE(ABORT, 'a session begins queued'); END
        """,
        """
        CREATE TRIGGER sessions_obey_legal BEFORE UPDATE OF state ON sessions
        WHEN NOT EXISTS (SELECT 1 FROM legal WHERE from_state = OLD.state AND to_state = NEW.state)
        BEGIN SELECT RAISE(ABORT, 'illegal change of state'); END
        """,
    ),
    "postgresql": (
        """
        CREATE FUNCTION mezzotint_begin_queued() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'a session begins queued' USING ERRCODE = 'check_violation'; END $$
        """,
        """
        CREATE TRIGGER sessions_begin_queued BEFORE INSERT ON sessions
        FOR EACH ROW WHEN (NEW.state IS DISTINCT FROM 'queued') EXECUTE FUNCTION mezzotint_begin_queued()
        """,
        """
        CREATE FUNCTION mezzotint_obey_legal() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT EXISTS (SELECT 1 FROM legal WHERE from_state = OLD.state AND to_state = NEW.state) THEN
                RAISE EXCEPTION 'illegal change of state' USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """,
        """
        CREATE TRIGGER sessions_obey_legal BEFORE UPDATE OF state ON sessions
        FOR EACH ROW EXECUTE FUNCTION mezzotint_obey_legal()
        """,
        # one row, written by every transaction: what became of one whose connection broke in mid-commit
        "CREATE TABLE last_commit (token text NOT NULL)",
        "INSERT INTO last_commit VALUES ('')",
    ),
}

# Ids are compared byte by byte, whatever language a Postgres speaks; SQLite knows no other way.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", ID, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("device", sa.Text),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("batch_id", ID),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("worker", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("pause_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("spans", sa.Text, nullable=False),
        sa.Column("usage", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("warnings", sa.Text, nullable=False),
    )
    op.create_index("sessions_by_state", "sessions", ["state", "id"])
    op.create_index("sessions_by_batch", "sessions", ["batch_id", "id"])
    op.create_table(
        "images",
        sa.Column("session_id", ID, sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("idx", sa.Integer, primary_key=True),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
    )
    op.create_table(
        "transitions",
        sa.Column("session_id", ID, sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("from_state", sa.Text),
        sa.Column("to_state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    legal = op.create_table(
        "legal",
        sa.Column("from_state", sa.Text, primary_key=True),
        sa.Column("to_state", sa.Text, primary_key=True),
    )
    op.bulk_insert(legal, [{"from_state": before, "to_state": after} for before, after in LEGAL])
    for statement in LAWS[op.get_bind().dialect.name]:
        op.execute(statement)
