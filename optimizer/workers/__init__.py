"""Child processes: everything that may crash, hang or run someone else's code runs in one of them.

This room knows processes and messages and nothing about models.
"""
