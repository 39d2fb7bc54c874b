"""The measured figures of the systems table, a module each."""
