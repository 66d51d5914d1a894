//! The engine.
pub mod engine;
pub mod error;
pub mod fault;
pub mod name;
pub mod options;
pub mod types;
pub use engine::{BranchSource, Layout, Union};
