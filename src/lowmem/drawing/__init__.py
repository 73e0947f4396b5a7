"""What several exhibits share: values out of records, rows of tables, panels of figures."""
