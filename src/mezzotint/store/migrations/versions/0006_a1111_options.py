"""The options of AUTOMATIC1111's dialect, one set for each API key. Must not import ours."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "a1111_options",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
