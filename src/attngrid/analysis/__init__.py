"""Tidy frames of records; claims, verdicts, the audit and replication. Imports no torch."""
