//! The formats of RoCEv2.
