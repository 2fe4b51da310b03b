"""What tests share: tiny models, an in-process runtime, a context with made-up data."""
