//! Contract: layout of the Sensor Box, its producer and reader.
