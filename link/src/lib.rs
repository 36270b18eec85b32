//! Mechanism: one end of a backdoor, control connection and queue pair together.
