"""Records turned into text, tables and JSON. Pure: nothing here measures, reads or writes."""
