//! Contract: layout of Continuation Boxes, the application's API, recoverable streams.
