"""Alembic runs this to migrate; the connection is handed in by `store.migration`."""

from alembic import context
from cadenza_server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
