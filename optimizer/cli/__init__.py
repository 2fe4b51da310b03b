"""The command line: one file per verb, one place for errors. Nothing heavy is imported before a verb needs it."""
