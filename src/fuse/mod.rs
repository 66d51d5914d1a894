//! The engine's answers in the kernel's protocol.

pub mod adapter;
pub mod session;
