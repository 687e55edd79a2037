"""Results are deleted when there are too many or they are too old; the job says when."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """No result was deleted so far."""
    op.execute("ALTER TABLE jobs ADD COLUMN result_delete_time INTEGER")
