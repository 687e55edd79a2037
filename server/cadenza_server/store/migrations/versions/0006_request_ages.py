"""Ids of calls are forgotten a day after what they made is over: the old ones are to be found."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """What was kept for ever goes with the next look."""
    op.execute("CREATE INDEX requests_by_time ON requests (time)")
