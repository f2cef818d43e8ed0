"""What was: jobs with their events, the slots they held, their metrics rolled up; in SQLite or PostgreSQL."""
