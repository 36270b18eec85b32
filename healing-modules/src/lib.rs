//! Policy: one file per illness.
