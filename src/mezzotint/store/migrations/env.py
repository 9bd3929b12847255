"""Runs the revisions on the connection it is handed. Must not open one, begin a transaction or configure logging."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
