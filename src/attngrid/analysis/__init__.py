"""Records as tidy frames; claims, verdicts, the audit and replication. Imports no torch."""
