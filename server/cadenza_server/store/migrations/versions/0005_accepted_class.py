"""A job whose class changed keeps the one that it was accepted with: the answer to a repeated call has it."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """What was changed before is not known any more."""
    op.execute("ALTER TABLE jobs ADD COLUMN accepted_class TEXT")
