"""The device of each attempt, as a session's row knows the last one only; the ended by age. Must not import ours."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transitions", sa.Column("device", sa.Text))
    op.create_index("sessions_by_end", "sessions", ["ended_at"])
