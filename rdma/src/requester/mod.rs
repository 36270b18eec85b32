//! The asking half of a reliable connection.
