"""Steps that make and change history's tables in PostgreSQL. A step that was released is never edited."""
