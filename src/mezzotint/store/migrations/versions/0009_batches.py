"""Batches: what was accepted together. Must not import ours."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", ID, primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("stop_on_first_error", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("scope", sa.Text),
        sa.Column("key", sa.Text),
        sa.Column("fingerprint", sa.Text),
    )
    op.create_index("batches_by_key", "batches", ["scope", "key"], unique=True)
