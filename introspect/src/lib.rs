//! Mechanism: a Linux kernel's own state, read out of raw memory.
