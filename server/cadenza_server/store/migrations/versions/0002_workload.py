"""What the predictor knows a job by is kept with it."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Jobs that are there already have none: nothing is learnt from them."""
    op.execute("ALTER TABLE jobs ADD COLUMN workload BLOB")
