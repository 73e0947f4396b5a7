"""Numbers out of records: one module per kind of experiment."""
