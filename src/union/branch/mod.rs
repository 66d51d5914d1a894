//! One branch: every call on a real directory, and the only place that changes one.
//!
//! `at` looks at objects and changes their attributes, `change` changes which names there are, `real` keeps
//! directories open within the bounds of `fds`, `list` reads them.

pub mod aside;
pub mod at;
pub mod change;
pub mod fds;
pub mod list;
pub mod real;

pub use aside::Aside;
pub use at::{At, Stat};
pub use real::{Presence, RealDir};
