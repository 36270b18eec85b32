//! Mechanism: RoCEv2 reliable connections, pure state machines and a UDP loop.
