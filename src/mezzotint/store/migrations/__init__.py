"""The steps from each released schema to the next, read by alembic. Must not import the tables of today."""
