"""Durable state: schema, migrations, group commit, reads."""
